"""progressive: what the model believes x_0 to be, while t falls.

On its way down the reverse chain the denoiser is asked for x0(x_t, t) at every step.  Early on, that is the mean of
all pictures that x_t may still become; then coarse shape, then detail is decided.  Of N samples are measured

    to_the_end(t) = sqrt(mean |x0(x_t, t) - x_0|^2 / D)                 how far the belief is from where the chain ends
    spread(t)     = sqrt(mean |x0(x_t, t) - its mean over the class|^2 / D)      how much has been decided

J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239, section 4.3, figure 6
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato.experiments import chains, figures
from sfumato.experiments.chains import Film
from sfumato.experiments.report import Report, Request, remembered
from sfumato.experiments.trained import Trained, trained
from sfumato.schedules import Schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("i", "t", "logsnr", "to_the_end", "spread")
SHOWN_AT = (1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0)
SHOWN = 10  # samples in the figure

SEE = """\
At t = 1 a well trained model believes every sample of a class to be the same grey mean of that class (of all data, if
it has no classes).  The shape is decided in the middle of the chain, while x_t on the left still looks like noise, and
the last steps only clean up: the distance to the end falls to 0 as the spread rises to that of the samples.
"""


@dataclass(frozen=True)
class Size:
    """Samples, steps of the ancestral chain, frames kept of it, and samples made (and remembered) at a time."""

    samples: int
    steps: int
    frames: int = 50
    block: int = 50


QUICK, FULL = Size(100, 100), Size(400, 1000)


def run(request: Request) -> Report:
    size = QUICK if request.quick else FULL
    subject = trained(request)
    film, steps = walk(request, subject, size)
    labels = subject.model.labels(size.samples)
    rows = table(subject.model.denoiser.schedule, film, labels)
    by_time = {row[0]: row for row in rows}
    most = rows[-1][3]  # at t = 1
    halfway = next(row for row in rows if row[3] > most / 2)
    return Report(
        title="The predicted x_0 as t falls",
        shown=(__doc__ or "").partition("\n\n")[2],
        see=SEE,
        basis=[
            *subject.basis,
            f"{size.samples} samples, classes in turn, ancestral sampling in {steps} steps, x_0 clipped as in sampling",
        ],
        numbers=[
            ("distance to the end at t = 1", f"{most:.4f}"),
            ("half of that is left below i", f"{halfway[0]}"),
            ("spread at t = 1, and of the samples", f"{rows[-1][4]:.4f}, {by_time[0][4]:.4f}"),
        ],
        columns=COLUMNS,
        rows=rows,
        figure=_draw(film, rows, _names(subject, labels)),
    )


def walk(request: Request, subject: Trained, size: Size) -> tuple[Film, int]:
    """Frames of all samples' reverse chains, and the chain's steps; a stopped run goes on with the next block."""
    model = subject.model
    labels = model.labels(size.samples)
    steps = min(size.steps, model.denoiser.schedule.steps or size.steps)
    parts = []
    for first in range(0, size.samples, size.block):
        rows = range(first, min(first + size.block, size.samples))
        part = remembered(
            request,
            {**subject.key, **asdict(size)},
            f"samples-{first:05d}",
            partial(_block, subject, rows, labels, request.seed, steps, size.frames),
        )
        parts.append(part)
        request.say(f"samples {rows.start}..{rows.stop - 1} of {size.samples}")
    return Film(parts[0]["t"], *(torch.cat([part[name] for part in parts], 1) for name in ("x", "x0"))), steps


def _block(
    subject: Trained, rows: range, labels: Tensor | None, seed: int, steps: int, frames: int
) -> dict[str, Tensor]:
    chain = subject.model.trajectory(rows, labels, seed, "ancestral", steps)
    return vars(chains.keep_reverse(chain, steps, frames))


def table(schedule: Schedule, film: Film, labels: Tensor | None) -> list[list[Any]]:
    """The CSV's rows, from t = 0 to 1."""
    assert film.x0 is not None
    end = film.x[-1]
    groups = torch.zeros(len(end), dtype=torch.long) if labels is None else labels
    rows: list[list[Any]] = []
    for t, x0 in zip(film.t, film.x0, strict=True):
        centred = torch.cat([x0[groups == g] - x0[groups == g].mean(0) for g in groups.unique()])
        distances = [x.square().mean().sqrt().item() for x in (x0 - end, centred)]
        logsnr = schedule.logsnr(t).item()
        rows.append([chains.index(schedule, t.item()), t.item(), logsnr if t > 0 else None, *distances])
    return rows[::-1]


def _names(subject: Trained, labels: Tensor | None) -> list[str]:
    if labels is None:
        return [""] * SHOWN
    return [subject.model.config.label_names[k] for k in labels[:SHOWN].tolist()]


def _draw(film: Film, rows: list[list[Any]], names: list[str]) -> Figure:
    drawn = figures.figure(11, 7.5)
    left, right, below = drawn.subplot_mosaic([["x", "x0"], ["curve", "curve"]], height_ratios=(2.6, 1)).values()
    assert film.x0 is not None
    at = chains.nearest_frames(film, SHOWN_AT)
    times = [f"{film.t[k]:.1f}" for k in at]
    for axis, states, title in ((left, film.x, "x_t, by t"), (right, film.x0, "the predicted x_0 at the same t")):
        figures.pictures(axis, states[at, :SHOWN].transpose(0, 1), names, times, title)
    t = [row[1] for row in rows]
    below.plot(t, [row[3] for row in rows], label="distance of the predicted x_0 to the end of the chain")
    below.plot(t, [row[4] for row in rows], label="spread of the predicted x_0 within a class")
    below.set(xlabel="t", ylabel="root mean square", xlim=(1, 0))
    below.legend(fontsize=8)
    return drawn
