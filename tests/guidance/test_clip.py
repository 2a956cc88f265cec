"""Clipping holds x0 in its interval, and x_t = alpha x0 + sigma eps with it."""

from __future__ import annotations

import pytest
import torch

from sfumato import gaussian, samplers, schedules
from sfumato.guidance import clip
from sfumato.schedules import Schedule
from sfumato.testbed import GaussianMixture


def test_clipping_keeps_x_t(schedule: Schedule, mixture_2d: GaussianMixture) -> None:
    x_t = 3 * torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.1, 1, 8, dtype=torch.float64)
    x_t = x_t * (schedule.alpha(t) + schedule.sigma(t))[:, None]
    inner = mixture_2d.denoiser(schedule)
    plain, clipped = inner(x_t, t), clip(inner, -0.3, 0.2)(x_t, t)
    assert torch.equal(clipped.x0, plain.x0.clamp(-0.3, 0.2))
    assert not torch.equal(clipped.x0, plain.x0)
    torch.testing.assert_close(gaussian.perturb(schedule, clipped.x0, t, clipped.eps), x_t, rtol=1e-12, atol=1e-12)
    assert clipped.x0_variance is not None
    assert torch.equal(clipped.x0_variance, plain.x0_variance)


def test_inside_the_interval_nothing_changes(schedule: Schedule, mixture_2d: GaussianMixture) -> None:
    x_t = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.1, 1, 8, dtype=torch.float64)
    plain, clipped = mixture_2d.denoiser(schedule)(x_t, t), clip(mixture_2d.denoiser(schedule), -99, 99)(x_t, t)
    assert torch.equal(clipped.x0, plain.x0)
    torch.testing.assert_close(clipped.eps, plain.eps, rtol=1e-10, atol=1e-10)


def test_samples_stay_inside(mixture_2d: GaussianMixture) -> None:
    denoiser = clip(mixture_2d.denoiser(schedules.cosine(50)), -0.5, 0.5)
    assert denoiser.schedule is denoiser.inner.schedule
    x_T = torch.randn(16, 2, generator=torch.Generator().manual_seed(1))
    for name in sorted({"ancestral", "ddim", "heun", "dpmpp-3m", "deis-3", "unipc-3"}):  # whose last step goes to x_0
        x = samplers.sample(denoiser, x_T, name, steps=10)
        assert x.abs().max() <= 0.5 + 1e-6
        assert bool((x.abs() > 0.499).any())


@pytest.mark.parametrize(("low", "high"), [(1.0, -1.0), (0.5, 0.5)])
def test_an_empty_interval_is_refused(low: float, high: float, mixture_2d: GaussianMixture) -> None:
    with pytest.raises(ValueError, match=r"clipping needs low < high; got \["):
        clip(mixture_2d.denoiser(schedules.rectified()), low, high)
