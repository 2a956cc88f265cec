"""Ancestral sampling: walk the learned reverse chain.

    x_s = c_t x_t + c_0 x0(x_t, t) + sqrt(variance) z,   z ~ N(0, I)                                        (1)

with c_t, c_0 of q(x_s | x_t, x_0) (`gaussian` (3)) and a row of `variances.VARIANCES`.  The last step, to
s = 0, adds no noise.  With S = T steps this is DDPM's Algorithm 2; with fewer, the same posterior over longer steps.

J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239, Algorithm 2
"""

from __future__ import annotations

from torch import Tensor

from sfumato.gaussian import expand, posterior
from sfumato.options import unknown
from sfumato.samplers.loop import Noise, Query, Steps, Walk
from sfumato.schedules import Schedule
from sfumato.variances import VARIANCES


def ancestral(x: Tensor, times: Steps, schedule: Schedule, noise: Noise, *, variance: str = "model") -> Walk:
    """(1); x is x_T (B, ...), variance a row of VARIANCES."""
    if variance not in VARIANCES:
        raise unknown("variance", variance, VARIANCES)
    for k, (t, s) in enumerate(times):
        p = yield Query(x, t)
        mean, _ = posterior(schedule, x, p.x0, t, s)
        if s == 0:
            return mean
        x = mean + expand((0.5 * VARIANCES[variance](schedule, t, s, p)).exp(), x) * noise(k)
    return x
