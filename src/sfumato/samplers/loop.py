"""The one loop: it answers what samplers ask.

A sampler is a generator.  It yields a `Query` (x, t) wherever it wants the Denoiser's opinion, is sent the Prediction,
and returns x_0:

    def ddim(x, times, schedule, noise, *, eta=0.0):
        for k, (t, s) in enumerate(times):
            p = yield Query(x, t)
            x = ...
        return x

Everything around a sampler is done to the queries that pass: a film looks at them, a server joins them, closing the
generator cancels.  No generator holds a grad or autocast context across a yield; the loop runs under no_grad.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato import grids
from sfumato.asking import Query, ask
from sfumato.denoiser import Cond, Denoiser, Prediction
from sfumato.noise import RowNoise
from sfumato.options import call_with
from sfumato.schedules import Schedule

Steps = Sequence[tuple[Tensor, Tensor]]  # the (t, s) pairs of a grid
Noise = Callable[[int], Tensor]  # step -> N(0, I) of x's shape
Walk = Generator[Query, Prediction, Tensor]
Sampler = Callable[[Tensor, Steps, Schedule, Noise], Walk]


@dataclass(frozen=True)
class Row:
    """A row of SAMPLERS.

    orders: the spacing of times, a row of `tasks.doctor.SPACINGS` -> the order of convergence on it, of the state for
    deterministic samplers, of mean and covariance for stochastic ones.  calls: calls of the Denoiser a step, None where
    the sampler chooses its own steps.  extra: calls that a walk of S steps makes beyond S, None where
    they depend on the grid.
    """

    run: Callable[..., Walk]
    orders: Mapping[str, float]
    calls: int | None
    stochastic: bool
    summary: str
    extra: Callable[[int], int] | None = lambda steps: 0

    @property
    def order(self) -> float:
        """The least of the orders; 0 for what solves no ODE by steps of its caller's."""
        return min(self.orders.values(), default=0)


def _advance(generator: Walk, prediction: Prediction | None) -> Query | Tensor:
    """The sampler's next query once it has been sent the Prediction (None starts it), or x_0 where it ends."""
    try:
        with torch.no_grad():
            return next(generator) if prediction is None else generator.send(prediction)
    except StopIteration as end:
        return end.value


def walk(
    denoiser: Denoiser,
    x_T: Tensor,
    sampler: Sampler,
    times: Tensor,
    noise: Noise,
    cond: Cond | None = None,
) -> Iterator[tuple[Tensor, Tensor, Prediction | None]]:
    """Yield (t, x_t, Prediction) for every query of the sampler, and at last (s, x_s, None), the end of the grid."""
    steps = grids.pairs(times)
    generator = sampler(x_T, steps, denoiser.schedule, noise)
    prediction = None
    try:
        while isinstance(asked := _advance(generator, prediction), Query):
            with torch.no_grad():
                (prediction,) = ask(denoiser, [under(asked, cond)])
            yield asked.t, asked.x, prediction
        yield steps[-1][1], asked, None
    finally:
        generator.close()


def under(query: Query, cond: Cond | None) -> Query:
    """The query of a sampler, under the conditions of its walk."""
    return replace(query, cond=cond)


def together(denoiser: Denoiser, walks: Sequence[tuple[Walk, Cond | None]]) -> list[Tensor]:
    """x_0 of every walk, a sampler's generator with its cond; what they ask at a time is one call of the denoiser.

    A walk's rows get what they would get alone, whatever sampler, times and conditions the others have.
    """
    waiting: list[Query | Tensor] = [_advance(generator, None) for generator, _ in walks]
    while at := [i for i, asked in enumerate(waiting) if isinstance(asked, Query)]:
        with torch.no_grad():
            answers = ask(denoiser, [under(waiting[i], walks[i][1]) for i in at])  # type: ignore[arg-type]
        for i, prediction in zip(at, answers, strict=True):
            waiting[i] = _advance(walks[i][0], prediction)
    return waiting  # type: ignore[return-value]


def named(sampler: str | Sampler, table: dict[str, Row]) -> Sampler:
    """A sampler from its name, its name with options ("ddim:eta=0.5"), or itself."""
    if isinstance(sampler, str):
        return call_with("sampler", sampler, {name: row.run for name, row in table.items()})
    return sampler


def grid_of(grid: str | Tensor | None, schedule: Schedule, steps: int) -> Tensor:
    """The visited times from a row of GRIDS by name, from a list of times, or the default (trailing)."""
    if grid is not None and not isinstance(grid, str):
        return torch.as_tensor(grid, dtype=torch.float64)
    return call_with("grid", grid or "trailing", grids.GRIDS)(schedule, steps)


def no_noise(step: int) -> Tensor:
    """The noise of a walk that has none."""
    raise ValueError("this walk adds no noise, and the sampler asks for some; take eta=0, churn=0 or another sampler")


def floating(x: Tensor) -> Tensor:
    """x, a state, which is no whole numbers."""
    if not x.is_floating_point():
        raise ValueError(f"a state is made of floats, in codec units (codec.encode(x)); got {x.dtype}")
    return x


def noise_of(seeds: Sequence[int] | Tensor | None, x_T: Tensor) -> RowNoise:
    """Each row's own noise; without seeds, row b has seed b."""
    return RowNoise(range(len(x_T)) if seeds is None else seeds, x_T)
