"""DDIM without noise tends to the exact probability-flow map, at the order its row declares."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from sfumato import samplers, schedules
from sfumato.samplers import SAMPLERS
from sfumato.testbed import GaussianMixture

# schedule -> alpha, alpha', sigma^2, (sigma^2)' in closed form, and the step counts where the order shows
_b = 0.008 / 1.008 * np.pi / 2
_q = np.pi / 2 / 1.008
Forms = tuple[Callable[[float], float], ...]
CLOSED: dict[str, tuple[Forms, list[int]]] = {
    "linear_continuous": (
        (
            lambda t: np.exp(-(0.1 * t + 9.95 * t * t) / 2),
            lambda t: -(0.1 + 19.9 * t) / 2 * np.exp(-(0.1 * t + 9.95 * t * t) / 2),
            lambda t: -np.expm1(-(0.1 * t + 9.95 * t * t)),
            lambda t: (0.1 + 19.9 * t) * np.exp(-(0.1 * t + 9.95 * t * t)),
        ),
        [32, 64, 128, 256],
    ),
    "cosine_continuous": (
        (
            lambda t: np.cos(t * _q + _b) / np.cos(_b),
            lambda t: -_q * np.sin(t * _q + _b) / np.cos(_b),
            lambda t: 1 - np.cos(t * _q + _b) ** 2 / np.cos(_b) ** 2,
            lambda t: _q * np.sin(2 * (t * _q + _b)) / np.cos(_b) ** 2,
        ),
        [32, 64, 128, 256],
    ),
    "rectified": ((lambda t: 1 - t, lambda t: -1.0, lambda t: t * t, lambda t: 2 * t), [32, 64, 128, 256]),
    "edm:sigma_max=5": ((lambda t: 1.0, lambda t: 0.0, lambda t: 25 * t * t, lambda t: 50 * t), [32, 64, 128, 256]),
}


def declared(errors: list[float], steps: list[int]) -> float:
    """The fitted order: minus the slope of log error over log steps."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def errors_of(sampler: str, name: str, data: GaussianMixture, x_1: Tensor, truth: Tensor) -> float:
    schedule, steps = schedules.from_spec(name), CLOSED[name][1]
    denoiser = data.denoiser(schedule)
    errors = [(samplers.sample(denoiser, x_1, sampler, steps=s) - truth).norm().item() for s in steps]
    assert errors[-1] < 0.05
    return declared(errors, steps)


def start(name: str) -> Tensor:
    x = torch.tensor([[0.3, -1.1], [1.7, 0.4], [-0.8, -0.6], [0.1, 2.0]], dtype=torch.float64)
    return x * schedules.from_spec(name).prior_std


@pytest.mark.parametrize("name", sorted(CLOSED))
def test_gaussian(name: str, gaussian_2d: GaussianMixture) -> None:
    """x_0 = mu + S^(1/2) (alpha^2 S + sigma^2)^(-1/2) (x_1 - alpha mu), the flow that keeps each whitened point."""
    (alpha, _, variance, _), _ = CLOSED[name]
    mean, covariance = gaussian_2d.means[0].numpy(), gaussian_2d.covariances[0].numpy()
    values, axes = np.linalg.eigh(covariance)
    root = axes @ np.diag(np.sqrt(values / (alpha(1.0) ** 2 * values + variance(1.0)))) @ axes.T
    x_1 = start(name)
    truth = mean + (x_1.numpy() - alpha(1.0) * mean) @ root
    order = errors_of("ddim", name, gaussian_2d, x_1, torch.from_numpy(truth))
    assert 0.9 <= order <= 1.3
    assert SAMPLERS["ddim"].order == 1


@pytest.mark.parametrize("name", sorted(CLOSED))
def test_mixture(name: str, mixture_2d: GaussianMixture) -> None:
    """dx/dt = alpha' E[x_0 | x] + (sigma^2)'/2 E[C_k^-1 (x - alpha mu_k) | x], integrated to 1e-10 by scipy."""
    (alpha, dalpha, variance, dvariance), _ = CLOSED[name]
    weights, means, covariances = (a.numpy() for a in (mixture_2d.weights, mixture_2d.means, mixture_2d.covariances))

    def velocity(t: float, x: np.ndarray) -> np.ndarray:
        a, C = alpha(t), alpha(t) ** 2 * covariances + variance(t) * np.eye(2)
        inverse = np.linalg.inv(C)
        off = x - a * means
        solved = np.einsum("kij,kj->ki", inverse, off)
        log_r = np.log(weights) - 0.5 * (np.einsum("ki,ki->k", off, solved) + np.log(np.linalg.det(C)))
        r = np.exp(log_r - log_r.max())
        r /= r.sum()
        x0 = means + a * np.einsum("kij,kj->ki", covariances, solved)
        return r @ (dalpha(t) * x0 + dvariance(t) / 2 * solved)

    x_1 = start(name)
    ends = [solve_ivp(velocity, (1.0, 0.0), x, rtol=1e-10, atol=1e-12, method="DOP853").y[:, -1] for x in x_1.numpy()]
    assert 0.9 <= errors_of("ddim", name, mixture_2d, x_1, torch.from_numpy(np.stack(ends))) <= 1.3
