"""The exact denoiser of a data set: a mixture of points."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sfumato import samplers, schedules
from sfumato.schedules import Schedule
from sfumato.testbed import Empirical, GaussianMixture


@pytest.fixture(scope="module")
def rows() -> Tensor:
    return torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def narrow(rows: Tensor) -> GaussianMixture:
    """The same points as Gaussians of variance 1e-14."""
    return GaussianMixture(torch.ones(len(rows)), rows, 1e-14 * torch.eye(3).expand(len(rows), 3, 3))


def test_it_is_a_mixture_of_points(schedule: Schedule, rows: Tensor) -> None:
    """At every t, 1 included, where rectified and cosine have alpha = 0 and nothing is known of x_0."""
    t = torch.tensor([0.02, 0.3, 0.6, 0.9, 1.0], dtype=torch.float64)
    x_t = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x_t = schedule.alpha(t)[:, None] * rows[:5] + schedule.sigma(t)[:, None] * x_t
    ours, theirs = Empirical(rows).denoiser(schedule)(x_t, t), narrow(rows).denoiser(schedule)(x_t, t)
    assert ours.x0_variance is not None
    assert theirs.x0_variance is not None
    torch.testing.assert_close(ours.x0, theirs.x0, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(ours.eps, theirs.eps, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours.x0_variance, theirs.x0_variance, rtol=1e-6, atol=1e-8)
    density = narrow(rows).log_prob_at(x_t, t, schedule)
    torch.testing.assert_close(Empirical(rows).log_prob_at(x_t, t, schedule), density, rtol=1e-6, atol=1e-6)
    assert bool(torch.isfinite(ours.x0).all())


def test_by_hand(rows: Tensor) -> None:
    """Two points on a line: E[x_0 | x_t] = tanh(alpha x_t / sigma^2) for x_0 = -1 or 1."""
    schedule, t = schedules.rectified(), torch.tensor([0.5, 0.9, 1.0], dtype=torch.float64)
    x_t = torch.tensor([[0.3], [-1.0], [2.0]], dtype=torch.float64)
    p = Empirical(torch.tensor([[-1.0], [1.0]])).denoiser(schedule)(x_t, t)
    wanted = torch.tanh((1 - t[:, None]) * x_t / t[:, None] ** 2)
    torch.testing.assert_close(p.x0, wanted, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(p.x0_variance, 1 - wanted**2, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(p.eps, (x_t - (1 - t[:, None]) * wanted) / t[:, None], rtol=1e-12, atol=1e-15)


def test_score_is_the_gradient_of_log_prob_at(rows: Tensor) -> None:
    schedule, t = schedules.cosine(100), torch.tensor([0.2, 0.5, 0.99], dtype=torch.float64)
    x = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    gradient = torch.autograd.grad(Empirical(rows).log_prob_at(x, t, schedule).sum(), x)[0]
    eps = Empirical(rows).denoiser(schedule)(x.detach(), t).eps
    torch.testing.assert_close(-schedule.sigma(t)[:, None] * gradient, eps, rtol=1e-9, atol=1e-10)


def test_sampling_gives_rows_back(rows: Tensor) -> None:
    x_T = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for schedule in (schedules.cosine(100), schedules.rectified()):
        drawn = samplers.sample(Empirical(rows).denoiser(schedule), x_T, "ddim", steps=100)
        assert torch.cdist(drawn, rows).min(1).values.max() < 1e-6
        assert torch.cdist(drawn, rows).argmin(1).unique().numel() > 3


def test_shapes_dtypes_and_draws(rows: Tensor) -> None:
    images = rows.reshape(9, 1, 3, 1)
    schedule, t = schedules.linear(), torch.tensor([0.1, 0.4], dtype=torch.float64)
    x_t = torch.ones(2, 1, 3, 1)
    p, flat = Empirical(images).denoiser(schedule)(x_t, t), Empirical(rows).denoiser(schedule)(x_t.flatten(1), t)
    assert p.x0.shape == p.eps.shape == x_t.shape
    assert p.x0.dtype == torch.float32
    assert torch.equal(p.x0.flatten(1), flat.x0)
    drawn = Empirical(images).sample(500, seed=1)
    assert drawn.shape == (500, 1, 3, 1)
    assert torch.equal(drawn, Empirical(images).sample(500, seed=1))
    assert bool((drawn.flatten(1)[:, None] == rows).all(2).any(1).all())
    assert drawn.flatten(1).unique(dim=0).shape[0] == 9


def test_mistakes_are_answered(rows: Tensor) -> None:
    for bad in (torch.zeros(0, 3), torch.zeros(3), torch.tensor([[math.nan]])):
        with pytest.raises(ValueError, match=r"needs finite rows \(N, \.\.\.\)"):
            Empirical(bad)
    with pytest.raises(ValueError, match=r"no density at t = 0; ask log_prob_at"):
        Empirical(rows).log_prob(rows)
