"""The stochastic samplers on every kind of schedule and number of steps: finite, in x's dtype, row by row."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from sfumato import grids, samplers, schedules
from sfumato.denoiser import Denoiser
from sfumato.noise import PRIOR, RowNoise, normal
from sfumato.samplers.dpm_solver_sde import dpmpp_2m_sde
from sfumato.samplers.langevin import langevin
from sfumato.samplers.loop import Sampler, walk
from sfumato.samplers.restart import restart
from sfumato.samplers.sde import euler_maruyama, predictor_corrector
from sfumato.schedules import Schedule
from sfumato.testbed import GaussianMixture

# the sampler, and the calls of a walk of S steps down to s = 0; those of restart depend on the grid
ROWS: dict[str, tuple[Sampler, object]] = {
    "euler-maruyama": (euler_maruyama, lambda steps: steps),
    "predictor-corrector": (predictor_corrector, lambda steps: 2 * steps - 1),
    "predictor-corrector:corrections=3": (partial(predictor_corrector, corrections=3), lambda steps: 4 * steps - 3),
    "langevin": (langevin, lambda steps: 5 * steps + 1),
    "restart": (restart, None),
    "dpmpp-2m-sde": (dpmpp_2m_sde, lambda steps: steps),
}
CONTINUOUS = ["linear_continuous", "cosine_continuous", "rectified", "edm"]


def check(name: str, schedule: Schedule, denoiser: Denoiser, steps: int, grid: str, dtype: torch.dtype) -> None:
    sampler, calls = ROWS[name]
    times = grids.GRIDS[grid](schedule, steps)
    x_T = (schedule.prior_std * torch.tensor([[0.3], [-1.2]])).to(dtype)
    path = list(walk(denoiser, x_T, sampler, times, RowNoise([1, 2], x_T)))
    visited = times.tolist()
    assert all(float(t) in visited for t, _, _ in path)
    assert torch.equal(path[0][1], x_T)
    assert all(x.dtype == dtype and x.shape == x_T.shape and bool(x.isfinite().all()) for _, x, _ in path)
    if callable(calls):
        assert len(path) == calls(steps) + 1
    at = path[-2]
    torch.testing.assert_close(path[-1][1], at[2].x0)  # type: ignore[union-attr]  # it ends on a denoised state


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("total", [1, 2, 10])
def test_every_number_of_steps(total: int, name: str, mixture_1d: GaussianMixture) -> None:
    schedule = schedules.cosine(total)
    for steps in {1, max(1, total - 1), total}:
        check(name, schedule, mixture_1d.denoiser(schedule), steps, "trailing", torch.float32)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_betas_that_end_near_one(steps: int, name: str, mixture_1d: GaussianMixture) -> None:
    schedule = schedules.from_betas([0.01, 0.5, 0.9, 0.999, 0.999])
    check(name, schedule, mixture_1d.denoiser(schedule), steps, "uniform", torch.float32)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("spec", CONTINUOUS)
def test_continuous_schedules(spec: str, name: str, mixture_1d: GaussianMixture) -> None:
    schedule = schedules.from_spec(spec)
    for steps, grid in ((1, "trailing"), (2, "quadratic"), (7, "trailing")):
        check(name, schedule, mixture_1d.denoiser(schedule), steps, grid, torch.float64)


@pytest.mark.parametrize("steps", [2, 10])
@pytest.mark.parametrize("spec", ["cosine", "rectified", "edm"])
@pytest.mark.parametrize("name", [name for name in ROWS if name != "restart"])
def test_no_state_is_far_from_where_it_belongs(name: str, spec: str, steps: int, gaussian_2d: GaussianMixture) -> None:
    """Even with two steps, and where the reverse SDE is stiffest, x is at most four times as large as it should be."""
    schedule = schedules.from_spec(spec)
    x_T = schedule.prior_std * normal(range(200), (2,), PRIOR).double()
    times = grids.trailing(schedule, steps)
    for t, x, _ in walk(gaussian_2d.denoiser(schedule), x_T, ROWS[name][0], times, RowNoise(range(200), x_T)):
        size = (schedule.alpha(t).square() + schedule.sigma(t).square()).sqrt()
        assert x.std() <= 4 * size


@pytest.mark.parametrize("name", ROWS)
def test_a_row_does_not_depend_on_its_batch(name: str, mixture_2d: GaussianMixture) -> None:
    denoiser = mixture_2d.denoiser(schedules.cosine(50))

    def draw(seeds: list[int]) -> torch.Tensor:
        return samplers.sample(denoiser, normal(seeds, (2,), PRIOR), ROWS[name][0], steps=10, seeds=seeds)

    many = draw([5, 9, 11, 4])
    torch.testing.assert_close(draw([11])[0], many[2], rtol=0, atol=1e-5)
    assert (many[0] - many[1]).abs().max() > 1e-3
