"""Dynamic thresholding of the predicted x_0, as a Denoiser.

    q = the percentile of |x0| over the values of a row,   x0 <- clamp(x0, -s, s)/s,   s = max(q, 1)        (1)

for data in [-1, 1]; for other limits x0 is measured from their middle, in half their distance.  Where clipping leaves
flat patches at the limits, this draws the whole picture inward; where q <= 1 it is clipping.  eps follows from x_t.

C. Saharia et al., "Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding" (Imagen),
arXiv:2205.11487, sec. 2.3
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sfumato.asking import Query
from sfumato.denoiser import Denoiser, Prediction
from sfumato.gaussian import expand
from sfumato.guidance.guided import Guidance, Guided, with_x0


def check_percentile(percentile: float) -> None:
    """Raise ValueError unless it is a share, above 0 and at most 1."""
    if isinstance(percentile, bool) or not isinstance(percentile, int | float) or not 0 < percentile <= 1:
        raise ValueError(f"the percentile of dynamic thresholding lies in (0, 1], 0.995 is usual; got {percentile!r}")


def threshold(inner: Denoiser, percentile: float = 0.995, low: float = -1.0, high: float = 1.0) -> Guided:
    """`inner` under (1), for data in [low, high]; percentile in (0, 1]."""
    check_percentile(percentile)
    if not low < high:
        raise ValueError(f"dynamic thresholding needs low < high; got [{low}, {high}]")
    middle, half = (low + high) / 2, (high - low) / 2

    def combine(query: Query, predictions: Sequence[Prediction]) -> Prediction:
        p = predictions[0]
        off = (p.x0 - middle) / half
        size = off.abs().flatten(1).to(torch.promote_types(off.dtype, torch.float32))
        s = torch.stack([torch.quantile(row, percentile) for row in size]).clamp(min=1)  # row by row: it has a limit
        s = expand(s, off)
        return with_x0(inner.schedule, query, p, middle + half * off.clamp(-s, s) / s)

    return Guided(inner, Guidance(lambda query: [query], combine))
