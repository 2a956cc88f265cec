"""A guidance as a Denoiser: expand the query, ask all in one call, combine the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import final

import torch
from torch import Tensor

from sfumato.denoiser import Cond, Denoiser, Prediction, Query


@dataclass(frozen=True)
class Guidance:
    """The two pure functions; the queries of `expand` are alike in shape and in the names of their cond."""

    expand: Callable[[Query], Sequence[Query]]
    combine: Callable[[Query, Sequence[Prediction]], Prediction]


@final
class Guided(Denoiser):
    """`inner` under a guidance; queries are joined row by row into one call of `inner`."""

    def __init__(self, inner: Denoiser, guidance: Guidance):
        self.inner, self.guidance = inner, guidance
        self.schedule, self.null_cond = inner.schedule, inner.null_cond

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        query = Query(x_t, t, cond)
        return self.guidance.combine(query, ask(self.inner, self.guidance.expand(query)))


def ask(denoiser: Denoiser, queries: Sequence[Query]) -> list[Prediction]:
    """Several queries in one call of the denoiser; each gets its own rows back."""
    if len(queries) == 1:
        return [denoiser(queries[0].x, queries[0].t, queries[0].cond)]
    conds = [q.cond or {} for q in queries]
    joined = {name: torch.cat([c[name] for c in conds]) for name in conds[0]}
    answer = denoiser(torch.cat([q.x for q in queries]), torch.cat([q.t for q in queries]), joined)
    sizes = [len(q.x) for q in queries]
    parts = [getattr(answer, f.name) for f in fields(Prediction)]
    split = [[None] * len(sizes) if part is None else part.split(sizes) for part in parts]
    return [Prediction(*row) for row in zip(*split, strict=True)]
