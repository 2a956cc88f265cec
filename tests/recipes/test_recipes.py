"""Recipes are complete Runs; what a run leaves behind opens and says how it was made."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sfumato
from sfumato import data
from sfumato.checkpoints import native
from sfumato.recipes import RECIPES, finish, plan
from sfumato.recipes.arguments import run_like
from sfumato.recipes.fit import snapshots
from sfumato.train import Run, Training

from ..tiny import COMMAND, silent, tiny, train_tiny, trained


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_is_a_complete_run_and_says_what_it_is(name: str) -> None:
    run = RECIPES[name]()
    assert isinstance(run, Run)
    assert run == RECIPES[name]()
    assert json.loads(json.dumps(run.document()))
    assert (RECIPES[name].__doc__ or "").strip().endswith(".")


@pytest.mark.parametrize(("steps", "count"), [(48, 16), (10, 16), (1, 1), (1000, 3)])
def test_snapshots_are_even_and_end_with_the_last_step(steps: int, count: int) -> None:
    found = snapshots(tiny(steps=steps, snapshots=count))
    assert found[-1] == steps
    assert len(found) == min(steps, count)
    assert min(found) >= 1
    gaps = np.diff([0, *found])
    assert gaps.max() - gaps.min() <= 1


def test_what_a_run_leaves_behind() -> None:
    out = trained()
    assert sorted(p.name for p in out.iterdir() if not p.name.startswith(".")) == [
        *["best", "checkpoints", "ema", "log.jsonl", "model", "run.json", "samples", "tensorboard"]
    ]
    assert len(list((out / "ema").iterdir())) == 16
    assert list((out / "tensorboard").iterdir())
    for picture in (out / "samples").iterdir():
        with Image.open(picture) as opened:
            opened.load()


@pytest.mark.slow
def test_finish_writes_pictures_scores_and_the_card(tmp_path: Path) -> None:
    shutil.copytree(trained(), tmp_path / "run")
    training = Training(tiny(), tmp_path / "run", say=silent)
    scores = finish(training, COMMAND, 20, silent)
    assert native.read_json(tmp_path / "run" / "scores.json") == json.loads(json.dumps(scores))
    for name in ("samples.png", "film.gif", "loss.png"):
        with Image.open(tmp_path / "run" / name) as picture:
            assert min(picture.size) > 100
    model = sfumato.load(tmp_path / "run")
    assert model.config.training["scores"]["sampling"]["n"] == 20
    for words in (
        f"- command: `{COMMAND}`",
        "trained for",
        "48 steps",
        "# tiny",
        "CC BY 4.0",
        "held out: rows with index % 10 == 9",
        "bits/dim",
        f"{scores['bits_per_dim']['value']:.3f}",
        "n = 20 samples, seed 0",
        f"{sum(p.numel() for p in model.net.parameters()):,} parameters",
        "one of 10 classes",
    ):
        assert words in model.card


def test_a_finished_run_given_again_says_so_and_keeps_its_model(tmp_path: Path) -> None:
    shutil.copytree(trained(), tmp_path / "run")
    before = native.read_tensors(tmp_path / "run" / "model" / "model.safetensors")
    shutil.rmtree(tmp_path / "run" / "model")  # as if it was killed between its last two writes
    train_tiny(tiny(), tmp_path / "run")
    after = native.read_tensors(tmp_path / "run" / "model" / "model.safetensors")
    assert all(x.equal(after[name]) for name, x in before.items())


def test_a_run_may_go_on_for_more_steps(tmp_path: Path) -> None:
    shutil.copytree(trained(), tmp_path / "run")
    training = train_tiny(tiny(steps=50), tmp_path / "run")
    assert training.step == 50
    assert sfumato.load(tmp_path / "run").config.training["step"] == 50


def test_the_plan_counts_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = dict(plan(tiny(steps=1000), None)[0])
    model = sfumato.load(trained())
    assert rows["parameters"] == f"{sum(p.numel() for p in model.net.parameters()):,}"
    assert rows["data"].startswith("1618 rows of (1, 8, 8) (picture), 179 held out")
    assert rows["classes"] == "10"
    assert float(rows["FLOPs a step"].split()[0]) > 0
    assert float(rows["images/s"]) > 0
    assert rows["ETA"].startswith("1000 steps in")
    assert "MiB" in rows["memory"]
    assert not list(tmp_path.iterdir())


def test_a_run_takes_over_the_network_of_init() -> None:
    config = sfumato.load(trained()).config
    run = run_like(RECIPES["digits"](), config)
    assert run.network == tiny().network
    assert run.schedule.split(":")[0] == "cosine"
    assert (run.target, run.time, run.learned_variance) == ("v", "index", False)
    Training(run, Path("never"), sfumato.load(trained()), silent, resume=False)


@pytest.mark.slow
def test_a_stream_trains_is_planned_and_scored(tmp_path: Path) -> None:
    """Its length is unknown, so nothing may ask for it."""
    rng = np.random.default_rng(0)
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for i in range(60):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
            for name, content in ((f"{i:03d}.png", file.getvalue()), (f"{i:03d}.cls", str(i % 3).encode())):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                shard.addfile(entry, io.BytesIO(content))
    run = tiny(data=data.Data("stream", path=str(tmp_path / "*.tar"), size=8), steps=4, save_every=2, evaluate_every=2)
    assert dict(plan(run, None)[0])["data"].startswith("a stream of rows of (3, 8, 8)")
    training = train_tiny(run, tmp_path / "out")
    scores = finish(training, COMMAND, 6, silent)
    assert scores["nearest"]["median"] > 0
    assert Training(run, tmp_path / "out", say=silent).step == 4
