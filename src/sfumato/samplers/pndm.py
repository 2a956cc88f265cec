"""PNDM: the linear multistep method in DDIM's coordinates.

A step with any eps' in eps's place goes along a straight line in y = x/alpha and r = sigma/alpha,

    phi(x, eps', t, s) = (alpha_s/alpha_t) x + (sigma_s - alpha_s sigma_t/alpha_t) eps'                    (1)

and PLMS takes for eps' the Adams-Bashforth combination of the last four predictions

    eps' = (55 eps_0 - 59 eps_{-1} + 37 eps_{-2} - 9 eps_{-3})/24                                          (2)

whose coefficients are those of equal steps: it is of order 4 where the steps are equal in r, and of order 2 on other
grids.  Its first three steps are PRK, the classical Runge-Kutta with (1) for its moves, four calls each,

    e_1 = eps(x, t),              e_2 = eps(phi(x, e_1, t, m), m),
    e_3 = eps(phi(x, e_2, t, m), m),   e_4 = eps(phi(x, e_3, t, s), s)
    eps' = (e_1 + 2 e_2 + 2 e_3 + e_4)/6                                                                   (3)

with m the time half way in r.  (The paper's m is half way in t, which costs the start an order.)  A first step that is
long (`exponential.long`), as from alpha = 0 or to sigma = 0, is DDIM's, and the start comes after it.

L. Liu, Y. Ren, Z. Lin, Z. Zhao, "Pseudo Numerical Methods for Diffusion Models on Manifolds", arXiv:2202.09778
"""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from sfumato.denoiser import Prediction
from sfumato.gaussian import expand
from sfumato.samplers.exponential import long
from sfumato.samplers.loop import Noise, Query, Steps, Walk
from sfumato.schedules import Schedule


def plms(x: Tensor, times: Steps, schedule: Schedule, noise: Noise) -> Walk:
    """(2), started by (3); x is x_T (B, ...)."""
    past: list[Tensor] = []  # newest first
    for t, s in times:
        p = yield Query(x, t)
        if len(past) < 3 and long(schedule, t, s):
            x = expand(schedule.alpha(s), x) * p.x0 + expand(schedule.sigma(s), x) * p.eps
            continue
        if len(past) == 3:
            eps = (55 * p.eps - 59 * past[0] + 37 * past[1] - 9 * past[2]) / 24
        else:
            eps = yield from _prk(x, p.eps, t, s, schedule)
        x, past = phi(schedule, x, eps, t, s), [p.eps, *past[:2]]
    return x


def phi(schedule: Schedule, x: Tensor, eps: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """(1)."""
    ratio = schedule.alpha(s) / schedule.alpha(t)
    return expand(ratio, x) * x + expand(schedule.sigma(s) - ratio * schedule.sigma(t), x) * eps


def _prk(x: Tensor, e_1: Tensor, t: Tensor, s: Tensor, schedule: Schedule) -> Generator[Query, Prediction, Tensor]:
    """eps' of (3)."""
    r_t, r_s = (torch.exp(-0.5 * schedule.path.logsnr(time)) for time in (t, s))
    m = schedule.path.time_of_logsnr(-2 * ((r_t + r_s) / 2).log())
    e_2 = (yield Query(phi(schedule, x, e_1, t, m), m)).eps
    e_3 = (yield Query(phi(schedule, x, e_2, t, m), m)).eps
    e_4 = (yield Query(phi(schedule, x, e_3, t, s), s)).eps
    return (e_1 + 2 * e_2 + 2 * e_3 + e_4) / 6
