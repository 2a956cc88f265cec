"""DPM-Solver++(2M) SDE: ancestral sampling with x_0 extrapolated from the step before.

In l = logsnr/2 the reverse SDE is linear but for x0, and is solved exactly where x0 stands still: that is the posterior
step of `gaussian` (3), whose coefficients are, with h = l_s - l_t,

    c_t = (sigma_s/sigma_t) e^-h,   c_0 = alpha_s (1 - e^-2h),   u_ts = sigma_s^2 (1 - e^-2h)               (1)

2M puts in x0's place what it will be in the middle of the step, on the line through the last two predictions:

    D = D_0 + h/(2 h_0) (D_0 - D_{-1}),   x_s = c_t x_t + c_0 D + sqrt(u_ts) z                              (2)

with D_0 the newest x0, D_{-1} the one before it and h_0 the step between them.  The first step, and one whose h is
infinite, take D_0 alone; after a step from alpha = 0, where h_0 is infinite, (2) does so by itself.

The weak order is 2.  The mean follows a two-step method of second order.  In the covariance, the noise of a step acts
on x0 within that same step, which (2) cannot see; but D_0 - D_{-1} holds the noise of the step before, and adds what
was missed there, one step late.

C. Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", arXiv:2211.01095
"""

from __future__ import annotations

from torch import Tensor

from sfumato.gaussian import expand, posterior
from sfumato.samplers.exponential import Node, finite, half_logsnr
from sfumato.samplers.loop import Noise, Query, Steps, Walk
from sfumato.schedules import Schedule


def dpmpp_2m_sde(x: Tensor, times: Steps, schedule: Schedule, noise: Noise) -> Walk:
    """(2); x is x_T (B, ...).  The step to s = 0 adds no noise and is D_0."""
    before: Node | None = None
    for k, (t, s) in enumerate(times):
        p = yield Query(x, t)
        now = Node(half_logsnr(schedule, t), p.x0)
        h = half_logsnr(schedule, s) - now.l
        d = p.x0
        if before is not None and finite(h):
            d = d + expand(h / (2 * (now.l - before.l)), x) * (p.x0 - before.value)
        x, variance = posterior(schedule, x, d, t, s)
        if s > 0:
            x = x + variance.sqrt() * noise(k)
        before = now
    return x
