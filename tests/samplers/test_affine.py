"""For Gaussian data every sampler is an affine map of (x_T, z_1, z_2, ...): it is taken apart exactly.

A batch whose rows are the basis vectors, sent through x_T and through the noise, gives the map's matrices, and so the
mean and covariance of what it makes.  They are compared with recursions written here in numpy from the papers'
formulas in alpha-bar alone.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato import grids, samplers, schedules
from sfumato.samplers.loop import named, walk
from sfumato.schedules import Schedule
from sfumato.testbed import GaussianMixture

MEAN = np.array([0.6, -0.4])
COVARIANCE = np.array([[0.8, 0.35], [0.35, 0.3]])
AXIS_ALIGNED = np.diag([0.8, 0.05])
I = np.eye(2)

Moments = tuple[np.ndarray, np.ndarray]


def states(sampler: str, schedule: Schedule, times: Tensor, covariance: np.ndarray, start: Moments) -> list[Moments]:
    """Mean and covariance of every state, from x_T ~ N(*start) and standard normal noise, by the basis vectors."""
    data = GaussianMixture(torch.ones(1), torch.tensor(MEAN)[None], torch.tensor(covariance)[None])
    steps = len(times) - 1
    rows = 1 + 2 + 2 * steps  # nothing, x_T = e_j, noise of step k = e_j
    x_T = torch.zeros(rows, 2, dtype=torch.float64)
    x_T[[1, 2], [0, 1]] = 1

    def noise(k: int) -> Tensor:
        z = torch.zeros(rows, 2, dtype=torch.float64)
        z[[3 + 2 * k, 4 + 2 * k], [0, 1]] = 1
        return z

    moments = []
    for _, x, _ in walk(data.denoiser(schedule), x_T, named(sampler, samplers.SAMPLERS), times, noise):
        offset, parts = x[0].numpy(), (x[1:] - x[0]).numpy()
        to_start, to_noise = parts[:2].T, parts[2:].T
        mean = offset + to_start @ start[0]
        moments.append((mean, to_start @ start[1] @ to_start.T + to_noise @ to_noise.T))
    return moments


def eps_of(abar: float, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E[eps | x] = K x + k for x = sqrt(abar) x_0 + sqrt(1 - abar) eps."""
    K = np.sqrt(1 - abar) * np.linalg.inv(abar * covariance + (1 - abar) * I)
    return K, -K @ (np.sqrt(abar) * MEAN)


def ddpm(abars: list[float], covariance: np.ndarray, variance: str, start: Moments) -> list[Moments]:
    """Algorithm 2 of arXiv:2006.11239 on the chain of these alpha-bars, from abars[0] = abar_T to abars[-1] = 1."""
    mean, cov = start
    out = [start]
    for now, before in pairwise(abars):
        beta = 1 - now / before
        K, k = eps_of(now, covariance)
        A = (I - beta / np.sqrt(1 - now) * K) / np.sqrt(1 - beta)
        b = -beta / np.sqrt(1 - now) * k / np.sqrt(1 - beta)
        tilde = (1 - before) / (1 - now) * beta
        within = covariance - now * covariance @ np.linalg.inv(now * covariance + (1 - now) * I) @ covariance
        optimal = tilde + before * beta**2 / (1 - now) ** 2 * np.diag(within)
        added = {"small": tilde * I, "large": beta * I, "optimal": np.diag(optimal)}[variance]
        mean, cov = A @ mean + b, A @ cov @ A.T + (added if before < 1 else 0)
        out.append((mean, cov))
    return out


def ddim(abars: list[float], covariance: np.ndarray, eta: float, hat: bool, start: Moments) -> list[Moments]:
    """Eqs. (12) and (16) of arXiv:2010.02502; hat adds noise of sigma-hat in place of sigma."""
    mean, cov = start
    out = [start]
    for now, before in pairwise(abars):
        K, k = eps_of(now, covariance)
        sigma = eta * np.sqrt((1 - before) / (1 - now)) * np.sqrt(1 - now / before)
        direction = np.sqrt(1 - before - sigma**2)
        scale = np.sqrt(before / now)
        A = scale * (I - np.sqrt(1 - now) * K) + direction * K
        b = (direction - scale * np.sqrt(1 - now)) * k
        added = np.sqrt(1 - now / before) if hat else sigma
        mean, cov = A @ mean + b, A @ cov @ A.T + (added**2 * I if before < 1 else 0)
        out.append((mean, cov))
    return out


def compare(ours: list[Moments], truth: list[Moments]) -> None:
    assert len(ours) == len(truth)
    for (mean, cov), (true_mean, true_cov) in zip(ours, truth, strict=True):
        np.testing.assert_allclose(mean, true_mean, rtol=0, atol=1e-8)
        np.testing.assert_allclose(cov, true_cov, rtol=0, atol=1e-8)


CHAINS = [
    ("linear:steps=60", "trailing", 60),
    ("linear:steps=60", "trailing", 7),
    ("linear:steps=60", "quadratic", 20),
    ("cosine:steps=30", "uniform", 30),
    ("cosine:steps=30", "uniform", 11),
    ("sigmoid:steps=100", "trailing", 1),
]
PRIOR = (np.zeros(2), I)


def chain(spec: str, grid: str, steps: int) -> tuple[schedules.Discrete, Tensor, list[float]]:
    """The schedule, its visited times, and the alpha-bars of those times as a product of its betas."""
    schedule = schedules.from_spec(spec)
    assert isinstance(schedule, schedules.Discrete)
    times = grids.GRIDS[grid](schedule, steps)
    cumulative = np.cumprod(np.append(1.0, 1 - schedule.betas.numpy()))
    return schedule, times, [float(cumulative[round(t * len(schedule.betas))]) for t in times.tolist()]


@pytest.mark.parametrize("variance", ["small", "large", "optimal"])
@pytest.mark.parametrize(("spec", "grid", "steps"), CHAINS)
def test_ancestral_is_ddpm(spec: str, grid: str, steps: int, variance: str) -> None:
    schedule, times, abars = chain(spec, grid, steps)
    ours = states(f"ancestral:variance={variance}", schedule, times, COVARIANCE, PRIOR)
    compare(ours, ddpm(abars, COVARIANCE, variance, PRIOR))


@pytest.mark.parametrize("eta", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize(("spec", "grid", "steps"), CHAINS)
def test_ddim_is_ddim(spec: str, grid: str, steps: int, eta: float) -> None:
    schedule, times, abars = chain(spec, grid, steps)
    ours = states(f"ddim:eta={eta}", schedule, times, COVARIANCE, PRIOR)
    compare(ours, ddim(abars, COVARIANCE, eta, False, PRIOR))


@pytest.mark.parametrize(("spec", "grid", "steps"), CHAINS)
def test_sigma_hat(spec: str, grid: str, steps: int) -> None:
    schedule, times, abars = chain(spec, grid, steps)
    compare(states("ddim-sigma-hat", schedule, times, COVARIANCE, PRIOR), ddim(abars, COVARIANCE, 1.0, True, PRIOR))


@pytest.mark.parametrize(("spec", "grid", "steps"), CHAINS)
def test_ddim_at_eta_one_is_ancestral_with_the_small_variance(spec: str, grid: str, steps: int) -> None:
    schedule, times, _ = chain(spec, grid, steps)
    ancestral = states("ancestral:variance=small", schedule, times, COVARIANCE, PRIOR)
    compare(states("ddim:eta=1", schedule, times, COVARIANCE, PRIOR), ancestral)


@pytest.mark.parametrize("steps", [1, 2, 5, 30])
@pytest.mark.parametrize("name", ["cosine:steps=30", "linear_continuous", "cosine_continuous", "rectified", "edm"])
def test_optimal_variance_is_exact_on_axis_aligned_gaussians(name: str, steps: int) -> None:
    """From the exact p(x_1), every state on the way has exactly the marginal p(x_s), in any number of steps.

    The last step adds no noise: it gives the mean of x_0 given the state above, whose covariance is the data's less
    what that mean does not know.
    """
    schedule = schedules.from_spec(name)
    times = grids.trailing(schedule, steps)
    marginals = []
    for alpha, sigma in zip(schedule.alpha(times).tolist(), schedule.sigma(times).tolist(), strict=True):
        marginals.append((alpha * MEAN, alpha**2 * AXIS_ALIGNED + sigma**2 * I))
    ours = states("ancestral:variance=optimal", schedule, times, AXIS_ALIGNED, marginals[0])
    scale = schedule.prior_std**2
    for (mean, cov), (true_mean, true_cov) in zip(ours[:-1], marginals[:-1], strict=True):
        np.testing.assert_allclose(mean, true_mean, rtol=0, atol=1e-9 * scale)
        np.testing.assert_allclose(cov, true_cov, rtol=0, atol=1e-9 * scale)
    alpha, sigma = schedule.alpha(times[-2]).item(), schedule.sigma(times[-2]).item()
    unknown = sigma**2 * AXIS_ALIGNED @ np.linalg.inv(alpha**2 * AXIS_ALIGNED + sigma**2 * I)
    np.testing.assert_allclose(ours[-1][0], MEAN, rtol=0, atol=1e-9 * scale)
    np.testing.assert_allclose(ours[-1][1] + unknown, AXIS_ALIGNED, rtol=0, atol=1e-9 * scale)


@pytest.mark.parametrize("name", ["linear_continuous", "rectified", "edm"])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ancestral_for_any_alpha_and_sigma(name: str, variance: str) -> None:
    """Where alpha^2 + sigma^2 is not 1: the mean and covariance of q(x_s | x_t, E[x_0 | x_t]), by Bayes' rule."""
    schedule = schedules.from_spec(name)
    times = torch.tensor([0.9, 0.6, 0.55, 0.2, 0.0], dtype=torch.float64)
    alphas, sigmas = schedule.alpha(times).numpy(), schedule.sigma(times).numpy()
    start = (alphas[0] * MEAN, alphas[0] ** 2 * COVARIANCE + sigmas[0] ** 2 * I)
    mean, cov = start
    truth = [start]
    for k in range(4):
        (alpha, a_s), (sigma, s_s) = alphas[k : k + 2], sigmas[k : k + 2]
        gain = alpha * COVARIANCE @ np.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * I)
        a = alpha / a_s
        v = sigma**2 - a**2 * s_s**2
        c_t, c_0, small = a * s_s**2 / sigma**2, a_s * v / sigma**2, v * s_s**2 / sigma**2
        A = c_t * I + c_0 * gain
        b = c_0 * (MEAN - gain @ MEAN * alpha)
        added = 0.0 if k == 3 else {"small": small, "large": v}[variance]
        mean, cov = A @ mean + b, A @ cov @ A.T + added * I
        truth.append((mean, cov))
    ours = states(f"ancestral:variance={variance}", schedule, times, COVARIANCE, start)
    for (m, c), (n, d) in zip(ours, truth, strict=True):
        np.testing.assert_allclose(m, n, rtol=1e-9, atol=1e-8)
        np.testing.assert_allclose(c, d, rtol=1e-9, atol=1e-8)
