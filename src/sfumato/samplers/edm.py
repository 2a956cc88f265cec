"""Euler and Heun of EDM, with its churn.

In y = x/alpha and r = sigma/alpha the probability-flow ODE is dy/dr = eps, so with eps of (x_t, t) a step is

    x_s = alpha_s x0 + sigma_s eps                                                                         (1)  Euler
    x_s <- x_s + (sigma_s - alpha_s r_t) (eps(x_s, s) - eps)/2                                             (2)  Heun

(1) is DDIM without noise.  (2) is left out of the last step, where sigma_s = 0, of one from or to alpha = 0, where r is
infinite, and of others as long (`exponential.long`).  Churn: before a step, noise is added that brings t up to t', with

    r_t' = (1 + gamma) r_t,   gamma = min(churn/S, sqrt(2) - 1) if churn_min <= r_t <= churn_max, else 0     (3)

T. Karras, M. Aittala, T. Aila, S. Laine, "Elucidating the Design Space of Diffusion-Based Generative Models",
arXiv:2206.00364, Algorithms 1 and 2
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfumato.gaussian import expand, transition
from sfumato.samplers.exponential import long
from sfumato.samplers.loop import Noise, Query, Steps, Walk
from sfumato.schedules import Schedule


def euler(x: Tensor, times: Steps, schedule: Schedule, noise: Noise) -> Walk:
    """(1); x is x_T (B, ...)."""
    for t, s in times:
        p = yield Query(x, t)
        x = expand(schedule.alpha(s), x) * p.x0 + expand(schedule.sigma(s), x) * p.eps
    return x


def heun(
    x: Tensor,
    times: Steps,
    schedule: Schedule,
    noise: Noise,
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
) -> Walk:
    """(1) and (2), and (3) where churn > 0; x is x_T (B, ...)."""
    if not (churn >= 0 and churn_noise >= 0):
        raise ValueError(f"churn and churn_noise must be at least 0; got {churn} and {churn_noise}")
    gamma = min(churn / len(times), math.sqrt(2) - 1)
    for k, (t, s) in enumerate(times):
        path = schedule.path
        r_t = torch.exp(-0.5 * path.logsnr(t))
        if gamma > 0 and churn_min <= r_t <= churn_max and t < 1:
            above = path.time_of_logsnr(path.logsnr(t) - 2 * math.log1p(gamma))
            mean, std = transition(schedule, x, t, above)
            x, t = mean + churn_noise * std * noise(k), above
        p = yield Query(x, t)
        alpha_s, sigma_s = schedule.alpha(s), schedule.sigma(s)
        x = expand(alpha_s, x) * p.x0 + expand(sigma_s, x) * p.eps
        if not long(schedule, t, s):
            q = yield Query(x, s)
            step = sigma_s - alpha_s * schedule.sigma(t) / schedule.alpha(t)
            x = x + expand(step, x) * (q.eps - p.eps) / 2
    return x
