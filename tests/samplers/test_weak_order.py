"""Stochastic samplers on Gaussian data: mean and covariance, propagated exactly, converge with their weak order.

From the exact marginal at t = 0.9 to t = 0.1, before sigma = 0, on grids uniform in t and in logsnr.  The fitted order
must be at least the stated one minus 0.2.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from sfumato import schedules
from sfumato.samplers.ancestral import ancestral
from sfumato.samplers.ddim import ddim, ddim_sigma_hat
from sfumato.samplers.dpm_solver_sde import dpmpp_2m_sde
from sfumato.samplers.langevin import langevin
from sfumato.samplers.loop import Sampler, walk
from sfumato.samplers.restart import restart
from sfumato.samplers.sde import euler_maruyama, predictor_corrector
from sfumato.schedules import Schedule
from sfumato.testbed import GaussianMixture
from sfumato.testbed.moments import fitted_order, weak_errors

SCHEDULES = ["linear_continuous", "cosine_continuous", "rectified", "edm:sigma_max=5"]
START, END = 0.9, 0.1
FEW, MORE = [16, 32, 64], [32, 64, 128]

# sampler, its weak order, the numbers of steps where it shows
ROWS: dict[str, tuple[Sampler, float, list[int]]] = {
    "ancestral:variance=small": (partial(ancestral, variance="small"), 1, FEW),
    "ancestral:variance=large": (partial(ancestral, variance="large"), 1, FEW),
    "ancestral:variance=optimal": (partial(ancestral, variance="optimal"), 1, FEW),
    "ddim:eta=1": (partial(ddim, eta=1.0), 1, FEW),
    "ddim-sigma-hat": (ddim_sigma_hat, 1, FEW),
    "euler-maruyama": (euler_maruyama, 1, FEW),
    "predictor-corrector": (predictor_corrector, 1, FEW),
    "langevin": (langevin, 0.5, [16, 48]),
    "restart": (restart, 2, [8, 16, 32]),
    "dpmpp-2m-sde": (dpmpp_2m_sde, 2, MORE),
}


def uniform_in_t(schedule: Schedule, steps: int) -> Tensor:
    return torch.linspace(START, END, steps + 1, dtype=torch.float64)


def uniform_in_logsnr(schedule: Schedule, steps: int) -> Tensor:
    """By bisection; logsnr falls with t."""
    ends = schedule.logsnr(torch.tensor([START, END], dtype=torch.float64))
    wished = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, steps + 1, dtype=torch.float64))
    low, high = torch.full_like(wished, END), torch.full_like(wished, START)
    for _ in range(60):
        middle = (low + high) / 2
        above = schedule.logsnr(middle) > wished
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (low + high) / 2


def orders(name: str, spec: str, data: GaussianMixture, grid=uniform_in_t) -> tuple[float, list[float]]:  # type: ignore[no-untyped-def]
    sampler, _, steps = ROWS[name]
    schedule = schedules.from_spec(spec)

    def run(denoiser, x, times, noise) -> Tensor:  # type: ignore[no-untyped-def]
        *_, (_, end, _) = walk(denoiser, x, sampler, times, noise)
        return end

    errors = weak_errors(run, data, schedule, [grid(schedule, n) for n in steps])
    return fitted_order(steps, errors), errors


@pytest.mark.parametrize("spec", SCHEDULES)
@pytest.mark.parametrize("name", ROWS)
def test_weak_order_on_steps_uniform_in_t(name: str, spec: str, gaussian_2d: GaussianMixture) -> None:
    order, errors = orders(name, spec, gaussian_2d)
    assert order >= ROWS[name][1] - 0.2, errors


@pytest.mark.parametrize("name", ROWS)
def test_weak_order_on_steps_uniform_in_logsnr(name: str, gaussian_2d: GaussianMixture) -> None:
    order, errors = orders(name, "rectified", gaussian_2d, uniform_in_logsnr)
    assert order >= ROWS[name][1] - 0.2, errors


def test_second_order_earns_its_name(gaussian_2d: GaussianMixture) -> None:
    """With 32 steps the two rows of order 2 are at least ten times nearer to the truth than ancestral sampling."""
    small = orders("ancestral:variance=small", "rectified", gaussian_2d)[1][1]
    assert orders("restart", "rectified", gaussian_2d)[1][2] < small / 10
    assert orders("dpmpp-2m-sde", "rectified", gaussian_2d)[1][0] < small / 10
