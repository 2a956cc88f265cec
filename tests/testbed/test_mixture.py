"""The exact denoiser of a mixture against numerical integration, autograd and torch.distributions."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from sfumato import gaussian, grids, schedules
from sfumato.schedules import Schedule
from sfumato.testbed import GaussianMixture
from sfumato.variances import VARIANCES

TIMES = [0.02, 0.3, 0.8, 1.0]


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def as_torch(mixture: GaussianMixture, alpha: float, sigma: float) -> MixtureSameFamily:
    eye = torch.eye(mixture.dimension, dtype=torch.float64)
    parts = MultivariateNormal(alpha * mixture.means, alpha**2 * mixture.covariances + sigma**2 * eye)
    return MixtureSameFamily(Categorical(mixture.weights), parts)


def points(dimension: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(6, dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_log_prob_is_torchs(schedule: Schedule, mixture_2d: GaussianMixture) -> None:
    x = points(2)
    torch.testing.assert_close(mixture_2d.log_prob(x), as_torch(mixture_2d, 1, 0).log_prob(x), rtol=1e-10, atol=1e-10)
    for t in TIMES:
        time = double(t).expand(6)
        alpha, sigma = schedule.alpha(time)[0].item(), schedule.sigma(time)[0].item()
        x_t = points(2, 1 + sigma)
        wanted = as_torch(mixture_2d, alpha, sigma).log_prob(x_t)
        torch.testing.assert_close(mixture_2d.log_prob_at(x_t, time, schedule), wanted, rtol=1e-10, atol=1e-10)


def test_score_is_the_gradient_of_log_prob(schedule: Schedule, mixture_2d: GaussianMixture) -> None:
    for t in TIMES:
        time = double(t).expand(6)
        x = points(2, 1 + schedule.sigma(time)[0].item()).requires_grad_()
        wanted = torch.autograd.grad(mixture_2d.log_prob_at(x, time, schedule).sum(), x)[0]
        torch.testing.assert_close(mixture_2d.score(x.detach(), time, schedule), wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
@pytest.mark.parametrize("x_t", [-1.3, 0.1, 2.0])
def test_mean_and_variance_by_quadrature_on_a_line(mixture_1d: GaussianMixture, t: float, x_t: float) -> None:
    schedule = schedules.cosine(1000)
    alpha, sigma = schedule.alpha(double(t)).item(), schedule.sigma(double(t)).item()
    weights, means = mixture_1d.weights.tolist(), mixture_1d.means.flatten().tolist()
    stds = mixture_1d.covariances.flatten().sqrt().tolist()

    def joint(x: float) -> float:
        data = sum(w * stats.norm.pdf(x, m, s) for w, m, s in zip(weights, means, stds, strict=True))
        return data * math.exp(-0.5 * ((x_t - alpha * x) / sigma) ** 2 + 0.5 * (reference / sigma) ** 2)

    grid = np.linspace(-3, 3, 6001)
    reference = float(np.abs(x_t - alpha * grid).min())
    peak = x_t / alpha if abs(x_t / alpha) < 3 else math.copysign(3, x_t)
    moments = [
        quad(lambda x, k=k: x**k * joint(x), -3, 3, points=[peak, *means], limit=400, epsabs=0, epsrel=1e-11)[0]
        for k in range(3)
    ]
    p = mixture_1d.denoiser(schedule)(double(x_t)[None], double(t))
    assert p.x0_variance is not None
    mean = moments[1] / moments[0]
    assert p.x0.item() == pytest.approx(mean, rel=1e-7, abs=1e-9)
    assert p.x0_variance.item() == pytest.approx(moments[2] / moments[0] - mean**2, rel=1e-5, abs=1e-9)
    assert p.eps.item() == pytest.approx((x_t - alpha * mean) / sigma, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", ["linear", "rectified", "edm"])
@pytest.mark.parametrize("t", [0.05, 0.5, 1.0])
def test_mean_and_covariance_by_a_sum_over_the_plane(mixture_2d: GaussianMixture, name: str, t: float) -> None:
    """The posterior p(x_0 | x_t) on a fine grid; the trapezoid rule is spectrally exact for what dies at its edges."""
    schedule = schedules.from_spec(name)
    alpha, sigma = schedule.alpha(double(t)).item(), schedule.sigma(double(t)).item()
    axis = torch.linspace(-14, 14, 701, dtype=torch.float64)
    plane = torch.cartesian_prod(axis, axis)
    x_t = double(0.7, -0.4) * (1 + sigma)
    log_p = as_torch(mixture_2d, 1, 0).log_prob(plane) - 0.5 * ((x_t - alpha * plane) / sigma).square().sum(1)
    r = log_p.softmax(0)
    mean = r @ plane
    covariance = torch.einsum("n,ni,nj->ij", r, plane - mean, plane - mean)
    got_mean, got_covariance = mixture_2d.posterior(x_t[None], double(t), schedule)
    torch.testing.assert_close(got_mean[0], mean, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(got_covariance[0], covariance, rtol=1e-6, atol=1e-8)
    p = mixture_2d.denoiser(schedule)(x_t[None], double(t))
    assert p.x0_variance is not None
    torch.testing.assert_close(p.x0[0], mean, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(p.x0_variance[0], covariance.diagonal(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(alpha * p.x0[0] + sigma * p.eps[0], x_t, rtol=1e-12, atol=1e-12)


def test_samples_have_the_mixtures_moments(mixture_2d: GaussianMixture) -> None:
    x = mixture_2d.sample(20_000, seed=4).numpy()
    assert np.array_equal(x, mixture_2d.sample(20_000, seed=4).numpy())
    assert not np.array_equal(x, mixture_2d.sample(20_000, seed=5).numpy())
    w, m, c = (a.numpy() for a in (mixture_2d.weights, mixture_2d.means, mixture_2d.covariances))
    for axis in range(2):
        p = stats.kstest(
            x[:, axis], lambda y, a=axis: (w * stats.norm.cdf((y[:, None] - m[:, a]) / np.sqrt(c[:, a, a]))).sum(1)
        ).pvalue
        assert p > 1e-4
    product = x[:, 0] * x[:, 1]
    exact = (w * (c[:, 0, 1] + m[:, 0] * m[:, 1])).sum()
    assert abs(product.mean() - exact) < 4 * product.std() / np.sqrt(len(x))


@pytest.mark.parametrize("variance", ["small", "large", "optimal"])
@pytest.mark.parametrize(("spec", "steps"), [("linear:steps=60", 60), ("cosine:steps=40", 9), ("sigmoid", 1)])
def test_bound_of_one_gaussian_in_closed_form(
    spec: str, steps: int, variance: str, gaussian_2d: GaussianMixture
) -> None:
    """L_T + sum KL + L_0 written out in numpy from alpha-bar: E|mean error|^2 is the trace of Cov[x_0 | x_t]."""
    schedule = schedules.from_spec(spec)
    assert isinstance(schedule, schedules.Discrete)
    times = grids.trailing(schedule, steps)
    cumulative = np.cumprod(np.append(1.0, 1 - schedule.betas.numpy()))
    abars = [float(cumulative[round(t * len(schedule.betas))]) for t in times.tolist()]
    mu, S = gaussian_2d.means[0].numpy(), gaussian_2d.covariances[0].numpy()
    second = mu**2 + np.diag(S)
    wanted = [0.5 * (1 - abars[0] + abars[0] * second - 1 - np.log(1 - abars[0])).sum()]
    for now, before in pairwise(abars):
        beta = 1 - now / before
        tilde = (1 - before) / (1 - now) * beta
        c_0 = np.sqrt(before) * beta / (1 - now)
        unknown = np.diag(S - now * S @ np.linalg.inv(now * S + (1 - now) * np.eye(2)) @ S)
        if variance == "small" and before == 1:  # as Improved DDPM clips it: that of the step 2t -> t
            above = float(cumulative[2 * round(times[-2].item() * len(schedule.betas))]) if steps > 1 else None
            value = beta if above is None else (1 - now) / (1 - above) * (1 - above / now)
        else:
            value = {"small": tilde, "large": beta, "optimal": tilde + c_0**2 * unknown}[variance]
        value = value * np.ones(2)
        if before == 1:
            wanted.append(0.5 * (np.log(2 * np.pi * value) + unknown / value).sum())
        else:
            wanted.append(0.5 * (tilde / value - 1 - np.log(tilde / value) + c_0**2 * unknown / value).sum())
    for nodes in (1, 5):
        ours = gaussian_2d.bound(schedule, times, variance=variance, nodes=nodes)
        np.testing.assert_allclose(ours.numpy(), wanted, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("variance", ["small", "large", "optimal"])
def test_bound_of_a_mixture_against_monte_carlo(variance: str, mixture_2d: GaussianMixture) -> None:
    """Each term as the training loss would estimate it: draw x_0 and eps, and take gaussian.bound_term."""
    schedule = schedules.cosine(20)
    times = grids.trailing(schedule, 7)
    exact = mixture_2d.bound(schedule, times, variance=variance)
    n = 10_000
    x_0 = mixture_2d.sample(n, seed=1)
    eps = torch.randn(x_0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    denoiser = mixture_2d.denoiser(schedule)
    prior = gaussian.prior_term(schedule, x_0).sum(1)
    estimates = [prior]
    for t, s in grids.pairs(times):
        t, s = t.expand(n), s.expand(n)
        x_t = gaussian.perturb(schedule, x_0, t, eps)
        p = denoiser(x_t, t)
        log_variance = VARIANCES[variance](schedule, t, s, p)
        estimates.append(gaussian.bound_term(schedule, x_0, x_t, t, s, p.x0, log_variance, None).sum(1))
    for ours, estimate in zip(exact, estimates, strict=True):
        error = 4.5 * estimate.std() / math.sqrt(n) + 1e-9
        assert abs(ours - estimate.mean()) < error


def test_the_quadrature_has_converged(mixture_2d: GaussianMixture) -> None:
    schedule = schedules.linear(50)
    times = grids.trailing(schedule, 6)
    fine = mixture_2d.bound(schedule, times, nodes=64).sum()
    assert abs(mixture_2d.bound(schedule, times, nodes=32).sum() - fine) < 1e-3 * fine.abs()


@pytest.mark.parametrize("variance", ["small", "large", "optimal"])
def test_the_bound_lies_above_the_entropy(variance: str, mixture_1d: GaussianMixture) -> None:
    """-E log p(x_0) by quadrature; the optimal variance on many steps comes near it, and below nothing does."""
    density = as_torch(mixture_1d, 1, 0)
    x = torch.linspace(-4, 4, 20_001, dtype=torch.float64)
    log_p = mixture_1d.log_prob(x[:, None])
    torch.testing.assert_close(log_p, density.log_prob(x[:, None]))
    entropy = -torch.trapezoid(log_p.exp() * log_p, x).item()
    gaps = [
        mixture_1d.bound(schedules.cosine(n), grids.trailing(schedules.cosine(n), n), variance).sum().item() - entropy
        for n in (5, 20, 80)
    ]
    assert all(gap > 0 for gap in gaps)
    if variance == "optimal":
        assert gaps[0] > gaps[1] > gaps[2]
        assert gaps[2] < 0.05


def test_shapes_and_dtypes(mixture_2d: GaussianMixture) -> None:
    schedule = schedules.rectified()
    x, t = points(2), double(*([0.5] * 6))
    flat = mixture_2d.denoiser(schedule)(x, t)
    image = mixture_2d.denoiser(schedule, (1, 2, 1))(x.reshape(6, 1, 2, 1), t)
    for name in ("x0", "eps", "x0_variance"):
        assert getattr(image, name).shape == (6, 1, 2, 1)
        assert torch.equal(getattr(image, name).reshape(6, 2), getattr(flat, name))
    single = mixture_2d.denoiser(schedule)(x.float(), t.float())
    assert single.x0.dtype == single.eps.dtype == torch.float32
    torch.testing.assert_close(single.x0.double(), flat.x0, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"x_t must be \(B, 2\); got \(6, 3\)"):
        mixture_2d.denoiser(schedule)(torch.zeros(6, 3), t)
    with pytest.raises(ValueError, match="has 3 values, the mixture 2"):
        mixture_2d.denoiser(schedule, (3,))


def test_each_row_has_its_own_time(schedule: Schedule, mixture_2d: GaussianMixture) -> None:
    x, t = points(2), double(0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    together = mixture_2d.denoiser(schedule)(x, t)
    for b in range(6):
        alone = mixture_2d.denoiser(schedule)(x[b : b + 1], t[b : b + 1])
        torch.testing.assert_close(alone.x0[0], together.x0[b], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(alone.eps[0], together.eps[b], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("weights", "means", "covariances", "words"),
    [
        ([0.5, 0.5], [[0.0, 0.0]], [[[1.0, 0.0], [0.0, 1.0]]], r"a mixture needs.*got \(2,\), \(1, 2\), \(1, 2, 2\)"),
        ([-1.0], [[0.0]], [[[1.0]]], "positive weights"),
        ([math.nan], [[0.0]], [[[1.0]]], "positive weights"),
        ([1.0], [[0.0, 0.0]], [[[1.0]]], "a mixture needs"),
        ([1.0], [0.0], [[[1.0]]], "a mixture needs"),
        ([1.0], [[0.0]], [[[-1.0]]], "eigenvalues >= 0"),
        ([1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.0, 1.0]]], "symmetric"),
    ],
)
def test_mistakes_are_answered(weights: list, means: list, covariances: list, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GaussianMixture(torch.tensor(weights), torch.tensor(means), torch.tensor(covariances))
