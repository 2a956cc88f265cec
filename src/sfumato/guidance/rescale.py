"""Classifier-free guidance whose contrast is held back.

Large w makes x0 too large: pictures are over-exposed.  With the standard deviations over the values of a row,

    x0_cfg = x0_null + w (x0_cond - x0_null)                                                               (1)
    x0 = phi x0_cfg std(x0_cond)/std(x0_cfg) + (1 - phi) x0_cfg                                            (2)

The paper rescales what its network says (v); a Denoiser's answer has no target any more, so this rescales x_0, where
over-exposure is seen, and eps follows from x_t.  w, its interval and its null are those of `cfg`.

S. Lin, B. Liu, J. Li, X. Yang, "Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv:2305.08891,
sec. 3.4, eqs. (14)-(16)
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.asking import Query
from sfumato.denoiser import Denoiser, Prediction
from sfumato.gaussian import expand
from sfumato.guidance.cfg import halves
from sfumato.guidance.guided import Guided, with_x0


def rescale(inner: Denoiser, phi: float = 0.7) -> Guided:
    """`inner` under (2); phi in [0, 1], 0 is plain `cfg`."""
    if not 0 <= phi <= 1:
        raise ValueError(f"option phi of rescale lies in [0, 1] (0 is plain cfg, 0.7 is usual); got {phi}")

    def mix(query: Query, given: Prediction, null: Prediction, w: Tensor) -> Prediction:
        x0 = torch.lerp(null.x0, given.x0, w)
        wanted, had = _std(given.x0), _std(x0)
        shrink = torch.where(had > 0, wanted / had, 1.0)  # a row of one value, or all alike, has no contrast
        return with_x0(inner.schedule, query, given, expand(torch.lerp(torch.ones_like(shrink), shrink, phi), x0) * x0)

    return halves(inner, mix)


def _std(x: Tensor) -> Tensor:
    return x.flatten(1).std(1, correction=0)
