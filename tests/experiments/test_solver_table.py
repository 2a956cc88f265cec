"""Every sampler at so many evaluations: what it is given, how near the ODE it ends, words that follow the numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sfumato import schedules as rooms
from sfumato.experiments import solver_table
from sfumato.experiments.report import Request
from sfumato.experiments.sampled import Bench, Setting, bench, measured
from sfumato.experiments.solver_table import FULL, SOLVERS, Size, cells, ode_distances, solves, steps_for
from sfumato.samplers import SAMPLERS
from sfumato.testbed import GaussianMixture

from .test_sampled import STUB


@pytest.fixture
def on(request_of: Callable[..., Request]) -> Bench:
    return bench(request_of("solver-table"), STUB)


def found_of(scores: dict[tuple[str, int], float], error: float = 0.05) -> dict[tuple[str, int], dict[str, Any]]:
    return {cell: {"frechet": x, solver_table.ERROR: error} for cell, x in scores.items()}


class TestEvaluations:
    def test_what_is_asked_is_what_is_measured(self, on: Bench, request_of: Callable[..., Request]) -> None:
        for name, asked in [("dpmpp-3m", 5), ("heun", 12), ("dpmpp-2m-sde", 3)]:
            steps = steps_for(name, asked, on.model.denoiser.schedule)
            assert steps is not None
            found = measured(request_of("solver-table"), on, Setting(name, steps, solver_table.GRID, 1.0, 4), "x")
            assert found["evaluations"] == asked

    def test_a_number_that_cannot_be_is_left_out(self) -> None:
        """Heun: 2S - 1 less its long steps; dpmpp-3m has one more at its start; no step is left over."""
        cosine = rooms.from_spec("cosine")
        assert [steps_for("unipc-3", asked, cosine) for asked in (3, 8)] == [3, 8]
        assert steps_for("dpmpp-3m", 8, cosine) == 7
        assert [steps_for("heun", asked, cosine) for asked in (8, 10)] == [None, 6]
        assert steps_for("ddim", 30, rooms.cosine(steps=20)) is None  # more steps than there are


class TestDistance:
    def test_more_evaluations_come_nearer(
        self, on: Bench, request_of: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With the exact denoiser of a Gaussian of pictures, whose ODE a solver ends on."""
        mixture = GaussianMixture(torch.ones(1), torch.zeros(1, 64), 0.25 * torch.eye(64, dtype=torch.float64)[None])
        schedule = rooms.cosine()
        exact = mixture.denoiser(schedule)

        class Flat(type(exact)):  # type: ignore[misc]
            def __call__(self, x_t: Any, t: Any, cond: Any = None) -> Any:
                p = super().__call__(x_t.flatten(1), t, cond)
                shape = x_t.shape
                return type(p)(p.x0.reshape(shape), p.eps.reshape(shape))

        exact.__class__ = Flat
        object.__setattr__(on.model, "guided", lambda *given, **more: exact)
        object.__setattr__(on.model, "denoiser", exact)
        monkeypatch.setattr(solver_table, "SOLVERS", ("ddim", "dpmpp-2m", "ancestral"))
        size = Size(4, (3, 5, 10), 3, 100)
        found, doubt = ode_distances(request_of("solver-table"), on, size, cells(size, schedule))
        for name in ("ddim", "dpmpp-2m"):
            assert found[name, 10] < found[name, 5] < found[name, 3]
        assert found["dpmpp-2m", 10] < found["ddim", 10]
        assert doubt < found["dpmpp-2m", 10]
        assert not any(SAMPLERS[name].stochastic for name, _ in found)


class TestWords:
    SCORES = {  # noqa: RUF012 - only read
        ("ddim", 10): 13.36,
        ("ancestral", 10): 41.07,
        ("deis-3", 10): 4.17,
        ("unipc-3", 10): 3.87,
    }
    FAR = {("ddim", 10): 0.3, ("deis-3", 10): 0.2, ("unipc-3", 10): 0.1}  # noqa: RUF012

    def see(self, scores: dict[tuple[str, int], float], error: float = 0.05) -> str:
        return solver_table.see(found_of(scores, error), self.FAR, 2.0, "FD(x)")

    def test_of_the_published_figures(self) -> None:
        said = self.see(self.SCORES)
        order = "unipc-3 < deis-3 < ddim < ancestral"
        assert f"the order there is {order}, here {order}; DDIM is 3.45 times unipc-3 there, 3.45 times here" in said
        assert "At 10 evaluations unipc-3 has 3.87 (1.94 times real pictures); nearest to the ODE is unipc-3" in said
        assert "1.00 at 10 evaluations." in said
        assert "is not better by these features" not in said
        assert "ancestral is as good as the best deterministic sampler at none" in said
        assert "Equal to the last digit are: none" in said

    def test_of_others(self) -> None:
        turned = {cell: 20 / x for cell, x in self.SCORES.items()}
        said = self.see(turned)
        assert "here ancestral < ddim < deis-3 < unipc-3" in said
        assert "-1.00 at 10 evaluations.  At 10 what is nearer to the ODE is not better" in said
        assert "ancestral is as good as the best deterministic sampler at 10 evaluations" in said
        assert "as good within chance: ddim" in self.see(turned, error=0.5)

    def test_equal_ways_are_named(self) -> None:
        far = {("ddim", 3): 0.25, ("plms", 3): 0.25, ("heun", 8): 0.25}
        assert "are: ddim and plms at 3." in solver_table._alike(far)

    def test_a_dash_where_there_is_none(self) -> None:
        size = Size(4, (3, 10), 2, 8)
        lines = {line[0]: line[1:] for line in solver_table.number_lines(found_of(self.SCORES), self.FAR, size, "FD")}
        assert lines["ddim: FD; rms"] == ["-", "13.4 ± 0.05; 0.3"]
        assert lines["ancestral: FD"] == ["-", "41.1 ± 0.05"]
        assert lines["unipc-3: published FID, CIFAR-10"] == ["-", "3.87"]


def test_every_solver_is_a_sampler() -> None:
    assert set(SOLVERS) <= set(SAMPLERS)
    assert set(solver_table.SHOWN) <= set(SOLVERS)
    assert all(solves(name) for name in solver_table.ODE)
    assert FULL.evaluations == (3, 5, 8, 10, 15, 20)
    assert FULL.n == 1000


@pytest.mark.slow
def test_the_whole_page(request_of: Callable[..., Request], monkeypatch: pytest.MonkeyPatch, on: Bench) -> None:
    monkeypatch.setattr(solver_table, "QUICK", Size(10, (3, 5), 2, 10))
    monkeypatch.setattr(solver_table, "SOLVERS", ("ddim", "dpmpp-2m", "ancestral", "heun"))
    monkeypatch.setattr(solver_table, "SHOWN", ("ddim", "heun"))
    monkeypatch.setattr(solver_table, "bench", lambda request: on)
    found = solver_table.run(request_of("solver-table"))
    named = [dict(zip(found.columns, row, strict=True)) for row in found.rows]
    assert {row["evaluations"] for row in named} <= {3, 5}
    assert all((row["rms_to_ode"] is None) == (row["sampler"] == "ancestral") for row in named)
    assert np.isfinite([row["frechet"] for row in named]).all()
    assert any("fewer than 50,000" in line for line in found.basis)
    assert any("floor: 1,000 real" in line for line in found.basis)
