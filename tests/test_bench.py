"""The bench without measuring anything: its order, what a stopped one knows, its ratios, its page, and its table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks/ is no part of the package that is installed

from benchmarks import bench, measure, page  # noqa: E402
from benchmarks.table import NEED_MNIST, PARTS  # noqa: E402
from benchmarks.terms import Measure, Side, tiny  # noqa: E402

ABC = Measure("race", "steps", "ms", "milliseconds", tuple(Side(name, "fake", {}) for name in "abc"), ("a",), rounds=3)


def fakes(seen: list[str], stop: Callable[[str, int], bool] = lambda name, number: False) -> dict[str, measure.Go]:
    """Sides that write down when they are asked; side b takes twice, c three times as long as a."""

    def fake(name: str) -> measure.Go:
        def go(number: int) -> dict[str, Any]:
            if stop(name, number):
                raise KeyboardInterrupt
            seen.append(f"{name}{number}")
            return {"ms": (number + 1.0) * ("abc".index(name) + 1)}

        return go

    return {name: fake(name) for name in "abc"}


def kept_of(rounds: list[dict[str, Any]], about: Measure = ABC) -> dict[str, Any]:
    return json.loads(json.dumps({"about": asdict(about), "facts": {}, "rounds": rounds}))


def test_sides_are_asked_in_turn() -> None:
    seen: list[str] = []
    rounds: list[dict[str, Any]] = []
    measure.alternate(ABC, fakes(seen), rounds, lambda: None)
    assert seen == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]
    assert [one["b"]["ms"] for one in rounds] == [2, 4, 6]


def test_a_stopped_measure_goes_on_where_it_stopped(tmp_path: Path) -> None:
    seen: list[str] = []
    store = measure.Store(tmp_path / "reports" / "bench.json")
    rounds = store.kept("part", ABC, {"cores": 2})["rounds"]
    with pytest.raises(KeyboardInterrupt):
        measure.alternate(ABC, fakes(seen, lambda name, number: (name, number) == ("b", 1)), rounds, store.save)
    assert seen == ["a0", "b0", "c0", "a1"]

    again = measure.Store(tmp_path / "reports" / "bench.json")
    rounds = again.kept("part", ABC, {"cores": 2, "date": "later"})["rounds"]
    assert measure.missing(ABC, rounds) == {1: ["b", "c"], 2: ["a", "b", "c"]}
    measure.alternate(ABC, fakes(seen), rounds, again.save)
    assert seen[4:] == ["b1", "c1", "a2", "b2", "c2"]
    assert again.document["parts"]["part"]["machine"] == {"cores": 2}
    assert measure.missing(ABC, measure.Store(again.path).kept("part", ABC, {"cores": 2})["rounds"]) == {}
    assert measure.Store(again.path).kept("part", ABC, {"cores": 4})["rounds"] == []  # another machine, measured anew


def test_what_was_another_measure_is_not_gone_on_with(tmp_path: Path) -> None:
    store = measure.Store(tmp_path / "bench.json")
    measure.alternate(ABC, fakes([]), store.kept("part", ABC, {})["rounds"], store.save)
    wider = replace(ABC, sides=(replace(ABC.sides[0], options={"width": 8}), *ABC.sides[1:]))
    assert len(store.kept("part", ABC, {})["rounds"]) == 3
    assert store.kept("part", wider, {})["rounds"] == []
    store.forget("part")
    assert store.document["parts"] == {}


def test_ratios_are_of_medians_and_their_range_of_rounds() -> None:
    rounds = [{"a": {"ms": 1.0}, "b": {"ms": 3.0}}, {"a": {"ms": 2.0}, "b": {"ms": 5.0}}, {"a": {"ms": 4.0}}]
    assert page.ratio(rounds, "ms", "less", "b", "a") == (4 / 1.5, 2.5, 3.0)  # round 2 has no b: it is no pair
    assert page.ratio(rounds, "ms", "more", "b", "a") == (1.5 / 4, 1 / 3, 0.4)
    assert page.ratio(rounds, "ms", "less", "b", "c") is None
    assert page.spread(2.0, 2.0, 2.0) == "2"
    assert page.spread(1.4142, 1.0, 2.0) == "1.41 (1..2)"


def test_the_page_of_a_stored_bench(tmp_path: Path) -> None:
    about = replace(ABC, more=("parameters", "error"), note="A note.")
    rounds: list[dict[str, Any]] = []
    measure.alternate(about, fakes([]), rounds, lambda: None)
    rounds[-1]["b"]["error"] = 0.0123
    kept = {**kept_of(rounds, about), "facts": {"a": {"threads": 2, "parameters": 1_746_292}}}
    document = {"parts": {"part": {"machine": {"processor": "X", "cores": 2}, "measures": {"race": kept}}}}
    text = page.page(document)
    assert "| a | 2 (1..3) | 1 | 1,746,292 | - |" in text
    assert "| b | 4 (2..6) | 2 | - | 0.0123 |" in text
    assert "| c | 6 (3..9) | 3 | - | - |" in text
    assert "*processor X; cores 2*" in text
    assert "3 rounds; threads: 2. A note." in text
    assert "No test asserts a timing" in text
    page.write(document, tmp_path / "bench.md")
    assert (tmp_path / "bench-part.png").stat().st_size > 1000
    assert "1 of 3 rounds" in page.page({"parts": {"part": {"machine": {}, "measures": {"race": kept_of(rounds[:1])}}}})


def test_the_table_names_what_there_is() -> None:
    assert set(NEED_MNIST) < set(PARTS)
    for part, measures in PARTS.items():
        for one in measures:
            names = [side.name for side in one.sides]
            assert len(set(names)) == len(names), part
            assert set(one.columns) <= set(names), part
            assert tiny(one).rounds <= 2, part
            assert one.fresh or one.task == "train" or one.rounds >= 5, part
            for side in one.sides:
                assert side.library == "command" or (ROOT / f"benchmarks/sides/{side.library}_side.py").exists()
                assert json.loads(json.dumps(side.options)).keys() == side.options.keys()


@pytest.mark.slow
def test_sides_at_work(tmp_path: Path) -> None:
    """The program itself, at sizes that mean nothing; sides whose library is not here are left out."""
    pytest.importorskip("diffusers")
    words = [sys.executable, "-m", "benchmarks.measure", "--tiny", "forward", "step"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "reports" / "bench-tiny.json").read_text())["parts"]
    for one in document["forward"]["measures"].values():
        sides = one["rounds"][-1]
        assert {"diffusers float32", "sfumato float32", "sfumato auto", "diffusers bfloat16"} <= sides.keys()
        assert sides["diffusers float32"]["error"] == 0
        assert sides["sfumato float32"]["error"] < 1e-5 < sides["diffusers bfloat16"]["error"] < 0.1
    (step,) = document["step"]["measures"].values()
    assert len({facts["parameters"] for facts in step["facts"].values()}) == 1
    page = (tmp_path / "reports" / "bench-tiny.md").read_text()
    assert page.count("| sfumato auto |") == 3


def test_the_environment_is_made_anew_when_what_it_is_made_from_changes(tmp_path: Path) -> None:
    for file in bench.MADE_FROM:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text((ROOT / file).read_text())
    before = bench.fingerprint(tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    (home / ".installed").write_text(before)
    assert bench.environment(tmp_path, home) == home / "bin" / "python"  # nothing is installed
    (tmp_path / bench.REQUIREMENTS).write_text("torch\n")
    assert bench.fingerprint(tmp_path) != before
