"""Annealed Langevin dynamics: draw from p_t at one noise level after the other.

Langevin dynamics at one time t leave p_t as it is, in the limit of small steps:

    x <- x + delta score(x, t) + sqrt(2 delta) z,   score = -eps/sigma_t,   delta = kappa sigma_t^2          (1)

Annealed, the levels are the times of the grid, from noise to data.  Each starts from what the one above left, scaled
by n_s/n_t, n^2 = alpha^2 + sigma^2, the size of x_t for data of size 1, and makes M = inner steps (1).  The last state
is denoised to x0(x, t), which is (x + sigma^2 score)/alpha.  This is the noise-conditioned score's own sampler: it
knows nothing of how one level leads to the next.  On variance-preserving schedules n = 1.  [1] has alpha = 1 and leaves
x as it is, so that all noise of the level above is worked off by (1); with the scaling, which is the way of data of
size 1, the error is about half as large.  (Leaving x/alpha as it is has no meaning on schedules with alpha(1) = 0.)

How large is kappa?  Let log(sigma/alpha) fall by h from level to level.  A level starts off by about 2h in relative
variance, each step (1) takes 2 kappa of that away, and (1) is itself off by kappa/2:

    error = lag h/(M kappa) + bias kappa/2,   least at kappa = sqrt(2h/M), and then equal to it             (2)

With S levels h = H/S, where H, half the range of logsnr, is about 8.  So kappa = sqrt(2H/(S M)), one number for all
levels, as in [1]; for the S = 10 and M = 100 of [1] it is 0.13, and [1] has 0.1.  By (2) both errors fall as S^-1/2,
and no other power of S does better at fixed M: the weak order is 1/2.  [2] has M = 5.

[1] Y. Song, S. Ermon, "Generative Modeling by Estimating Gradients of the Data Distribution", arXiv:1907.05600, Alg. 1
[2] Y. Song, S. Ermon, "Improved Techniques for Training Score-Based Generative Models", arXiv:2006.09011 (last step)
"""

from __future__ import annotations

import math

from torch import Tensor

from sfumato.gaussian import expand
from sfumato.options import whole
from sfumato.samplers.loop import Noise, Query, Steps, Walk
from sfumato.schedules import Schedule

RANGE = 8.0  # H of (2)
LARGEST = 0.5  # kappa of few steps; (1) is stable below 2


def langevin_step(x: Tensor, eps: Tensor, sigma: Tensor, kappa: Tensor, z: Tensor) -> Tensor:
    """(1); x, eps, z (B, ...), sigma and kappa 0-dimensional or (B,)."""
    return x - expand(kappa * sigma, x) * eps + expand((2 * kappa).sqrt() * sigma, x) * z


def size(schedule: Schedule, t: Tensor) -> Tensor:
    """n of t, float64."""
    return (schedule.alpha(t).square() + schedule.sigma(t).square()).sqrt()


def langevin(x: Tensor, times: Steps, schedule: Schedule, noise: Noise, *, inner: int = 5) -> Walk:
    """M = inner steps (1) at every level; x is x_T (B, ...).  Calls: S inner + 1."""
    inner = whole("option inner of sampler langevin", inner)
    for k, (t, s) in enumerate(times):
        sigma = schedule.sigma(t)
        kappa = sigma.new_tensor(min(LARGEST, math.sqrt(2 * RANGE / (len(times) * inner))))
        for j in range(inner):
            p = yield Query(x, t)
            x = langevin_step(x, p.eps, sigma, kappa, noise(k * inner + j))
        if s == 0:
            p = yield Query(x, t)
            return p.x0
        x = expand(size(schedule, s) / size(schedule, t), x) * x
    return x
