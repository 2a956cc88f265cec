"""Cold diffusion's way back: undo a degradation that has no noise.

    x_s = x_t - D(x0, t) + D(x0, s)                                                                         (1)

with D of `corruptions` (2) and x0 what the network says at x_t.  The naive walk x_s = D(x0, s) (Algorithm 1) passes on
every error of x0; (1) passes on only what the degradation takes from t to s, so for D(x, t) = x + t e it is exact
whatever the network says.  For D linear in x and a constant error b of x0 it ends at x_0 + b - D(b, 1).

A. Bansal et al., "Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise", arXiv:2208.09392, Algorithm 2
"""

from __future__ import annotations

from torch import Tensor

from sfumato.corruptions import Cold
from sfumato.samplers.loop import Noise, Query, Steps, Walk
from sfumato.schedules import Schedule


def cold(x: Tensor, times: Steps, schedule: Schedule, noise: Noise) -> Walk:
    """(1); x is D(x_0, 1), (B, C, H, W)."""
    if not isinstance(schedule, Cold):
        raise ValueError(f"sampler 'cold' undoes schedule 'cold', not {schedule.spec['name']!r}; take sampler 'ddim'")
    for t, s in times:
        p = yield Query(x, t)
        x = x - schedule.degrade(p.x0, t) + schedule.degrade(p.x0, s)
    return x
