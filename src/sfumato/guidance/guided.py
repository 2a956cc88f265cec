"""A guidance as a Denoiser: expand the query, ask all in one call, combine the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from sfumato.asking import Query, ask
from sfumato.denoiser import Cond, Denoiser, Prediction, from_x0
from sfumato.schedules import Schedule


@dataclass(frozen=True)
class Guidance:
    """The two pure functions; the queries of `expand` are alike in shape."""

    expand: Callable[[Query], Sequence[Query]]
    combine: Callable[[Query, Sequence[Prediction]], Prediction]


@final
class Guided(Denoiser):
    """`inner` under a guidance; queries are joined row by row into one call of `inner`.

    steers: the guidance is steered by cond["guidance"], which `inner` is not told.
    """

    def __init__(self, inner: Denoiser, guidance: Guidance, steers: bool = False):
        self.inner, self.guidance, self.steers = inner, guidance, steers
        self.schedule, self.null_cond = inner.schedule, inner.null_cond

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        query = Query(x_t, t, cond=cond)
        return self.guidance.combine(query, ask(self.inner, self.guidance.expand(query)))


def without(query: Query, *names: str) -> Query:
    """The query, not telling these names of cond."""
    return replace(query, cond={name: value for name, value in (query.cond or {}).items() if name not in names})


def with_x0(schedule: Schedule, query: Query, p: Prediction, x0: Tensor) -> Prediction:
    """p with another x0, and the eps with which x_t = alpha x0 + sigma eps still holds."""
    return replace(p, x0=x0, eps=from_x0(schedule, query.x, query.t, x0).eps)
