"""Mean and covariance of what a sampler makes of Gaussian data, exactly.

On one Gaussian the exact denoiser is affine in x_t, so a sampler whose coefficients do not look at x is an affine map

    x_end = b + A x_start + sum_k N_k z_k,   z_k = noise(k) ~ N(0, I)                                      (1)

A batch whose rows are 0 and the basis vectors, sent through x_start and through every noise(k), reads b, A and N_k off.
From a start of mean m and covariance C the end then has, without drawing a single number,

    mean b + A m,   covariance A C A^T + sum_k N_k N_k^T                                                   (2)

The truth at time t is mean alpha E, covariance alpha^2 S + sigma^2 I; a start drawn from it should end on it.  The
weak order is the rate at which the error of (2) falls with the number of steps.

P. Kloeden, E. Platen, "Numerical Solution of Stochastic Differential Equations" (1992), ch. 14 (weak convergence)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfumato.denoiser import Denoiser
from sfumato.schedules import Schedule
from sfumato.testbed.mixture import GaussianMixture

Noise = Callable[[int], Tensor]
Run = Callable[[Denoiser, Tensor, Tensor, Noise], Tensor]  # (denoiser, x_start (B, D), times, noise) -> x_end (B, D)


@dataclass(frozen=True)
class Moments:
    """mean (D,) and covariance (D, D), float64."""

    mean: Tensor
    covariance: Tensor

    def distance(self, other: Moments) -> float:
        """Euclidean, over the entries of both."""
        mean, covariance = self.mean - other.mean, self.covariance - other.covariance
        return float((mean.square().sum() + covariance.square().sum()).sqrt())


def truth(data: GaussianMixture, schedule: Schedule, t: Tensor) -> Moments:
    """The moments of x_t for data of one component, t 0-dimensional."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    identity = torch.eye(data.dimension, dtype=torch.float64)
    return Moments(alpha * data.means[0], alpha.square() * data.covariances[0] + sigma.square() * identity)


class _Basis:
    """The noise of a batch whose rows are 0, e_j of x_start and e_j of each noise step in turn, and a probe of all."""

    def __init__(self, dimension: int, room: int):
        self.dimension, self.room = dimension, room
        self.rows = 2 + dimension * (1 + room)
        self.probe = torch.linspace(0.5, 1.5, dimension, dtype=torch.float64)
        self.seen: set[int] = set()

    def block(self, number: int) -> Tensor:
        z = torch.zeros(self.rows, self.dimension, dtype=torch.float64)
        first = 1 + self.dimension * number
        z[first : first + self.dimension] = torch.eye(self.dimension, dtype=torch.float64)
        z[-1] = self.probe
        return z

    def noise(self, k: int) -> Tensor:
        if k in self.seen or k < 0:
            raise ValueError(f"noise({k}): a sampler draws each k >= 0 once")
        if len(self.seen) == self.room:
            raise _Full
        self.seen.add(k)
        return self.block(len(self.seen))


class _Full(Exception):
    """A run asked for more noise than its batch has rows for."""


def _maps(run: Callable[[Tensor, Noise], Tensor], dimension: int, room: int) -> tuple[Tensor, Tensor, int]:
    """b (D,), [A, N_1, ...] (1 + room, D, D) of (1), and the number of noise steps; runs again if room is too small."""
    basis = _Basis(dimension, room)
    try:
        end = run(basis.block(0), basis.noise)
    except _Full:
        return _maps(run, dimension, 2 * room + 1)
    b = end[0]
    maps = (end[1:-1] - b).reshape(-1, dimension, dimension).mT
    expected = b + maps.sum(0) @ basis.probe
    if not torch.allclose(end[-1], expected, rtol=1e-6, atol=1e-6 * float(end.abs().max())):
        raise ValueError("this sampler is not affine on Gaussian data, so its moments cannot be propagated exactly")
    return b, maps, len(basis.seen)


def _moments(b: Tensor, maps: Tensor, start: Moments) -> Moments:
    A, N = maps[0], maps[1:]
    return Moments(b + A @ start.mean, A @ start.covariance @ A.T + (N @ N.mT).sum(0))


def pushed(run: Callable[[Tensor, Noise], Tensor], start: Moments, room: int = 64) -> Moments:
    """(2) for one run (x_start (B, D), noise) -> x_end (B, D).

    ValueError if the run is not the affine map (1): the batch's last row starts at one vector and has the same one for
    every z_k, and only an affine map sends it to the sum of what the basis vectors became.  room: a guess of how many
    noise(k) the run asks for; if it is too low, the run is made again.
    """
    b, maps, _ = _maps(run, len(start.mean), room)
    return _moments(b, maps, start)


def weak_errors(run: Run, data: GaussianMixture, schedule: Schedule, grids: Sequence[Tensor]) -> list[float]:
    """The distance of the end from the truth there, for each grid, from the exact moments at the grid's start."""
    denoiser = data.denoiser(schedule)
    errors, each = [], 1
    for times in grids:
        steps = len(times) - 1
        b, maps, drawn = _maps(
            lambda x, noise, times=times: run(denoiser, x, times, noise),  # type: ignore[misc]
            data.dimension,
            each * steps,
        )
        each = -(-drawn // steps)  # noises a step, rounded up: the guess for the next grid
        end = _moments(b, maps, truth(data, schedule, times[0]))
        errors.append(end.distance(truth(data, schedule, times[-1])))
    return errors


def fitted_order(steps: Sequence[int], errors: Sequence[float]) -> float:
    """Minus the least-squares slope of log error over log steps."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])
