"""Algorithm 2 of Cold Diffusion against Algorithm 1, on networks whose error of x_0 is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sfumato import grids, schedules
from sfumato.corruptions import Blurring, Cold
from sfumato.degradations import DEGRADATIONS, grey
from sfumato.denoiser import Cond, Denoiser, Prediction, from_x0
from sfumato.samplers.cold import cold
from sfumato.samplers.loop import Noise, Query, Sampler, Steps, Walk, walk
from sfumato.schedules import Schedule

LINEAR = sorted(set(DEGRADATIONS) - {"jpeg"})


def naive(x: Tensor, times: Steps, schedule: Schedule, noise: Noise) -> Walk:
    """Algorithm 1: x_s = D(x0, s)."""
    assert isinstance(schedule, Cold)
    for t, s in times:
        p = yield Query(x, t)
        x = schedule.degrade(p.x0, s)
    return x


Error = Callable[[Tensor, Tensor], Tensor | float]


class Wrong(Denoiser):
    """It says x_0 plus an error that may depend on what it is shown and when: error(x_t, t)."""

    def __init__(self, schedule: Cold, x_0: Tensor, error: Error):
        self.schedule, self.x_0, self.error = schedule, x_0, error

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        return from_x0(self.schedule, x_t, t, self.x_0 + self.error(x_t, t))


def restored(denoiser: Wrong, sampler: Sampler, steps: int) -> Tensor:
    """Where the walk from D(x_0, 1) ends; noise is never asked for."""
    schedule = denoiser.schedule
    assert isinstance(schedule, Cold)
    start = schedule.degrade(denoiser.x_0, torch.ones(len(denoiser.x_0)))
    times = grids.trailing(schedule, steps)
    *_, (t, x, _) = walk(denoiser, start, sampler, times, lambda k: pytest.fail("cold diffusion has no noise"))
    assert float(t) == 0
    return x


def pictures(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


@pytest.mark.parametrize("name", sorted(DEGRADATIONS))
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_perfect_network_gives_x0_to_the_bit(name: str, steps: int) -> None:
    x_0 = pictures(0, torch.float32)
    assert torch.equal(restored(Wrong(Cold(name), x_0, lambda x, t: 0), cold, steps), x_0)


def test_it_is_exact_for_x_plus_t_e_whatever_the_network_says() -> None:
    """D(x, t) = x + t e with an e that the error does not move: grey, and errors without colour, wild as they are."""

    def wild(x_t: Tensor, t: Tensor) -> Tensor:
        return (5 * torch.sin(9 * x_t.sum(1, keepdim=True)) + 3 * t[0]).expand_as(x_t)

    x_0 = pictures(0)
    e = grey(x_0, 1.0) - x_0
    denoiser = Wrong(Cold("grey"), x_0, wild)
    half = Cold("grey").degrade(x_0 + wild(x_0, torch.ones(2)), torch.tensor(0.5))
    torch.testing.assert_close(half - wild(x_0, torch.ones(2)), x_0 + 0.5 * e)
    for steps in (1, 2, 50):
        torch.testing.assert_close(restored(denoiser, cold, steps), x_0, rtol=0, atol=1e-12)
        assert float((restored(denoiser, naive, steps) - x_0).abs().max()) > 1


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("steps", [1, 9])
def test_of_a_constant_error_it_keeps_what_the_degradation_takes(name: str, steps: int) -> None:
    """b - D(b, 1), where Algorithm 1 keeps b."""
    x_0, b = pictures(0), 0.1 + pictures(1)
    schedule = Cold(name)
    denoiser = Wrong(schedule, x_0, lambda x_t, t: b)
    left = restored(denoiser, cold, steps) - x_0
    torch.testing.assert_close(left, b - schedule.degrade(b, torch.tensor(1.0)), rtol=0, atol=1e-12)
    torch.testing.assert_close(restored(denoiser, naive, steps) - x_0, b, rtol=0, atol=1e-12)
    assert float(left.norm()) < float(b.norm())


@pytest.mark.parametrize("schedule", [schedules.rectified(), schedules.linear(50), Blurring(8, 8)])
def test_a_schedule_of_noise_is_refused(schedule: Schedule) -> None:
    run = cold(pictures(0), [], schedule, lambda k: pictures(k))
    with pytest.raises(ValueError, match=f"sampler 'cold' undoes schedule 'cold', not '{schedule.name}'; take sampler"):
        next(run)
