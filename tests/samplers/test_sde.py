"""Euler-Maruyama, predictor-corrector and Langevin on Gaussian data, against their recursions written in numpy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato import grids, schedules
from sfumato.samplers.langevin import langevin
from sfumato.samplers.loop import Sampler, walk
from sfumato.samplers.sde import euler_maruyama, predictor_corrector
from sfumato.testbed import GaussianMixture
from sfumato.testbed.moments import Moments, Noise, pushed, truth

I = np.eye(2)
TIMES = [0.95, 0.8, 0.55, 0.5, 0.3, 0.12]
Forms = tuple[Callable[[float], float], ...]
# alpha, sigma, d log alpha/dt and g^2 = d sigma^2/dt - 2 f sigma^2, by hand
CLOSED: dict[str, Forms] = {
    "linear_continuous": (
        lambda t: np.exp(-(0.1 * t + 9.95 * t * t) / 2),
        lambda t: np.sqrt(-np.expm1(-(0.1 * t + 9.95 * t * t))),
        lambda t: -(0.1 + 19.9 * t) / 2,
        lambda t: 0.1 + 19.9 * t,
    ),
    "rectified": (lambda t: 1 - t, lambda t: t, lambda t: -1 / (1 - t), lambda t: 2 * t / (1 - t)),
    "edm:sigma_max=5": (lambda t: 1.0, lambda t: 5 * t, lambda t: 0.0, lambda t: 50 * t),
}


def moved(sampler: Sampler, name: str, times: list[float], data: GaussianMixture) -> Moments:
    schedule = schedules.from_spec(name)

    def run(x: Tensor, noise: Noise) -> Tensor:
        *_, (_, end, _) = walk(data.denoiser(schedule), x, sampler, torch.tensor(times, dtype=torch.float64), noise)
        return end

    return pushed(run, truth(data, schedule, torch.tensor(times[0], dtype=torch.float64)))


class Chain:
    """Mean and covariance in numpy, from the exact marginal at the first time; eps(x, t) = K x + k is exact."""

    def __init__(self, forms: Forms, data: GaussianMixture, start: float):
        self.alpha, self.sigma, self.f, self.g2 = forms
        self.m, self.S = data.means[0].numpy(), data.covariances[0].numpy()
        self.mean, self.cov = self.alpha(start) * self.m, self.covariance(start)

    def covariance(self, t: float) -> np.ndarray:
        return self.alpha(t) ** 2 * self.S + self.sigma(t) ** 2 * I

    def step(self, a: float, b: float, t: float, added: float) -> None:
        """x <- a x + b eps(x, t) + sqrt(added) z."""
        K = self.sigma(t) * np.linalg.inv(self.covariance(t))
        A = a * I + b * K
        self.mean = A @ self.mean - b * self.alpha(t) * K @ self.m
        self.cov = A @ self.cov @ A.T + added * I

    def posterior(self, t: float, s: float) -> None:
        """The mean and variance of q(x_s | x_t, x0(x_t)), by completing the square, with x0 = (x - sigma eps)/alpha."""
        a = self.alpha(t) / self.alpha(s)
        v = self.sigma(t) ** 2 - a**2 * self.sigma(s) ** 2
        c_t, c_0 = a * self.sigma(s) ** 2 / self.sigma(t) ** 2, self.alpha(s) * v / self.sigma(t) ** 2
        back = c_0 / self.alpha(t)
        self.step(c_t + back, -back * self.sigma(t), t, v * self.sigma(s) ** 2 / self.sigma(t) ** 2)

    def langevin(self, t: float, kappa: float) -> None:
        delta = kappa * self.sigma(t) ** 2
        self.step(1.0, -delta / self.sigma(t), t, 2 * delta)

    def half_logsnr(self, t: float) -> float:
        return float(np.log(self.alpha(t) / self.sigma(t)))

    def agrees(self, other: Moments) -> None:
        np.testing.assert_allclose(other.mean, self.mean, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(other.covariance, self.cov, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", sorted(CLOSED))
def test_euler_maruyama(name: str, gaussian_2d: GaussianMixture) -> None:
    chain = Chain(CLOSED[name], gaussian_2d, TIMES[0])
    for t, s in pairwise(TIMES):
        h, f, g2 = t - s, chain.f(s), chain.g2(s)
        chain.step(1 - h * f, -h * g2 / chain.sigma(t), t, g2 * h)
    chain.agrees(moved(euler_maruyama, name, TIMES, gaussian_2d))


@pytest.mark.parametrize(("corrections", "snr"), [(1, 0.16), (3, 0.16), (2, 5.0)])
@pytest.mark.parametrize("name", sorted(CLOSED))
def test_predictor_corrector(name: str, corrections: int, snr: float, gaussian_2d: GaussianMixture) -> None:
    chain = Chain(CLOSED[name], gaussian_2d, TIMES[0])
    for t, s in pairwise(TIMES):
        chain.posterior(t, s)
        for _ in range(corrections):
            chain.langevin(s, min(chain.half_logsnr(s) - chain.half_logsnr(t), 2 * snr**2))
    sampler = partial(predictor_corrector, corrections=corrections, snr=snr)
    chain.agrees(moved(sampler, name, TIMES, gaussian_2d))


@pytest.mark.parametrize("inner", [1, 4, 40])
@pytest.mark.parametrize("name", sorted(CLOSED))
def test_langevin(name: str, inner: int, gaussian_2d: GaussianMixture) -> None:
    chain = Chain(CLOSED[name], gaussian_2d, TIMES[0])
    kappa = min(0.5, np.sqrt(16 / (5 * inner)))
    for t, s in pairwise(TIMES):
        for _ in range(inner):
            chain.langevin(t, kappa)
        ratio = np.hypot(chain.alpha(s), chain.sigma(s)) / np.hypot(chain.alpha(t), chain.sigma(t))
        chain.step(ratio, 0.0, t, 0.0)
    chain.agrees(moved(partial(langevin, inner=inner), name, TIMES, gaussian_2d))


def test_langevin_at_one_level_draws_from_it(gaussian_2d: GaussianMixture) -> None:
    """From a wrong start, many small steps (1) end on p_t: its mean, and its covariance but for kappa/2."""
    chain = Chain(CLOSED["rectified"], gaussian_2d, 0.4)
    marginal = chain.covariance(0.4)
    chain.mean, chain.cov = np.array([3.0, -3.0]), 4 * I
    for _ in range(4000):
        chain.langevin(0.4, 0.02)
    np.testing.assert_allclose(chain.mean, 0.6 * chain.m, atol=1e-9)
    assert np.abs(chain.cov - marginal).max() <= 0.011 * 0.16  # kappa/2 sigma^2, and a little of second order


def test_the_papers_correction_is_ours_where_steps_are_long() -> None:
    """delta = 2 (snr |z|/|score|)^2 of pure noise in 20,000 dimensions, row by row, is 2 snr^2 sigma^2 within 5 %."""
    z, eps = torch.randn(2, 8, 20_000, generator=torch.Generator().manual_seed(0))
    sigma, snr = 0.7, 0.16
    delta = 2 * (snr * z.norm(dim=1) / (eps / sigma).norm(dim=1)).square()
    assert (delta / (2 * snr**2 * sigma**2) - 1).abs().max() < 0.05


def test_euler_maruyama_starts_where_alpha_is_zero() -> None:
    """On the rectified path f(1) is infinite.  With no data at all (x0 = 0) x_t should stay N(0, t^2).

    The variance is followed by hand: x_s = x (1 - h f - h g^2/sigma_t^2) + g sqrt(h) z.
    """
    nothing = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.zeros(1, 1, 1)).denoiser(schedules.rectified())
    errors = []
    for steps in (20, 40, 80):
        times = [1 - k / steps for k in range(steps // 2 + 1)]
        variance = 1.0
        for t, s in pairwise(times):
            g2 = 2 * s / (1 - s)
            variance *= (1 + (t - s) / (1 - s) - (t - s) * g2 / t**2) ** 2
            variance += (t - s) * g2

        def run(x: Tensor, noise: Noise, times: list[float] = times) -> Tensor:
            *_, (_, end, _) = walk(nothing, x, euler_maruyama, torch.tensor(times, dtype=torch.float64), noise)
            return end

        end = pushed(run, Moments(torch.zeros(1).double(), torch.ones(1, 1).double()))
        assert float(end.covariance) == pytest.approx(variance, rel=1e-9)
        errors.append(abs(variance - 0.25))
    assert errors[0] / errors[1] > 1.8
    assert errors[1] / errors[2] > 1.8


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (
            partial(predictor_corrector, corrections=0),
            "option corrections of sampler predictor-corrector must be a whole",
        ),
        (partial(predictor_corrector, snr=0.0), r"snr must be above 0 .*; got 0.0"),
        (partial(langevin, inner=0), "option inner of sampler langevin must be a whole number >= 1; got 0"),
    ],
)
def test_mistakes_are_answered(sampler: Sampler, words: str, gaussian_2d: GaussianMixture) -> None:
    schedule = schedules.rectified()
    with pytest.raises(ValueError, match=words):
        next(walk(gaussian_2d.denoiser(schedule), torch.ones(1, 2), sampler, grids.trailing(schedule, 3), lambda k: k))
