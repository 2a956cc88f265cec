"""Ancestral sampling: walk the learned reverse chain.

    x_s = c_t x_t + c_0 x0(x_t, t) + variance tilt + sqrt(variance) z,   z ~ N(0, I)                        (1)

with c_t, c_0 of q(x_s | x_t, x_0) (`gaussian` (3)), a row of `variances.VARIANCES`, and `Prediction.tilt` where a
guidance gives one [2].  The last step, to s = 0, adds no noise.  With S = T steps this is DDPM's Algorithm 2 [1]; with
fewer, the same posterior over longer steps.

[1] J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239
[2] P. Dhariwal, A. Nichol, "Diffusion Models Beat GANs on Image Synthesis", arXiv:2105.05233, Algorithm 1
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
        p = yield Query(x, t, tilt=True)
        x, _ = posterior(schedule, x, p.x0, t, s)
        if s == 0 and p.tilt is None:
            return x
        log_variance = VARIANCES[variance](schedule, t, s, p)
        if p.tilt is not None:
            x = x + expand(log_variance.exp(), x) * p.tilt
        if s > 0:
            x = x + expand((0.5 * log_variance).exp(), x) * noise(k)
    return x
