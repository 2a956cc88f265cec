"""The sweep on a stand-in recipe: equal time, the same loss for all, words that follow the numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sfumato.experiments import sweep
from sfumato.experiments.report import Request, write
from sfumato.experiments.sweep import COLUMNS, OWN, Contest, Judge, Size, networks, planned, see
from sfumato.nn import UNetConfig
from sfumato.train import Run

from ..tiny import tiny
from .conftest import read_rows
from .test_sampled import STUB

WIDE = UNetConfig(channels=16, multipliers=(1,), blocks=1, groups=4)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "RECIPES", {"small": tiny})
    monkeypatch.setattr(sweep, "CANDIDATES", {"small": {"wide": WIDE}})
    monkeypatch.setattr(sweep, "QUICK", Size((Contest("small", 0.3), Contest("small", 0.5, (OWN,))), 10))
    monkeypatch.setattr(sweep, "feature_network", lambda name: STUB)


def test_candidates_are_the_recipes_run_with_another_network() -> None:
    for recipe in sweep.CANDIDATES:
        own = sweep.RECIPES[recipe]()
        for network in networks(recipe).values():
            plan = planned(recipe, network, 1000, own.seed)
            assert replace(plan, network=own.network, optimiser=own.optimiser, steps=own.steps) == replace(
                own, features=""
            )
            assert plan.optimiser.warmup <= 100


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_every_candidate_is_trained_scored_and_told(tmp_path: Path) -> None:
    request = Request("sweep", tmp_path / "sweep", quick=True, model="")
    report = sweep.run(request)
    write(request, report, 1.0)
    rows = read_rows(tmp_path / "sweep" / "sweep.csv")
    assert [(row["contest"], row["network"]) for row in rows] == [
        ("small, 0.3 s", OWN),
        ("small, 0.3 s", "wide"),
        ("small, 0.5 s", OWN),
    ]
    for row in rows:
        assert float(row["frechet"]) > 0
        assert float(row["rows_per_second"]) == pytest.approx(
            float(row["steps"]) * tiny().batch / float(row["seconds"])
        )
    said: list[str] = []
    again = sweep.run(replace(request, say=said.append))  # nothing is trained anew
    assert again.rows == report.rows


def found_of(**distances: float) -> sweep.Found:
    usual = dict.fromkeys(COLUMNS[2:], 1.0)
    return {("r", name): {**usual, "frechet": x, "gflops": x} for name, x in distances.items()}


def test_words_follow_the_numbers() -> None:
    by = Judge(STUB, None, (0.5, 0.1))  # type: ignore[arg-type]
    alike = see(found_of(**{OWN: 1.1, "wide": 1.0}), "r", by)
    assert "as good as the best within the spread of real" in alike
    worse = see(found_of(**{OWN: 2.0, "wide": 1.0}), "r", by)
    assert "The best is wide with 1; the recipe's has 2, 2.00 times that." in worse


def test_a_plan_is_a_run() -> None:
    assert isinstance(planned("mnist", WIDE, 50, 3), Run)
    assert planned("mnist", WIDE, 50, 3).optimiser.warmup == 5
