"""What is refused: sampler with schedule or direction, a reason each.

Everything else in SAMPLERS x SCHEDULES x TARGETS x GRIDS runs, and a test runs it.  (Targets that do not go with a
schedule are in `parameterization.REFUSED`.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from sfumato.options import split
from sfumato.samplers.loop import Row, Sampler
from sfumato.schedules import Schedule


@dataclass(frozen=True)
class Refusal:
    """applies(name, row, schedule, times) says whether a row of SAMPLERS is refused, for a reason and a way out."""

    applies: Callable[[str, Row, Schedule, Tensor], bool]
    reason: str


REFUSED: tuple[Refusal, ...] = (
    Refusal(
        lambda name, row, schedule, times: row.stochastic and bool(times[0] < times[-1]),
        "it adds noise, and the way from data to noise is that of the ODE alone; take a deterministic sampler",
    ),
)


def check(sampler: str | Sampler, table: Mapping[str, Row], schedule: Schedule, times: Tensor) -> None:
    """Raise ValueError if a sampler named by a row of the table is refused."""
    name = split(sampler)[0] if isinstance(sampler, str) else ""
    if name not in table:
        return
    for refusal in REFUSED:
        if refusal.applies(name, table[name], schedule, times):
            raise ValueError(f"sampler {name!r} with schedule {schedule.spec['name']!r} is refused: {refusal.reason}")
