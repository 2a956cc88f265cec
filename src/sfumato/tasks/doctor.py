"""Doctor: every sampler's declared order, measured against exact solutions.

Deterministic samplers walk the probability-flow ODE of a Gaussian mixture, whose denoiser is exact, in float64; their
error is the root mean square distance to where the ODE leads (`testbed.flow`, by scipy).  Stochastic ones make samples
of Gaussian data; the mean and covariance of what they make is propagated exactly (`testbed.moments`), and their error
is its distance to the truth.  The order is the slope of log error over log steps,

    error ~ S^-order,   over an interval that ends before sigma = 0, in equal steps of a row of SPACINGS     (1)

and passes if it is at least the declared one minus SLACK.  The adaptive sampler passes if its error is at most ten
times its tolerance.  The errors at 10, 20 and 50 calls are those of the whole way, from t = 1 to t = 0, on GRID.

E. Hairer, S. Norsett, G. Wanner, "Solving Ordinary Differential Equations I" (1993), sec. II.3
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sfumato import grids, schedules
from sfumato.denoiser import Denoiser
from sfumato.likelihood import log_likelihood
from sfumato.noise import PRIOR, normal
from sfumato.samplers import SAMPLERS, Row
from sfumato.samplers.loop import named, walk
from sfumato.samplers.refused import why
from sfumato.schedules import Schedule
from sfumato.testbed import GaussianMixture
from sfumato.testbed.flow import flow
from sfumato.testbed.moments import fitted_order, weak_errors

SLACK = 0.2
STEPS = (64, 128, 256)
WEAK_STEPS = (32, 64, 128)
CALLS = (10, 20, 50)
TOLERANCES = tuple(10.0**-k for k in range(2, 9))
GRID = "logsnr"
SCHEDULES = ("linear_continuous", "cosine_continuous", "rectified", "edm:sigma_max=5")  # closed forms
NATS = 1e-4  # the error allowed of the log-likelihood
ROWS = 12  # trajectories

To = Callable[[Schedule, Tensor], Tensor]

# a coordinate u(t) and its inverse, and the logsnr between which steps are equal in it
SPACINGS: dict[str, tuple[To, To, tuple[float, float]]] = {
    "t": (lambda schedule, t: t, lambda schedule, u: u, (-3.0, 3.0)),
    "logsnr": (
        lambda schedule, t: -schedule.logsnr(t),
        lambda schedule, u: schedule.time_of_logsnr(-u),
        (-3.0, 3.0),
    ),
    "ratio": (
        lambda schedule, t: torch.exp(-0.5 * schedule.logsnr(t)),
        lambda schedule, u: schedule.time_of_logsnr(-2 * u.log()),
        (-1.0, 2.5),
    ),
}


def _matrix(*rows: tuple[float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


MIXTURE = GaussianMixture(
    torch.tensor([0.5, 0.2, 0.3]),
    _matrix((1.2, 0.3), (-0.9, 0.8), (0.1, -1.3)),
    torch.stack(
        [
            _matrix((0.30, 0.12), (0.12, 0.20)),
            _matrix((0.15, -0.05), (-0.05, 0.40)),
            _matrix((0.60, 0.25), (0.25, 0.25)),
        ]
    ),
)
NARROW = GaussianMixture(
    torch.tensor([0.4, 0.6]),
    _matrix((0.7, -0.2), (-0.6, 0.5)),
    torch.stack([_matrix((0.05, 0.02), (0.02, 0.02)), _matrix((0.01, 0.0), (0.0, 0.3))]),  # eigenvalues from 0.01 on
)
GAUSSIAN = GaussianMixture(torch.ones(1), _matrix((0.6, -0.4)), _matrix((0.8, 0.35), (0.35, 0.3))[None])


@dataclass(frozen=True)
class Fit:
    """One fitted order: of a sampler, on a schedule, in equal steps of a spacing (or the whole way on GRID)."""

    schedule: str
    spacing: str
    declared: float
    measured: float

    @property
    def passes(self) -> bool:
        return self.measured >= self.declared - SLACK


@dataclass(frozen=True)
class Finding:
    """What was measured of a row: its fits, the fitted order of the whole way, errors at CALLS; for the adaptive one
    the greatest ratio of error to tolerance."""

    sampler: str
    row: Row
    fits: tuple[Fit, ...]
    whole: float | None
    at_calls: tuple[float, ...]
    over_tolerance: float | None = None

    @property
    def passes(self) -> bool:
        return all(fit.passes for fit in self.fits) and (self.over_tolerance or 0) <= 10


def between(schedule: Schedule, spacing: str, steps: int) -> Tensor:
    """Times (S + 1,), falling, equally spaced in a coordinate over its interval."""
    to, back, logsnrs = SPACINGS[spacing]
    ends = schedule.time_of_logsnr(torch.tensor(logsnrs, dtype=torch.float64))
    u = to(schedule, ends)
    times = back(schedule, torch.linspace(float(u[0]), float(u[1]), steps + 1, dtype=torch.float64))
    times[0], times[-1] = ends[0], ends[1]
    return times


def _states(schedule: Schedule, t: Tensor) -> Tensor:
    """Draws of x_t of the mixture, (ROWS, 2), float64."""
    eps = normal(range(ROWS), (2,), PRIOR).double()
    return schedule.alpha(t) * MIXTURE.sample(ROWS) + schedule.sigma(t) * eps


@lru_cache(maxsize=64)
def _ends(schedule: str, start: float, end: float) -> tuple[Tensor, Tensor]:
    """Where trajectories start, and where the ODE leads them."""
    rule = schedules.from_spec(schedule)
    x = _states(rule, torch.tensor(start, dtype=torch.float64))
    return x, flow(MIXTURE, rule, x, start, end)


def walked(sampler: str, denoiser: Denoiser, x: Tensor, times: Tensor, noise: Callable[[int], Tensor]) -> Tensor:
    """Where a sampler leads x along the times."""
    *_, (_, x, _) = walk(denoiser, x, named(sampler, SAMPLERS), times, noise)
    return x


def _silent(step: int) -> Tensor:
    return torch.zeros(ROWS, 2, dtype=torch.float64)


def trajectory_error(sampler: str, schedule: str, times: Tensor) -> float:
    """Root mean square distance of a deterministic sampler's ends to those of the ODE."""
    x, end = _ends(schedule, float(times[0]), float(times[-1]))
    found = walked(sampler, MIXTURE.denoiser(schedules.from_spec(schedule)), x, times, _silent)
    return float((found - end).square().mean().sqrt())


def errors(sampler: str, schedule: str, grids: list[Tensor]) -> list[float]:
    """The error of a row of SAMPLERS on each grid of times, of the kind that the row has."""
    if not SAMPLERS[sampler.partition(":")[0]].stochastic:
        return [trajectory_error(sampler, schedule, times) for times in grids]

    def run(denoiser: Denoiser, x: Tensor, times: Tensor, noise: Callable[[int], Tensor]) -> Tensor:
        return walked(sampler, denoiser, x, times, noise)

    return weak_errors(run, GAUSSIAN, schedules.from_spec(schedule), grids)


def fit(sampler: str, schedule: str, spacing: str) -> Fit:
    """The fitted order of a row on a schedule and a spacing (1)."""
    row, rule = SAMPLERS[sampler], schedules.from_spec(schedule)
    steps = WEAK_STEPS if row.stochastic else STEPS
    found = errors(sampler, schedule, [between(rule, spacing, s) for s in steps])
    return Fit(schedule, spacing, row.orders[spacing], fitted_order(steps, found))


def over_tolerance(sampler: str, schedule: str) -> float:
    """The adaptive sampler's greatest error in units of its tolerance, over TOLERANCES."""
    times = torch.tensor([1.0, 0.0], dtype=torch.float64)
    return max(trajectory_error(f"{sampler}:tolerance={tol}", schedule, times) / tol for tol in TOLERANCES)


def calls_of(sampler: str, schedule: Schedule, times: Tensor) -> int:
    """How often a sampler asks on its way along the times."""
    generator = walk(MIXTURE.denoiser(schedule), _states(schedule, times[0]), named(sampler, SAMPLERS), times, _silent)
    return sum(1 for _ in generator) - 1


def within(sampler: str, schedule: str, calls: int) -> tuple[str, Tensor] | None:
    """The sampler and the grid of the whole way with the most steps (or least tolerance) that ask so often at most."""
    rule = schedules.from_spec(schedule)
    if SAMPLERS[sampler].calls is None:
        whole = torch.tensor([1.0, 0.0], dtype=torch.float64)
        options = [f"{sampler}:tolerance={10 ** -(k / 4)}" for k in range(32, 1, -1)]
        return next(((option, whole) for option in options if calls_of(option, rule, whole) <= calls), None)
    fitting, too_many = 0, calls + 1  # calls rise with steps
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        if calls_of(sampler, rule, grids.GRIDS[GRID](rule, middle)) <= calls:
            fitting = middle
        else:
            too_many = middle
    return (sampler, grids.GRIDS[GRID](rule, fitting)) if fitting else None


def findings(schedule: str = SCHEDULES[0]) -> Iterator[Finding]:
    """Every row of SAMPLERS that goes with a continuous schedule, measured on it."""
    rule = schedules.from_spec(schedule)
    if rule.steps is not None:
        raise ValueError(
            f"schedule {schedule!r} has steps, between which no order of convergence is defined; "
            f"take a continuous one: {', '.join(SCHEDULES)}"
        )
    for name, row in SAMPLERS.items():
        if (not row.orders and row.calls is not None) or why(name, SAMPLERS, rule, torch.tensor([1.0, 0.0])):
            continue
        fits = tuple(fit(name, schedule, spacing) for spacing in row.orders)
        ways = [within(name, schedule, calls) for calls in CALLS]
        at_calls = tuple(math.nan if way is None else errors(way[0], schedule, [way[1]])[0] for way in ways)
        if row.calls is None:
            yield Finding(name, row, fits, None, at_calls, over_tolerance(name, schedule))
            continue
        steps = WEAK_STEPS if row.stochastic else STEPS
        whole = errors(name, schedule, [grids.GRIDS[GRID](rule, s) for s in steps])
        yield Finding(name, row, fits, fitted_order(steps, whole), at_calls)


@dataclass(frozen=True)
class Likelihood:
    """Greatest error of log p(x_0) by the ODE, nats: with the own density at t = 1 as prior, with the normal one."""

    own: float
    normal: float

    @property
    def passes(self) -> bool:
        return self.own <= NATS

    def __str__(self) -> str:
        return (
            f"log-likelihood by the ODE: error {self.own:.1g} nats with the mixture's own density at t = 1 as prior "
            f"(at most {NATS:g}), {self.normal:.1g} with the usual normal one: {'ok' if self.passes else 'FALLS SHORT'}"
        )


def likelihood(schedule: str = SCHEDULES[0]) -> Likelihood:
    """The ODE's log-likelihood of draws of a mixture with eigenvalues down to 0.01, against the mixture's density."""
    rule, x_0 = schedules.from_spec(schedule), NARROW.sample(ROWS)
    denoiser, truth = NARROW.denoiser(rule), NARROW.log_prob(x_0)
    one = torch.ones(ROWS, dtype=torch.float64)

    def own(x_1: Tensor) -> Tensor:
        return NARROW.log_prob_at(x_1, one[: len(x_1)], rule)

    errors = (log_likelihood(denoiser, x_0, prior=prior, tolerance=1e-6) - truth for prior in (own, None))
    return Likelihood(*(float(error.abs().max()) for error in errors))


def table(found: list[Finding]) -> list[tuple[str, ...]]:
    """Findings as rows for a person: sampler, calls a step, declared, measured, whole way, errors, verdict."""
    rows = []
    for finding in found:
        fits = finding.fits
        same = len({fit.declared for fit in fits}) == 1
        declared = f"{fits[0].declared:g}" if same else " ".join(f"{fit.declared:g} ({fit.spacing})" for fit in fits)
        rows.append(
            (
                finding.sampler,
                "adaptive" if finding.row.calls is None else f"{finding.row.calls}",
                "10 tolerance" if finding.over_tolerance is not None else declared,
                f"{finding.over_tolerance:.2g} tolerance"
                if finding.over_tolerance is not None
                else " ".join(f"{fit.measured:.2f}" for fit in fits),
                "" if finding.whole is None else f"{finding.whole:.2f}",
                *("–" if math.isnan(error) else f"{error:.2g}" for error in finding.at_calls),
                "ok" if finding.passes else "FALLS SHORT",
            )
        )
    return rows


HEADS = (
    "sampler",
    "calls a step",
    "declared order",
    f"measured ({', '.join(SPACINGS)})",
    "1 to 0",
    *(f"at {calls}" for calls in CALLS),
    "",
)

LEGEND = f"""\
Orders: the slope of log error over log steps, in equal steps of t, of logsnr and of sigma/alpha, over an interval that
ends before sigma = 0; "1 to 0": over the whole way on grid {GRID}, where the last steps may hold it back.  Errors at so
many calls: over the whole way; of deterministic samplers the distance to the exact end of the trajectory (root mean
square, data of about unit size), of stochastic ones that of mean and covariance to the truth: not to be compared.
The adaptive sampler makes some 50 calls at least, whatever its tolerance."""


def document(schedule: str, found: list[Finding], density: Likelihood) -> dict[str, Any]:
    """Findings as JSON."""
    return {
        "schedule": schedule,
        "log_likelihood_error": {"own_prior": density.own, "normal_prior": density.normal, "passes": density.passes},
        "samplers": {
            finding.sampler: {
                "calls_a_step": finding.row.calls,
                "declared": dict(finding.row.orders),
                "measured": {fit.spacing: fit.measured for fit in finding.fits},
                "whole_way": finding.whole,
                "error_at_calls": dict(zip(map(str, CALLS), finding.at_calls, strict=True)),
                "over_tolerance": finding.over_tolerance,
                "passes": finding.passes,
            }
            for finding in found
        },
    }
