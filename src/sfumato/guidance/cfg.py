"""Classifier-free guidance: away from the unconditional prediction, past the conditional one.

    x0 = x0_null + w (x0_cond - x0_null),   and eps likewise,                                              (1)

w = 1 is the plain conditional model, w = 0 the unconditional one; the paper's own scale is w_seed = w - 1.  The scale
is cond["guidance"], (B,), one value a row; without it, or where every row has w = 1, only the conditional is asked.

J. Ho, T. Salimans, "Classifier-Free Diffusion Guidance", arXiv:2207.12598, eq. (6)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from sfumato.asking import NEUTRAL, Query
from sfumato.denoiser import Denoiser, Prediction
from sfumato.gaussian import expand as rows
from sfumato.guidance.guided import Guidance, Guided


def cfg(inner: Denoiser) -> Guided:
    """`inner` under (1); it must know its `null_cond` for every name of cond."""

    def expand(query: Query) -> Sequence[Query]:
        cond = {name: value for name, value in (query.cond or {}).items() if name != "guidance"}
        given = replace(query, cond=cond)
        w = (query.cond or {}).get("guidance")
        if w is None or bool((w == 1).all()):
            return [given]
        told = {name: value for name, value in cond.items() if name not in NEUTRAL}
        if not told or set(told) - set(inner.null_cond):
            raise ValueError(
                f"guidance other than 1 needs a condition and its null: the model has null for "
                f"{sorted(inner.null_cond) or 'nothing'}, cond gives {sorted(told) or 'nothing'}; take guidance 1"
            )
        null = {name: inner.null_cond[name].to(value).expand_as(value) for name, value in told.items()}
        return [given, replace(query, cond={**cond, **null})]

    def combine(query: Query, predictions: Sequence[Prediction]) -> Prediction:
        if len(predictions) == 1:
            return predictions[0]
        given, null = predictions
        w = rows((query.cond or {})["guidance"], given.x0)
        return replace(given, x0=torch.lerp(null.x0, given.x0, w), eps=torch.lerp(null.eps, given.eps, w))

    return Guided(inner, Guidance(expand, combine))
