"""Clipping of the predicted x_0, as a Denoiser.

    x0 <- clamp(x0, low, high),   eps <- (x_t - alpha x0)/sigma

so that x_t = alpha x0 + sigma eps still holds.  Pictures live in [-1, 1], and no mean of pictures lies outside.

J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239 (clip_denoised of its code)
"""

from __future__ import annotations

from collections.abc import Sequence

from sfumato.asking import Query
from sfumato.denoiser import Denoiser, Prediction
from sfumato.guidance.guided import Guidance, Guided, with_x0


def clip(inner: Denoiser, low: float = -1.0, high: float = 1.0) -> Guided:
    """`inner` with its x0 held in [low, high]."""
    if not low < high:
        raise ValueError(f"clipping needs low < high; got [{low}, {high}]")

    def combine(query: Query, predictions: Sequence[Prediction]) -> Prediction:
        return with_x0(inner.schedule, query, predictions[0], predictions[0].x0.clamp(low, high))

    return Guided(inner, Guidance(lambda query: [query], combine))
