"""bits/dim: for Gaussian data the bound is a quadratic of x_0 and eps, which a cubature integrates exactly."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato import schedules
from sfumato.denoiser import Cond, Denoiser, Prediction
from sfumato.likelihood import bits_per_dim, bound
from sfumato.schedules import Schedule
from sfumato.testbed import Empirical, GaussianMixture

MEAN = torch.tensor([0.4, -0.7], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 0.6]], dtype=torch.float64)
GAUSSIAN = GaussianMixture(torch.ones(1), MEAN[None], COVARIANCE[None])


def points(root: Tensor) -> Tensor:
    """+- sqrt(D) times the columns of a root of a covariance, (2 D, D): their mean and covariance are exact."""
    return math.sqrt(len(root)) * torch.cat([root.T, -root.T])


X = MEAN + points(torch.linalg.cholesky(COVARIANCE))
E = points(torch.eye(2, dtype=torch.float64))
PAIRS = list(product(range(4), range(4)))
X_0 = torch.stack([X[i] for i, _ in PAIRS])
EPS = torch.stack([E[j] for _, j in PAIRS])


def eps_at(rows: Tensor, steps: Tensor) -> Tensor:
    return EPS[rows]


@pytest.mark.parametrize("variance", ["small", "large", "optimal", "model"])
@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        (schedules.cosine(steps=12), 12),
        (schedules.linear(steps=200), 200),
        (schedules.rectified(), 30),
        (schedules.cosine(steps=1), 1),
    ],
    ids=["cosine-12", "linear-200", "rectified-30", "cosine-1"],
)
def test_the_bound_of_a_gaussian_is_its_closed_form(schedule: Schedule, steps: int, variance: str) -> None:
    """To 1e-6 bits a dimension (asked for): every term, and their sum."""
    found = bits_per_dim(
        GAUSSIAN.denoiser(schedule), X_0, bin_width=None, variance=variance, steps=steps, eps_at=eps_at, batch=1000
    )
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    row = "small" if variance == "model" else variance
    expected = GAUSSIAN.bound(schedule, times, row, nodes=1) / (2 * math.log(2))
    assert found.terms is not None
    np.testing.assert_allclose(found.prior, expected[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.terms.flip(0), expected[1:], rtol=0, atol=1e-9)
    assert found.total == pytest.approx(float(expected.sum()), abs=1e-6)
    assert found.decoder == pytest.approx(float(expected[-1]), abs=1e-9)
    assert found.rows.shape == (16,)
    assert found.total == pytest.approx(float(found.rows.mean()))


def test_the_bound_lies_above_the_entropy_and_comes_near_it() -> None:
    entropy = 0.5 * torch.logdet(2 * math.pi * math.e * COVARIANCE) / (2 * math.log(2))
    gaps = []
    for steps in (50, 200, 800):
        denoiser = GAUSSIAN.denoiser(schedules.cosine(steps=steps))
        found = bits_per_dim(denoiser, X_0, bin_width=None, variance="optimal", eps_at=eps_at)
        gaps.append(found.total - float(entropy))
    assert min(gaps) > 0
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.01


class LearnedVariance(Denoiser):
    """The exact denoiser of an axis-aligned Gaussian, which says that it learned the mix m(t) of each dimension."""

    def __init__(self, inner: Denoiser):
        self.inner, self.schedule = inner, inner.schedule

    @staticmethod
    def mix(t: Tensor) -> Tensor:
        return 0.5 + 0.5 * torch.sin(torch.stack([7 * t, 3 + 11 * t], 1))

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        return replace(self.inner(x_t, t), variance_mix=self.mix(t))


@pytest.mark.parametrize("steps", [2, 12, 60])
def test_the_bound_of_a_learned_variance_is_its_closed_form(steps: int) -> None:
    """Improved DDPM's log-interpolation, written out in alpha-bar: every term to 1e-9."""
    schedule = schedules.cosine(steps=steps)
    spread = torch.tensor([0.5, 0.06], dtype=torch.float64)
    data = GaussianMixture(torch.ones(1), MEAN[None], torch.diag(spread)[None])
    x_0 = torch.stack([(MEAN + points(torch.diag(spread.sqrt())))[i] for i, _ in PAIRS])
    denoiser = LearnedVariance(data.denoiser(schedule))
    found = bits_per_dim(denoiser, x_0, bin_width=None, eps_at=eps_at, variance="learned")
    assert bits_per_dim(denoiser, x_0, bin_width=None, eps_at=eps_at).total == found.total  # what "model" means

    abar = np.append(1.0, np.cumprod(1 - schedule.betas.numpy()))
    expected = np.zeros(steps)
    for i in range(1, steps + 1):
        now, before, beta = abar[i], abar[i - 1], 1 - abar[i] / abar[i - 1]
        tilde = (1 - before) / (1 - now) * beta
        clipped = tilde if i > 1 else (1 - abar[1]) / (1 - abar[2]) * (1 - abar[2] / abar[1])
        m = LearnedVariance.mix(torch.tensor([i / steps], dtype=torch.float64))[0].numpy()
        variance = np.exp(m * np.log(beta) + (1 - m) * np.log(clipped))
        unknown = (1 - now) * spread.numpy() / (now * spread.numpy() + 1 - now)  # Var[x_0 | x_t]
        error = before * beta**2 / (1 - now) ** 2 * unknown
        if i == 1:
            nats = 0.5 * (np.log(2 * np.pi * variance) + error / variance)
        else:
            nats = 0.5 * (tilde / variance - 1 - np.log(tilde / variance) + error / variance)
        expected[i - 1] = nats.sum() / (2 * math.log(2))
    assert found.terms is not None
    np.testing.assert_allclose(found.terms, expected, rtol=0, atol=1e-9)
    assert found.total == pytest.approx(found.prior + expected.sum(), abs=1e-9)


@pytest.mark.parametrize("variance", ["small", "optimal"])
def test_the_bound_of_a_mixture_lies_above_its_truth_by_the_gap(mixture_2d: GaussianMixture, variance: str) -> None:
    """E[bound] - E[-log p] is the gap, both by quadrature; rows drawn from the mixture meet it within their error."""
    schedule = schedules.cosine(steps=8)
    truth = -_expected_log_prob(mixture_2d, 48) / (2 * math.log(2))
    assert truth == pytest.approx(-_expected_log_prob(mixture_2d, 64) / (2 * math.log(2)), abs=1e-4)
    times = torch.linspace(1, 0, 9, dtype=torch.float64)
    gap = float(mixture_2d.bound(schedule, times, variance).sum()) / (2 * math.log(2)) - truth
    x_0 = mixture_2d.sample(4000, seed=2)
    found = bits_per_dim(mixture_2d.denoiser(schedule), x_0, bin_width=None, variance=variance, batch=20_000)
    above = found.rows + mixture_2d.log_prob(x_0) / (2 * math.log(2))
    error = float(above.std()) / math.sqrt(len(x_0))
    print(f"{variance}: truth {truth:.4f}, proven gap {gap:.4f}, found {float(above.mean()):.4f} +- {error:.4f}")
    assert gap > 0
    assert error < 0.2 * gap
    assert abs(float(above.mean()) - gap) < 4 * error


def _expected_log_prob(mixture: GaussianMixture, nodes: int) -> float:
    """E[log p(x_0)], nats, by Gauss-Hermite quadrature in each component."""
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    grid = torch.from_numpy(np.stack(np.meshgrid(z, z), -1).reshape(-1, 2))
    mass = torch.from_numpy(np.outer(w, w).reshape(-1) / w.sum() ** 2)
    total = 0.0
    for weight, mean, covariance in zip(mixture.weights, mixture.means, mixture.covariances, strict=True):
        total += float(weight * (mass * mixture.log_prob(mean + grid @ torch.linalg.cholesky(covariance).T)).sum())
    return total


@pytest.mark.slow
def test_levels_cost_at_least_what_they_must_and_hardly_more() -> None:
    """All 17 grey levels of one pixel, known exactly: nothing beats the uniform guess, log2 17 = 4.087 bits."""
    levels = torch.linspace(-1, 1, 17, dtype=torch.float64)[:, None]
    denoiser = Empirical(levels).denoiser(schedules.cosine(steps=300))
    generator = torch.Generator().manual_seed(0)

    def drawn(rows: Tensor, steps: Tensor) -> Tensor:
        return torch.randn(len(rows), 1, generator=generator, dtype=torch.float64)

    x_0 = levels.repeat(16, 1)
    found = bits_per_dim(denoiser, x_0, bin_width=2 / 16, variance="optimal", batch=20_000, eps_at=drawn)
    assert found.total - math.log2(17) == pytest.approx(0, abs=max(0.15, 4 * found.standard_error))
    assert found.total > math.log2(17) - 4 * found.standard_error
    assert found.standard_error < 0.1


def test_a_denoiser_that_knows_the_answer_pays_for_the_prior_alone() -> None:
    """x_0 known: every KL is 0, the decoder is sure of its bin, and what remains is L_T."""
    schedule = schedules.cosine(steps=1000)
    x_0 = torch.linspace(-1, 1, 17).repeat(4).reshape(4, 17)

    class Oracle(Denoiser):
        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
            assert cond is not None
            return Prediction(cond["x_0"], cond["x_0"])

    found = bits_per_dim(Oracle(), x_0, bin_width=2 / 16, cond={"x_0": x_0})
    assert found.terms is not None
    assert float(found.terms[1:].abs().max()) < 1e-6
    assert found.total == pytest.approx(found.prior + found.decoder, abs=1e-9)
    assert 0 <= found.decoder < 1e-3  # sigma of the first step is far below half a bin


@pytest.mark.parametrize("draws", [1, 3, 7])
def test_drawn_steps_estimate_the_sum_of_all(draws: int) -> None:
    """The same row 4,000 times: the mean over its draws is the full sum, within its own standard error."""
    schedule = schedules.cosine(steps=20)
    denoiser = GAUSSIAN.denoiser(schedule)

    def fixed(rows: Tensor, steps: Tensor) -> Tensor:
        return torch.stack([torch.sin(steps.double()), torch.cos(3 * steps.double())], 1)

    everything = bits_per_dim(denoiser, X_0[:1], bin_width=None, eps_at=fixed)
    drawn = bits_per_dim(denoiser, X_0[:1].repeat(4000, 1), bin_width=None, eps_at=fixed, draws=draws, batch=50_000)
    assert math.isnan(everything.standard_error)
    assert drawn.terms is None
    assert abs(drawn.total - everything.total) < 4 * drawn.standard_error
    assert drawn.standard_error < 0.1 * abs(everything.total)
    assert drawn.prior == pytest.approx(everything.prior, abs=1e-12)
    assert drawn.decoder == pytest.approx(everything.decoder, abs=1e-12)


@pytest.mark.parametrize(("steps", "draws"), [(20, 4), (20, 19), (1000, 40), (3, 1), (12, 7)])
def test_each_step_is_drawn_as_often_as_its_weight_says(steps: int, draws: int) -> None:
    """weight x expected visits of every step 2..T is 1: then the estimate has no bias, whatever the terms are."""
    n = 3000
    visited, weights = np.zeros(steps + 1), np.zeros(steps + 1)
    for _, i, weight in bound._visits(n, steps, draws, seed=1, batch=10**6):
        visited += np.bincount(i.numpy(), minlength=steps + 1)
        weights[i.numpy()] = weight.numpy()
    assert visited[0] == 0
    assert visited[1] == n
    assert visited.sum() == n * (1 + draws)
    share = weights[2:] * visited[2:] / n
    assert (np.abs(share - 1) < 5 * np.sqrt(weights[2:] / n)).all()


def test_standard_error_is_the_spread_of_the_estimate() -> None:
    denoiser = GAUSSIAN.denoiser(schedules.cosine(steps=20))
    x_0 = GAUSSIAN.sample(400, seed=3)
    one = bits_per_dim(denoiser, x_0, bin_width=None, draws=2)
    assert one.standard_error == pytest.approx(float(one.rows.std()) / 20, rel=1e-12)
    totals = [
        bits_per_dim(denoiser, GAUSSIAN.sample(400, seed), bin_width=None, draws=2, seed=seed).total
        for seed in range(10, 30)
    ]
    assert np.std(totals) == pytest.approx(one.standard_error, rel=0.5)


def test_the_estimate_depends_on_the_seed_and_not_on_the_batch() -> None:
    denoiser = GAUSSIAN.denoiser(schedules.cosine(steps=20))
    x_0 = GAUSSIAN.sample(30, seed=3)
    one, two = (bits_per_dim(denoiser, x_0, bin_width=None, draws=5, batch=batch) for batch in (7, 1000))
    torch.testing.assert_close(one.rows, two.rows, rtol=1e-10, atol=0)
    assert bits_per_dim(denoiser, x_0, bin_width=None, draws=5, seed=1).total != one.total


def test_mistakes() -> None:
    denoiser = GAUSSIAN.denoiser(schedules.cosine(steps=20))
    with pytest.raises(ValueError, match=r"unknown variance 'smal'; did you mean 'small'"):
        bits_per_dim(denoiser, X_0, bin_width=None, variance="smal")
    with pytest.raises(ValueError, match="draws must be at least 1"):
        bits_per_dim(denoiser, X_0, bin_width=None, draws=0)
    with pytest.raises(ValueError, match="steps must be a whole number"):
        bits_per_dim(GAUSSIAN.denoiser(schedules.rectified()), X_0, bin_width=None, steps=0)
    with pytest.raises(ValueError, match="at least one row"):
        bits_per_dim(denoiser, X_0[:0], bin_width=None)
