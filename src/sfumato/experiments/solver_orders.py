"""solver-orders: how fast every solver's error falls.

A solver of order p, in S equal steps, ends at a distance

    error ~ C S^-p                                                                                          (1)

from the exact end of the trajectory, a straight line of slope -p in logarithms.  The data are a mixture of three
Gaussians in the plane, whose denoiser, and so whose probability-flow ODE, is exact; where that leads is computed by
scipy's eighth-order method.  On the left over an interval that ends before sigma = 0, in equal steps of logsnr; on the
right what a user gets: the whole way from t = 1 to 0, by calls of the network.

C. Lu et al., arXiv:2206.00927, 2211.01095; W. Zhao et al., arXiv:2302.04867; Q. Zhang, Y. Chen, arXiv:2204.13902;
T. Karras et al., arXiv:2206.00364; L. Liu et al., arXiv:2202.09778
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sfumato import grids, schedules
from sfumato.experiments import figures
from sfumato.experiments.report import Report, Request
from sfumato.samplers import SAMPLERS
from sfumato.samplers.refused import why
from sfumato.tasks import doctor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("sampler", "schedule", "spacing", "steps", "calls", "error")
WHOLE = "whole way"
LEFT = "logsnr"

SEE = """\
On the left every solver's points lie on a straight line of the slope it declares (dotted: orders 1, 2 and 3), DDIM and
Euler on one and the same.  3M is of order 3 because it is started by a trapezoid and because its second derivative has
its factor 2; as usually shipped it measures 2.  UniPC's corrector gives an order for nothing.  On the right the gain in
practice: DPM-Solver++ 2M at 10 calls is closer than DDIM at 20, a Heun step costs two calls, and high orders pay off
only once steps are short: from some 15 calls on.  The last step, to sigma = 0, is of first order for all of them, so
the steepest lines flatten in the end.
"""


@dataclass(frozen=True)
class Size:
    """Step counts of both panels, and the schedules measured."""

    steps: tuple[int, ...]
    schedules: tuple[str, ...]


QUICK = Size((8, 16, 32, 64, 128), ("linear_continuous",))
FULL = Size((4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512), doctor.SCHEDULES)


def run(request: Request) -> Report:
    size, spaced = QUICK if request.quick else FULL, doctor.SPACINGS
    rows, numbers = [], []
    for schedule in size.schedules:
        for name in deterministic(schedule):
            rows += measured(name, schedule, size)
            request.say(f"{name} on {schedule}")
        numbers += [(f"{name}, {schedule}", orders(rows, name, schedule)) for name in deterministic(schedule)]
    return Report(
        title="The order of every solver",
        shown=(__doc__ or "").partition("\n\n")[2],
        see=SEE,
        basis=[
            f"mixture: that of `sfumato doctor`, three Gaussians in the plane, {doctor.ROWS} trajectories, float64",
            "interval: "
            + ", ".join(f"logsnr {low:g} to {high:g} in {name}" for name, (*_, (low, high)) in spaced.items()),
            f"whole way: grid {doctor.GRID}",
        ],
        numbers=numbers,
        heads=("sampler, schedule", "declared; measured in steps of t, logsnr, sigma/alpha; the whole way"),
        columns=COLUMNS,
        rows=rows,
        figure=_draw(rows, size.schedules[0]),
    )


def deterministic(schedule: str) -> list[str]:
    """The rows of SAMPLERS that solve the ODE by steps of their caller's, on a schedule."""
    ends = torch.tensor([1.0, 0.0])
    rule = schedules.from_spec(schedule)
    return [n for n, r in SAMPLERS.items() if r.orders and not r.stochastic and not why(n, SAMPLERS, rule, ends)]


def measured(name: str, schedule: str, size: Size) -> list[list[Any]]:
    """The CSV's rows of one sampler: every spacing, and the whole way."""
    rule, rows = schedules.from_spec(schedule), []
    for spacing in (*doctor.SPACINGS, WHOLE):
        for steps in size.steps:
            if spacing == WHOLE:
                times = grids.GRIDS[doctor.GRID](rule, steps)
            else:
                times = doctor.between(rule, spacing, steps)
            error = doctor.trajectory_error(name, schedule, times)
            rows.append([name, schedule, spacing, steps, doctor.calls_of(name, rule, times), error])
    return rows


def orders(rows: list[list[Any]], name: str, schedule: str) -> str:
    """Declared and fitted orders, from 64 steps on (of a quick run: from the last three counts)."""
    row, found = SAMPLERS[name], []
    for spacing in (*doctor.SPACINGS, WHOLE):
        here = [(r[3], r[5]) for r in rows if r[:3] == [name, schedule, spacing]]
        late = [point for point in here if point[0] >= 64]
        steps, errors = zip(*(late if len(late) > 2 else here[-3:]), strict=True)
        found.append(f"{doctor.fitted_order(steps, errors):.2f}")
    declared = sorted(set(row.orders.values()))
    return f"{' or '.join(f'{order:g}' for order in declared)}; {', '.join(found[:-1])}; {found[-1]}"


def _draw(rows: list[list[Any]], schedule: str) -> Figure:
    drawn = figures.figure(12, 6)
    left, right = drawn.subplots(1, 2)
    names = [name for name in deterministic(schedule) if name != "euler"]  # which is DDIM
    marks = "osD^v<>Pp*XH"
    for axis, spacing, column in ((left, LEFT, 3), (right, WHOLE, 4)):
        for k, name in enumerate(names):
            here = [r for r in rows if r[:3] == [name, schedule, spacing]]
            axis.plot(
                [r[column] for r in here], [r[5] for r in here], marker=marks[k % len(marks)], ms=4, lw=1, label=name
            )
        axis.set(xscale="log", yscale="log", ylabel="distance to the exact end, root mean square", ylim=(1e-10, 3))
    steps = sorted({r[3] for r in rows})
    for order in (1, 2, 3):
        left.plot(steps, [2 * (s / steps[0]) ** -order for s in steps], ":", color="grey", lw=1)
        left.annotate(f"order {order}", (steps[-1], 2 * (steps[-1] / steps[0]) ** -order), fontsize=8, color="grey")
    left.set(xlabel="steps", title=f"interval before sigma = 0, equal steps of logsnr ({schedule})")
    right.set(xlabel="calls of the network", title=f"from t = 1 to 0, grid {doctor.GRID}")
    right.legend(fontsize=8)
    return drawn
