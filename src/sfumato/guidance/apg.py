"""Adaptive projected guidance: the part of guidance that only makes a picture louder is turned down.

With d = x0_cond - x0_null, as vectors over the values of a row,

    d <- d min(1, norm/|d|)                                            (norm = 0: no such limit)           (1)
    x0 = x0_cond + (w - 1)(d_orthogonal + eta d_parallel),   d_parallel = d's part along x0_cond           (2)

d_parallel scales x0_cond, which is seen as oversaturation; eta = 1 without a norm is `cfg`.  norm depends on how many
values a row has (the paper takes 2.5 to 15 for latents).  eps follows from x_t.

The paper also has a momentum: d plus (negative) beta times the sum of those before.  It is left out: an answer would
then depend on what was asked before, and a guidance is a pure function, which rows of other walks may share.

S. Sadat, O. Hilliges, R. Weber, "Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models",
arXiv:2410.02416, Algorithm 1
"""

from __future__ import annotations

import math

from torch import Tensor

from sfumato.asking import Query
from sfumato.denoiser import Denoiser, Prediction
from sfumato.gaussian import expand
from sfumato.guidance.cfg import halves
from sfumato.guidance.guided import Guided, with_x0


def apg(inner: Denoiser, eta: float = 0.0, norm: float = 0.0) -> Guided:
    """`inner` under (2); eta is finite, norm >= 0."""
    if not math.isfinite(eta):
        raise ValueError(f"option eta of apg is a finite number (0 drops the parallel part, 1 keeps it); got {eta}")
    if not 0 <= norm < math.inf:
        raise ValueError(f"option norm of apg is a length >= 0 (0 for no limit); got {norm}")

    def mix(query: Query, given: Prediction, null: Prediction, w: Tensor) -> Prediction:
        d = given.x0 - null.x0
        if norm > 0:
            d = d * expand((norm / _length(d)).clamp(max=1), d)
        along = given.x0 / expand(_length(given.x0).clamp(min=1e-12), d)
        parallel = expand((d * along).flatten(1).sum(1), d) * along
        return with_x0(inner.schedule, query, given, given.x0 + (w - 1) * (d - parallel + eta * parallel))

    return halves(inner, mix)


def _length(x: Tensor) -> Tensor:
    """(B,), summed in float64."""
    return x.flatten(1).double().norm(dim=1)
