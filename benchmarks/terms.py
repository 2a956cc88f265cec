"""What the table is written in: sides, measures, and how a measure is made tiny."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Side:
    """One of those that are compared: its name on the page, a row of `worker.LIBRARIES`, and what that is told."""

    name: str
    library: str
    options: Options


@dataclass(frozen=True)
class Measure:
    """A task, and the sides that do it in turn, round by round."""

    name: str
    task: str
    """A row of `worker.TASKS`, or "command": a fresh process by itself."""
    value: str
    """The number of a result that is compared, such as "ms"."""
    unit: str
    """The same in words."""
    sides: tuple[Side, ...]
    columns: tuple[str, ...] = ()
    """Sides that all are held against: a column of ratios each."""
    rounds: int = 7
    better: Literal["less", "more"] = "less"
    word: str = "fast"
    """A ratio of 2 means: twice as ..."""
    more: tuple[str, ...] = ()
    """Other numbers of the last result, and facts of the side, that the page shows."""
    fresh: bool = False
    """Each round a new process: for a peak of memory, and for what is done once."""
    note: str = ""


def each(sides: tuple[Side, ...], **options: Any) -> tuple[Side, ...]:
    """The same sides with more options."""
    return tuple(replace(side, options={**side.options, **options}) for side in sides)


# --tiny: what the options and rounds become when it is only asked whether everything runs
TINY: Options = {
    "network": "tiny",
    "calls": 1,
    "warm": 0,
    "n": 20,
    "rows": 10,
    "slices": 2,
    "reference": 100,
    "minute": 2.0,
    "minutes": 2,
}


def tiny(measure: Measure) -> Measure:
    """The measure at sizes that mean nothing; at most 4 steps of a sampler, but those of a card."""

    def small(side: Side) -> Side:
        few = {key: TINY.get(key, value) for key, value in side.options.items()}
        return replace(side, options={**few, **({"steps": 4} if few.get("steps") else {})})

    return replace(measure, sides=tuple(map(small, measure.sides)), rounds=min(measure.rounds, 2))
