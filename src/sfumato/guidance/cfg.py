"""Classifier-free guidance: away from the unconditional prediction, past the conditional one.

    x0 = x0_null + w (x0_cond - x0_null),   and eps likewise,                                              (1)

w = 1 is the plain conditional model, w = 0 the unconditional one; the paper's own scale is w_seed = w - 1.  The scale
is cond["guidance"], (B,), one value a row, and acts in the interval low < t <= high, cond["low"] and cond["high"] [2];
outside of it w is 1.  Where every row has w = 1, only the conditional is asked, and of (1) where every row has w = 0
only the unconditional.  Variances are those of the conditional, and at w = 0 of the unconditional.  What is told lies
on the processor, so that no GPU is waited for to know who is to be asked, but at an interval, where t must be known.

What is done with the two answers is a `Mix`, so that `rescale` and `apg` differ from (1) in that alone.

[1] J. Ho, T. Salimans, "Classifier-Free Diffusion Guidance", arXiv:2207.12598, eq. (6)
[2] T. Kynkäänniemi et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in
    Diffusion Models", arXiv:2404.07724
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sfumato.asking import NEUTRAL, Query
from sfumato.denoiser import Denoiser, Prediction
from sfumato.gaussian import expand as rows
from sfumato.guidance.guided import Guidance, Guided, without

TOLD = ("guidance", "low", "high")  # what this room's scale is told by, and no inner denoiser is

# (query, conditional, unconditional or weaker, w (B, 1...)) -> guided
Mix = Callable[[Query, Prediction, Prediction, Tensor], Prediction]


def scale(query: Query) -> Tensor | None:
    """w at t of each row, (B,); None where it is 1 for all."""
    cond = query.cond or {}
    if "guidance" not in cond:
        return None
    t = query.t.float()  # compared in float32, so that 0.7 is 0.7 whoever says it
    low, high = (cond[name].to(t) if name in cond else NEUTRAL[name] for name in ("low", "high"))
    if bool((cond["guidance"] == 1).all()):
        return None
    w = torch.where((low < t) & (t <= high), cond["guidance"].to(t.device), 1.0)
    return None if ("low" in cond or "high" in cond) and bool((w == 1).all()) else w


def unsteered(inner: Denoiser) -> None:
    """ValueError if something within `inner` is steered by w too, which it would not be told."""
    while isinstance(inner, Guided):
        if inner.steers:
            raise ValueError(
                "two guidances came that both are steered by w (cond['guidance']), so the inner one would never act; "
                "allowed is one of cfg, rescale, apg and autoguide"
            )
        inner = inner.inner


def lerp(query: Query, given: Prediction, other: Prediction, w: Tensor) -> Prediction:
    """(1)."""
    x0, eps = torch.lerp(other.x0, given.x0, w), torch.lerp(other.eps, given.eps, w)
    variances = {}
    for name in ("variance_mix", "x0_variance"):
        ours, theirs = getattr(given, name), getattr(other, name)
        variances[name] = ours if ours is None or theirs is None else torch.where(w == 0, theirs, ours)
    return replace(given, x0=x0, eps=eps, **variances)


def mixed(mix: Mix, query: Query, given: Prediction, other: Prediction) -> Prediction:
    """The mix of two answers; rows of w = 1 are the given ones, to the bit."""
    w = scale(query)
    assert w is not None  # or there would be no other
    w = rows(w, given.x0)
    p = mix(query, given, other, w)
    return replace(p, x0=torch.where(w == 1, given.x0, p.x0), eps=torch.where(w == 1, given.eps, p.eps))


def halves(inner: Denoiser, mix: Mix) -> Guided:
    """`inner` asked with its conditions and with their null in one call, and mixed."""
    unsteered(inner)

    def expand(query: Query) -> Sequence[Query]:
        given = without(query, *TOLD)
        w = scale(query)
        if w is None:
            return [given]
        cond = given.cond or {}
        told = {name: value for name, value in cond.items() if name not in NEUTRAL}
        if not told or set(told) - set(inner.null_cond):
            raise ValueError(
                f"guidance other than 1 needs a condition and its null: the model has null for "
                f"{sorted(inner.null_cond) or 'nothing'}, cond gives {sorted(told) or 'nothing'}; take guidance 1"
            )
        null = {name: inner.null_cond[name].to(value).expand_as(value) for name, value in told.items()}
        other = replace(given, cond={**cond, **null})
        none = mix is lerp and bool(((query.cond or {})["guidance"] == 0).all()) and bool((w == 0).all())
        return [other] if none else [given, other]

    def combine(query: Query, predictions: Sequence[Prediction]) -> Prediction:
        return predictions[0] if len(predictions) == 1 else mixed(mix, query, *predictions)

    return Guided(inner, Guidance(expand, combine), steers=True)


def cfg(inner: Denoiser) -> Guided:
    """`inner` under (1); it must know its `null_cond` for every name of cond."""
    return halves(inner, lerp)
