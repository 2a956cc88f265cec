"""What is refused: sampler with schedule or direction, a reason each.

Everything else in SAMPLERS x SCHEDULES x TARGETS x GRIDS runs, and a test runs it.  (Targets that do not go with a
schedule are in `parameterization.REFUSED`.  What depends on a whole model, such as noise on a bridge or another
schedule after training, is refused by `Model`.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from sfumato.corruptions import Cold
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
        lambda name, row, schedule, times: (name == "cold") != isinstance(schedule, Cold),
        "cold diffusion has no noise and no eps, which every sampler but 'cold' walks by, and 'cold' undoes nothing "
        "else; take sampler 'cold' with schedule 'cold', and with others 'ddim'",
    ),
    Refusal(
        lambda name, row, schedule, times: (
            (row.stochastic or name in ("cold", "meanflow")) and bool(times[0] < times[-1])
        ),
        "from data to noise leads the ODE alone, and no other way; take a deterministic sampler",
    ),
    Refusal(
        lambda name, row, schedule, times: name == "meanflow" and schedule.spec["name"] != "rectified",
        "an average velocity is that of the straight path; take schedule rectified",
    ),
)


NOISE = ("eta", "churn")  # options that make a deterministic row stochastic, unless they are 0


def adds_noise(sampler: str | Sampler, table: Mapping[str, Row]) -> bool:
    """Whether a sampler named by a row of the table is stochastic, by its row or by its options."""
    name, options = split(sampler) if isinstance(sampler, str) else ("", {})
    return name in table and (table[name].stochastic or any(options.get(option, 0) != 0 for option in NOISE))


def why(sampler: str | Sampler, table: Mapping[str, Row], schedule: Schedule, times: Tensor) -> str | None:
    """The reason for which a sampler named by a row of the table is refused, or None."""
    name = split(sampler)[0] if isinstance(sampler, str) else ""
    if name not in table:
        return None
    row = replace(table[name], stochastic=adds_noise(sampler, table))
    return next((refusal.reason for refusal in REFUSED if refusal.applies(name, row, schedule, times)), None)


def check(sampler: str | Sampler, table: Mapping[str, Row], schedule: Schedule, times: Tensor) -> None:
    """Raise ValueError if a sampler named by a row of the table is refused."""
    reason = why(sampler, table, schedule, times)
    if reason is not None:
        raise ValueError(f"sampler {sampler!r} with schedule {schedule.spec['name']!r} is refused: {reason}")
