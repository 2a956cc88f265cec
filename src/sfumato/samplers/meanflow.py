"""MeanFlow: as many steps as one likes, down to one, with a network that says average velocities.

    x_s = x_t - (t - s) u(x_t, s, t)                                                                       (1)

The Prediction holds u as the straight path x0 = x_t - t u, eps = x_t + (1 - t) u, whose point at s is (1), so a step is
x_s = (1 - s) x0 + s eps.  A denoiser that does not look at s answers with s = t, and (1) is Euler's method.

Z. Geng et al., "Mean Flows for One-step Generative Modeling", arXiv:2505.13447, Algorithm 2
"""

from __future__ import annotations

from torch import Tensor

from sfumato.gaussian import expand
from sfumato.samplers.loop import Noise, Query, Steps, Walk
from sfumato.schedules import Schedule


def meanflow(x: Tensor, times: Steps, schedule: Schedule, noise: Noise) -> Walk:
    """(1); x is x_T (B, ...); the schedule is the straight path."""
    for t, s in times:
        p = yield Query(x, t, s)
        x = expand(schedule.alpha(s), x) * p.x0 + expand(schedule.sigma(s), x) * p.eps
    return x
