"""The table of DDIM: its published half, the comparison of shapes, and words that follow the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from sfumato.experiments import ddim_table, sampled
from sfumato.experiments.ddim_table import ETAS, FULL, QUICK, Size, Table
from sfumato.experiments.published import (
    DDIM,
    DDIM_CELLS,
    DDIM_STEPS,
    SOLVER_CELLS,
    Cells,
    rank_correlation,
    ratios,
    rises,
    strangest,
)
from sfumato.experiments.report import Request
from sfumato.experiments.sampled import Bench, Setting, bench, measured

from .conftest import tiny
from .test_sampled import STUB

SIZE = Size(10, (10, 20), 100, 10)


@pytest.fixture
def on(request_of: Callable[..., Request]) -> Bench:
    return bench(request_of("ddim-table"), STUB)


def table(cells: Cells, changed: dict[tuple[str, str], float] | None = None, noise: float = 0.005) -> Table:
    """A table whose distances are given, (eta, S) -> x; what is not told of its scores is 0."""

    def scores(x: float) -> dict[str, Any]:
        rest = dict.fromkeys((*ddim_table.SCORED, *ddim_table.SPENT), 0.0)
        return {"frechet": x, ddim_table.ERROR: noise, "n": 10, "kernel": {"value": 0.0}, **rest}

    other = {(eta, what): cells[eta, 10] for eta in ETAS for what in ("grid", "clip")} | (changed or {})
    return Table(
        {cell: scores(x) for cell, x in cells.items() if cell[1] in SIZE.steps},
        {cell: scores(x) for cell, x in cells.items() if cell[1] in (10, 20, 100)},
        {cell: scores(x) for cell, x in other.items()},
        {10: 1.0},
        {10: noise},
    )


class TestPublished:
    def test_the_table_has_the_papers_shape(self) -> None:
        assert set(DDIM) == set(ETAS)
        assert {len(row) for row in DDIM.values()} == {len(DDIM_STEPS)}
        assert (*FULL.steps, FULL.long) == DDIM_STEPS
        assert len(DDIM_CELLS) == 25
        for eta in DDIM:
            assert rises(DDIM_CELLS, {}, eta) == []  # every row falls, as the page says
        for s in DDIM_STEPS[:-1]:
            column = [DDIM[eta][DDIM_STEPS.index(s)] for eta in ETAS]
            assert column == sorted(column)  # less noise is better,
        assert min(DDIM, key=lambda eta: DDIM[eta][-1]) == "sigma-hat"  # but for the longest walk

    def test_what_both_tables_quote_is_the_same(self) -> None:
        for s in (10, 20):
            assert SOLVER_CELLS["ddim", s] == DDIM_CELLS["0", s]
            assert SOLVER_CELLS["ancestral", s] == DDIM_CELLS["1", s]


class TestShapes:
    def test_rank_correlation_is_spearmans(self) -> None:
        rng = np.random.default_rng(0)
        a = {("x", k): float(v) for k, v in enumerate(rng.integers(0, 6, 12))}  # with ties
        b = {("x", k): float(v) for k, v in enumerate(rng.standard_normal(15))}
        wanted = spearmanr([a["x", k] for k in range(12)], [b["x", k] for k in range(12)]).statistic
        assert rank_correlation(a, b) == pytest.approx(wanted)
        assert math.isnan(rank_correlation({("x", 1): 1.0}, b))
        assert math.isnan(rank_correlation({("x", 1): 1.0, ("x", 2): 1.0}, b))

    def test_a_rise_is_more_than_the_noise(self) -> None:
        cells = {("0", 10): 3.0, ("0", 20): 2.0, ("0", 50): 2.4, ("1", 10): 1.0, ("1", 20): 5.0}
        assert rises(cells, {}, "0") == [(20, 50)]
        assert rises(cells, {("0", 20): 0.3}, "0") == []  # 0.4 is less than twice 0.3
        assert rises(cells, {("0", 20): 0.15, ("0", 50): 0.15}, "0") == []  # and than twice sqrt(2) 0.15
        assert rises(cells, {("0", 20): 0.1, ("0", 50): 0.1}, "0") == [(20, 50)]
        assert rises(cells, {("0", 20): 9.0}, "1") == [(10, 20)]

    def test_the_strangest_ratio(self) -> None:
        ours = {**ratios(DDIM_CELLS, "0"), ("1", 10): 1.0, ("0.5", 10): 3.0}
        assert strangest(ours, ratios(DDIM_CELLS, "0"), 10) == "1"  # 3.07 times too small, the other 2.4 too large
        assert strangest(ours, {}, 10) is None


class TestWords:
    """The same shape is said to be the same; another one, another."""

    def see(self, cells: Cells, **given: Any) -> str:
        return ddim_table.see(table(cells, **given), SIZE, "FD(x)", tiny(0))

    def test_of_the_paper_itself(self) -> None:
        said = self.see(DDIM_CELLS)
        assert "published FID is 1.00" in said
        assert said.count("(as published)") == 2
        assert "no row rises anywhere" in said
        assert "S = 10 is 1.95 times S = 20 (published 1.95)" in said
        assert "above the floor of 1 the first of these is 2.12" in said
        assert "neither change explains it" in said
        assert "the best row here is eta = 0;" in said  # at S = 100
        assert "15 % of the best cell" in said

    def test_of_another_shape(self) -> None:
        turned = {(eta, s): 20 / x for (eta, s), x in DDIM_CELLS.items()}
        said = self.see(turned)
        assert "published FID is -1.00" in said
        assert "sigma-hat < 1 < 0.5 < 0.2 < 0 (published: 0 < 0.2" in said
        assert "eta = 0 rises from S = 10 to 20 and from S = 20 to 100" in said
        assert "the best row here is eta = sigma-hat" in said

    def test_chance_is_no_rise(self) -> None:
        turned = {(eta, s): 20 / x for (eta, s), x in DDIM_CELLS.items()}
        said = self.see(turned, noise=50.0)
        assert "no row rises anywhere" in said
        assert "which cannot be told apart" in said

    def test_the_change_that_explains_is_named(self) -> None:
        flat = {**DDIM_CELLS, ("sigma-hat", 10): 20.0}
        said = self.see(flat, changed={("sigma-hat", "clip"): 300.0})
        assert "that of eta = sigma-hat: published 27.5 times eta = 0" in said
        assert "with x_0 unclipped it comes nearest" in said
        assert "neither change explains it" in self.see(flat, changed={("sigma-hat", "clip"): 21.0})
        assert "on grid `trailing` it comes nearest" in self.see(flat, changed={("sigma-hat", "grid"): 300.0})

    def test_ratios_of_the_numbers_are_those_of_the_csv(self) -> None:
        found = table(DDIM_CELLS)
        rows = [dict(zip(ddim_table.COLUMNS, row, strict=True)) for row in ddim_table.csv_rows(found, SIZE)]
        for row in rows[:10]:
            assert row["ratio"] == pytest.approx(row["published_ratio"])
            assert row["above_floor"] == pytest.approx(row["published_fid"] - 1)
        assert sum(not row["clip"] for row in rows) == len(ETAS)
        assert sum(row["grid"] == "trailing" for row in rows) == len(ETAS)
        lines = ddim_table.number_lines(found, SIZE, "FD(x)")
        assert lines[4][1].startswith("367 ± 0.005 (x 27.50")
        assert lines[9][1] == "367.43 (x 27.50)"


class TestMeasured:
    def test_eta_1_at_all_steps_is_the_ancestral_chain(self, on: Bench, request_of: Callable[..., Request]) -> None:
        """Of the small variance, which is the posterior's."""
        request, steps = request_of("ddim-table"), on.model.denoiser.schedule.steps
        assert steps is not None
        settings = [Setting(name, steps, "trailing", 1.0, 10) for name in ("ddim:eta=1", "ancestral:variance=small")]
        a, b = (measured(request, on, setting, setting.sampler)["images"] for setting in settings)
        assert (a == b).mean() > 0.99  # levels are rounded
        zero = measured(request, on, replace(settings[0], sampler="ddim"), "zero")["images"]
        assert (a == zero).mean() < 0.9

    @pytest.mark.slow
    def test_a_stopped_run_goes_on(
        self, on: Bench, request_of: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        request, size, made, whole = request_of("ddim-table"), Size(10, (2, 4), 5, 5), [], sampled._measure

        def stopping(after: int) -> Callable[..., Any]:
            def one(request: Request, on: Bench, setting: Setting) -> Any:
                if len(made) == after:
                    raise KeyboardInterrupt
                made.append((setting, on.model.config.sampling.clip))
                return whole(request, on, setting)

            return one

        monkeypatch.setattr(sampled, "_measure", stopping(4))
        with pytest.raises(KeyboardInterrupt):
            ddim_table.measure(request, on, size)
        monkeypatch.setattr(sampled, "_measure", stopping(-1))
        found = ddim_table.measure(request, on, size)
        assert len(made) == len(set(made)) == 5 * 2 + 5 * 3
        assert sum(not clip for _, clip in made) == 5
        again = ddim_table.measure(request, on, size)
        assert ddim_table.csv_rows(again, size) == ddim_table.csv_rows(found, size)
        assert [scores["n"] for scores in found.part.values()] == [5] * len(found.part)
        images = found.whole["0", 4]["images"]
        assert len(images) == 5
        assert found.part["0", 4]["frechet"] != found.whole["0", 4]["frechet"]

    def test_the_full_table_is_the_issues(self) -> None:
        assert Size(1000, (10, 20, 50, 100), 1000, 200) == FULL
        assert QUICK.n == 200
        assert max(QUICK.steps) == 50
