"""Asking a Denoiser: any number of queries are joined, row by row, into one call, and each gets its own rows back.

Rows know nothing of each other, so they may differ in everything but the shape of x: in time, in conditions, in how far
the sampler will go with the answer (told as cond["span"] = t - s), in what it can do with it (cond["tilt"]).  What only
some queries say of cond is null for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from sfumato.denoiser import Cond, Denoiser, Prediction


@dataclass(frozen=True)
class Query:
    """What a sampler or a guidance asks: the Prediction at x (B, ...) and t, (B,) or 0-dimensional, under cond.

    s, like t, is where the sampler will go with the answer, for networks that predict an average over s..t.
    tilt: the sampler adds variance times `Prediction.tilt` to the mean of its step.
    """

    x: Tensor
    t: Tensor
    s: Tensor | None = None
    cond: Cond | None = None
    tilt: bool = False


# what travels in cond beside a model's conditions, one value a row, with its value for rows that are silent: the
# guidance scale w and the t it acts in, low < t <= high; the classifier's scale; t - s; 1 where the sampler can tilt
NEUTRAL = {"guidance": 1.0, "low": 0.0, "high": 1.0, "classifier": 0.0, "span": 0.0, "tilt": 0.0}


def ask(denoiser: Denoiser, queries: Sequence[Query]) -> list[Prediction]:
    """Several queries in one call of the denoiser; each gets its own rows back, in its own dtype.

    A condition that only some of them name is null, or NEUTRAL, for the others; context is padded with zeros.
    """
    asked = [_spread(query) for query in queries]
    if len(asked) == 1:
        return [denoiser(asked[0].x, asked[0].t, asked[0].cond)]
    names = dict.fromkeys(name for query in asked for name in query.cond or {})
    cond = {name: _joined(denoiser, asked, name) for name in names} or None
    answer = denoiser(torch.cat([q.x for q in asked]), torch.cat([q.t for q in asked]), cond)
    sizes = [len(q.x) for q in asked]
    parts = [getattr(answer, f.name) for f in fields(Prediction)]
    split = [[None] * len(sizes) if part is None else part.split(sizes) for part in parts]
    rows = zip(asked, zip(*split, strict=True), strict=True)
    return [Prediction(*(part if part is None else part.to(q.x.dtype) for part in row)) for q, row in rows]  # type: ignore[arg-type]


def _spread(query: Query) -> Query:
    """t, s as cond["span"] and tilt as cond["tilt"], one value a row."""
    t = query.t.to(query.x.device).expand(len(query.x))
    told = {} if query.s is None else {"span": t - query.s.to(t)}
    if query.tilt:
        told["tilt"] = torch.ones_like(t)
    cond = {**(query.cond or {}), **told} if told else query.cond
    return replace(query, t=t, s=None, tilt=False, cond=cond)


def _joined(denoiser: Denoiser, queries: Sequence[Query], name: str) -> Tensor:
    """One condition of all rows."""
    parts = [(query.cond or {}).get(name) for query in queries]
    some = next(part for part in parts if part is not None)
    if name not in NEUTRAL and name not in denoiser.null_cond and any(part is None for part in parts):
        raise ValueError(f"condition {name!r} is given for some rows only, and the model has no null for it")
    null = some.new_full((1,), NEUTRAL[name]) if name in NEUTRAL else denoiser.null_cond.get(name, some[:1]).to(some)
    whole = [null.expand(len(q.x), *null.shape[1:]) if c is None else c for q, c in zip(queries, parts, strict=True)]
    if name != "context":
        return torch.cat(whole)
    return torch.nn.utils.rnn.pad_sequence([row for c in whole for row in c], batch_first=True)
