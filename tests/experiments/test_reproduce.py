"""Every experiment as a user runs it, on a tiny model: its files, its page, and that weights reach the CSV."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from sfumato import cli, experiments
from sfumato.experiments import (
    EXPERIMENTS,
    assumptions,
    bound_terms,
    cfg_table,
    classifier_guidance,
    ddim_table,
    figures,
    flow,
    forward_chain,
    interpolation,
    nll,
    progressive,
    reconstruction,
    reproduce,
    reuse,
    reverse_film,
    sampled,
    schedules,
    solver_orders,
    solver_table,
)
from sfumato.experiments.report import UNFINISHED, Request, digest, number, remembered
from sfumato.experiments.trainings import trained_here
from sfumato.model import Model
from sfumato.nn import UNetConfig
from sfumato.train import Run

from .test_classifier_guidance import classifier_of
from .test_sampled import STUB

TINY: dict[str, tuple[ModuleType, dict[str, Any]]] = {
    "forward-chain": (forward_chain, {"chains": 4, "pixels": 16, "frames": 5}),
    "schedules": (schedules, {"repeats": 2}),
    "reverse-film": (reverse_film, {"training": 2, "steps": 10, "samples": 3, "batch": 3, "pixels": 16, "frames": 10}),
    "bound-terms": (bound_terms, {"rows": 3, "block": 2}),
    "progressive": (progressive, {"samples": 10, "steps": 10, "frames": 5, "block": 6}),
    "interpolation": (interpolation, {"pairs": 2, "steps": 4}),
    "solver-orders": (solver_orders, {"steps": (8, 16)}),
    "assumptions": (assumptions, {"training": 2, "batch": 4, "samples": 10, "calls": (1, 2), "rows": 2}),
    "nll": (
        nll,
        {
            "training": 2,
            "batch": 4,
            "samples": 10,
            "rows": 2,
            "ode_rows": 2,
            "steps": 25,
            "sampled": 2,
            "tolerance": 0.5,
        },
    ),
    "flow": (
        flow,
        {"plane": 2, "points": 20, "digits": 2, "samples": 10, "batch": 4, "steps": (1, 2), "fine": 4},
    ),
    "reconstruction": (
        reconstruction,
        {"rows": 2, "steps": (5,), "tolerances": (), "pairs": 2, "exact": (8, 16)},
    ),
    "ddim-table": (ddim_table, {"n": 10, "steps": (2, 4), "long": 8, "few": 5}),
    "solver-table": (solver_table, {"n": 10, "evaluations": (3, 5), "rows": 2, "fine": 10}),
    "reuse": (reuse, {"n": 10, "steps": (2, 4), "rows": 2}),
    "cfg-table": (cfg_table, {"samples": 10, "steps": 4}),
    "classifier-guidance": (classifier_guidance, {"samples": 10, "ddim": 4, "ancestral": 4, "chain": 4}),
}
OWN_TESTS = {"sweep", "trilemma"}  # experiments that need data which do not ship, and are run in tests of their own
TIMED = ("ddim-table", "solver-table", "reuse", "cfg-table", "classifier-guidance")  # seconds are among their numbers
WITH_MODEL = sorted(name for name in TINY if experiments.EXPERIMENTS[name].model)
IN_BLOCKS = [
    *(name for name in WITH_MODEL if name not in TIMED),
    "flow",
]  # flow stands for those that train: they keep their trainings alike


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, sizes in TINY.values():
        monkeypatch.setattr(module, "QUICK", replace(module.QUICK, **sizes))
        if hasattr(module, "trained_here"):
            monkeypatch.setattr(module, "trained_here", trained_small)
    monkeypatch.setattr(sampled, "feature_network", lambda name: STUB)
    monkeypatch.setattr(classifier_guidance, "noise_aware", lambda request, model: classifier_of(model))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are not made, where only numbers are looked at."""
    monkeypatch.setattr(figures, "png", lambda drawn: b"")
    monkeypatch.setattr(figures, "gif", lambda frames: b"")


def trained_small(request: Request, name: str, plan: Run) -> Model:
    """What the experiments train, with a smaller network where it is a UNet."""
    small = {"channels": 8, "multipliers": (1,), "groups": 4} if isinstance(plan.network, UNetConfig) else {}
    return trained_here(request, name, replace(plan, network=replace(plan.network, **small)))


def test_every_experiment_is_tested() -> None:
    assert set(TINY) | OWN_TESTS == set(EXPERIMENTS)


@pytest.mark.parametrize("name", sorted(TINY))
def test_it_writes_picture_table_and_page(name: str, tmp_path: Path, saved: Callable[[int], str]) -> None:
    folder = saved(0)
    out = tmp_path / "report"
    asked = [name, "--quick", *(["--model", folder] if name in WITH_MODEL else []), "--out", str(out)]
    status = cli.main(["reproduce", *asked])
    assert status == 0
    picture = (out / f"{name}.png").read_bytes()
    assert len(picture) < 300_000
    with Image.open(io.BytesIO(picture)) as image:
        assert image.format == "PNG"
        assert image.width > 600
        assert len(image.convert("L").getcolors() or []) > 10  # something is drawn
    lines = (out / f"{name}.csv").read_text().splitlines()
    assert lines[0] == ",".join(TINY[name][0].COLUMNS)
    document = json.loads((out / f"{name}.json").read_text(), parse_constant=pytest.fail)
    assert [list(row) for row in document["rows"]] == [list(TINY[name][0].COLUMNS)] * (len(lines) - 1)
    assert document["command"].startswith(f"sfumato reproduce {name} --quick")
    assert document["seed"] == 0
    if name in TIMED:  # and scored
        assert {"features", "features_weights", "reference", "reference_n", "ema", "weights"} <= document.keys()
    page = (out / "README.md").read_text()
    assert "Quick run" in page
    assert f"sfumato reproduce {' '.join(asked)}" in page
    assert f"({name}.png)" in page
    assert f"{len(lines) - 1} rows" in page
    if name in WITH_MODEL:
        from sfumato.model import load

        assert digest(load(folder)) in page
    left = {path.name for path in out.iterdir()}
    assert left - {"README.md", f"{name}.png", f"{name}.csv", f"{name}.json", f"{name}.gif", "training-2"} == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_MODEL)
@pytest.mark.usefixtures("undrawn")
def test_weights_change_the_numbers(name: str, tmp_path: Path, saved: Callable[[int], str]) -> None:
    def numbers(seed: int) -> str:
        out = reproduce(name, quick=True, model=saved(seed), out=tmp_path / "report")
        return (out / f"{name}.csv").read_text()

    assert numbers(0) != numbers(1)


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_BLOCKS)
@pytest.mark.usefixtures("undrawn")
def test_a_stopped_run_goes_on(
    name: str, tmp_path: Path, saved: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, module = saved(0), TINY[name][0]
    folder = folder if name in WITH_MODEL else None
    whole = reproduce(name, quick=True, model=folder, out=tmp_path / "whole")
    out, computed = tmp_path / "stopped", []

    def counting(stop_after: int | None) -> Callable[..., dict[str, torch.Tensor]]:
        def wrapped(request: Request, key: dict, block: str, compute: Callable) -> dict[str, torch.Tensor]:
            def counted() -> dict[str, torch.Tensor]:
                if stop_after is not None and len(computed) == stop_after:
                    raise KeyboardInterrupt
                computed.append(block)
                return compute()

            return remembered(request, key, block, counted)

        return wrapped

    monkeypatch.setattr(module, "remembered", counting(stop_after=1))
    with pytest.raises(KeyboardInterrupt):
        reproduce(name, quick=True, model=folder, out=out)
    assert not (out / "README.md").exists()
    monkeypatch.setattr(module, "remembered", counting(stop_after=None))
    reproduce(name, quick=True, model=folder, out=out)
    assert len(computed) == len(set(computed))  # no block was computed twice
    assert (out / f"{name}.csv").read_text() == (whole / f"{name}.csv").read_text()
    assert not (out / UNFINISHED).exists()


def test_a_block_of_other_weights_is_not_taken(tmp_path: Path) -> None:
    request = Request("bound-terms", tmp_path)
    block = lambda x: {"x": torch.tensor([x])}  # noqa: E731
    assert remembered(request, {"weights": "a"}, "rows-0", lambda: block(1.0))["x"] == 1
    assert remembered(request, {"weights": "a"}, "rows-0", lambda: block(2.0))["x"] == 1
    assert remembered(request, {"weights": "b"}, "rows-0", lambda: block(3.0))["x"] == 3
    assert remembered(replace(request, seed=1), {"weights": "b"}, "rows-0", lambda: block(4.0))["x"] == 4
    torn = tmp_path / UNFINISHED / "rows-0" / "state.safetensors"
    torn.write_bytes(torn.read_bytes()[:-2])
    said: list[str] = []
    again = Request("bound-terms", tmp_path, seed=1, say=said.append)
    assert remembered(again, {"weights": "b"}, "rows-0", lambda: block(5.0))["x"] == 5
    assert "rows-0" in said[0]


def test_an_unknown_name_is_one_line_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce", "bound-term"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "did you mean 'bound-terms'?" in said
    for name in EXPERIMENTS:
        assert name in said


def test_a_missing_model_is_one_line_and_leaves_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report"
    assert cli.main(["reproduce", "progressive", "--model", str(tmp_path / "nowhere"), "--out", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not out.exists()


def test_an_unwritable_out_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["reproduce", "schedules", "--quick", "--out", str(tmp_path / "file")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--out" in said


def test_the_command_names_only_what_is_not_usual() -> None:
    assert Request("schedules", Path("reports/schedules")).command == "sfumato reproduce schedules"
    asked = Request("progressive", Path("a b"), quick=True, model="m", seed=3)
    assert asked.command == "sfumato reproduce progressive --quick --model m --seed 3 --out 'a b'"


def test_csv_cells() -> None:
    assert [number(x) for x in (None, 0.1, 1e-12, 7, "L_0")] == ["", "0.1", "1e-12", "7", "L_0"]


def test_help_lists_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["reproduce", "--help"])
    said = capsys.readouterr().out
    for name, row in experiments.EXPERIMENTS.items():
        assert name in said
        assert row.summary in said
