"""DDIM: the family of walks that share DDPM's marginals.

    x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 u_ts) eps + eta sqrt(u_ts) z                                  (1)

with u_ts the posterior variance (`gaussian` (3)): eta = 0 is deterministic, and the Euler method of the
probability-flow ODE in (x/alpha, sigma/alpha); eta = 1 is ancestral sampling with the small variance.  The paper's
sigma-hat row keeps the direction of eta = 1 but adds the larger noise sqrt(v_ts), as DDPM's large variance does, and
none in the last step:

    x_s = alpha_s x0 + sqrt(sigma_s^2 - u_ts) eps + sqrt(v_ts) z                                            (2)

J. Song, C. Meng, S. Ermon, "Denoising Diffusion Implicit Models", arXiv:2010.02502, eq. (12), (16), sec. 5
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.gaussian import expand, posterior_coefficients, transition_coefficients
from sfumato.samplers.loop import Noise, Query, Steps, Walk
from sfumato.schedules import Schedule


def ddim(x: Tensor, times: Steps, schedule: Schedule, noise: Noise, *, eta: float = 0.0) -> Walk:
    """(1); x is x_T (B, ...), eta in [0, 1]."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1] (0 is deterministic, 1 is ancestral); got {eta}")
    for k, (t, s) in enumerate(times):
        p = yield Query(x, t)
        variance = eta**2 * posterior_coefficients(schedule, t, s)[2] if eta > 0 else torch.zeros(())
        direction = (schedule.sigma(s).square() - variance).clamp(min=0).sqrt()
        x = expand(schedule.alpha(s), x) * p.x0 + expand(direction, x) * p.eps
        if eta > 0 and s > 0:
            x = x + expand(variance.sqrt(), x) * noise(k)
    return x


def ddim_sigma_hat(x: Tensor, times: Steps, schedule: Schedule, noise: Noise) -> Walk:
    """(2); x is x_T (B, ...)."""
    for k, (t, s) in enumerate(times):
        p = yield Query(x, t)
        _, v_ts = transition_coefficients(schedule, s, t)
        direction = (schedule.sigma(s).square() - posterior_coefficients(schedule, t, s)[2]).clamp(min=0).sqrt()
        x = expand(schedule.alpha(s), x) * p.x0 + expand(direction, x) * p.eps
        if s > 0:
            x = x + expand(v_ts.sqrt(), x) * noise(k)
    return x
