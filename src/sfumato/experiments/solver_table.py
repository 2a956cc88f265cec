"""solver-table: how good samples are by the number of evaluations, for every good sampler.

A sampler is given 3, 5, 8, 10, 15 or 20 evaluations of the network a sample, not steps: Heun asks twice a step, and
some methods ask more often at their start.  A dash stands where a sampler cannot have that number.  Two numbers each:

    Frechet distance   of the features of n samples and of held-out pictures: what one wants of samples
    rms                sqrt(mean |x_0 - x_0*|^2 / D),  [-1, 1] units                                       (1)

with x_0* where the same model's probability-flow ODE leads from the same noise, by many small steps: what one wants of
a solver.  It needs no features and has no floor; stochastic samplers solve no ODE and have none.

Published figures are those that the papers' abstracts and DDIM's table 1 state, of CIFAR-10 and three different
networks; nothing else is quoted.

J. Song et al., arXiv:2010.02502, table 1; Q. Zhang, Y. Chen, arXiv:2204.13902, its abstracts (arXiv and ICLR 2023);
W. Zhao et al., arXiv:2302.04867, abstract
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sfumato import grids
from sfumato.experiments import figures
from sfumato.experiments.ddim_table import SCORED, SPENT
from sfumato.experiments.published import SOLVER_CELLS, Cells, apart, column, columns, rank_correlation
from sfumato.experiments.report import Report, Request, remembered
from sfumato.experiments.sampled import (
    ERROR,
    SETS,
    Bench,
    Setting,
    bench,
    by_chance,
    errors,
    frechet,
    heat,
    how_many,
    in_codec_units,
    measured,
)
from sfumato.samplers import SAMPLERS
from sfumato.schedules import Schedule
from sfumato.tasks.doctor import calls_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = (
    "sampler",
    "steps",
    "grid",
    "n",
    "frechet",
    ERROR,
    "above_floor",
    "rms_to_ode",
    "published_fid",
    "kernel",
    *SCORED,
    *SPENT,
)
SOLVERS = (
    "ddim",
    "heun",
    "dpmpp-2m",
    "dpmpp-3m",
    "unipc-2",
    "unipc-3",
    "deis-2",
    "deis-3",
    "plms",
    "dpmpp-2m-sde",
    "ancestral",
)
GRID = "logsnr"
ODE = ("dpmpp-3m", "heun")  # what solves the ODE by many steps, and what checks it
ALIKE = 0.5  # a rank correlation below it is called none
PLAIN = 1.0  # the guidance of the plain conditional model
SHOWN = ("ddim", "heun", "dpmpp-2m", "unipc-3", "dpmpp-2m-sde", "ancestral")

Found = Mapping[tuple[str, int], Mapping[str, Any]]  # (sampler, evaluations) -> scores


@dataclass(frozen=True)
class Size:
    """n samples a cell, their evaluations; so many rows of (1), and the steps of the ODE's own solution."""

    n: int
    evaluations: tuple[int, ...]
    rows: int
    fine: int


QUICK = Size(200, (3, 5, 8, 10, 15, 20), 16, 200)
FULL = Size(1000, (3, 5, 8, 10, 15, 20), 64, 400)


def run(request: Request) -> Report:
    size = QUICK if request.quick else FULL
    subject = bench(request)
    title = subject.network.title
    steps = cells(size, subject.model.denoiser.schedule)
    found = {
        (name, asked): measured(request, subject, Setting(name, s, GRID, PLAIN, size.n), f"{name}-{asked}")
        for (name, asked), s in steps.items()
    }
    distances, doubt = ode_distances(request, subject, size, steps)
    floor, noise = by_chance(subject.floors(size.n))
    return Report(
        title="Every sampler at few evaluations",
        shown=(__doc__ or "").partition("\n\n")[2],
        see=see(found, distances, floor, title),
        basis=[
            *subject.basis,
            f"samples of the plain conditional model (w = 1), labels in turn, grid `{GRID}`, {how_many(size.n)}",
            f"at most {SETS} disjoint sets of {size.n:,} real pictures, labels in turn: {floor:.3g} ± {noise:.2g}",
            f"rms: {size.rows} rows against {ODE[0]} with {fine_steps(subject, size)} steps, from which {ODE[1]} with "
            f"as many ends {doubt:.2g} away",
            "published figures: arXiv:2010.02502 (table 1), 2204.13902 (its abstracts, arXiv and ICLR 2023) and "
            "2302.04867 (abstract), CIFAR-10",
        ],
        heads=("sampler", *(f"{asked} evaluations" for asked in size.evaluations)),
        numbers=number_lines(found, distances, size, title),
        columns=COLUMNS,
        rows=[
            _row(name, steps[name, asked], found[name, asked], floor, distances.get((name, asked)), asked)
            for name, asked in found
        ],
        figure=_draw(found, distances, size, floor, title),
        facts={**subject.facts, "guidance": PLAIN},
    )


def steps_for(sampler: str, evaluations: int, schedule: Schedule) -> int | None:
    """The most steps with which a sampler asks exactly so often, by letting it walk; None if there are none such."""
    for steps in range(min(evaluations, schedule.steps or evaluations), 0, -1):
        calls = calls_of(sampler, schedule, grids.GRIDS[GRID](schedule, steps))
        if calls <= evaluations:  # fewer steps ask no more often
            return steps if calls == evaluations else None
    return None


def cells(size: Size, schedule: Schedule) -> dict[tuple[str, int], int]:
    """(sampler, evaluations) -> steps, of all that can be."""
    every = {(name, asked): steps_for(name, asked, schedule) for name in SOLVERS for asked in size.evaluations}
    return {cell: steps for cell, steps in every.items() if steps is not None}


def solves(sampler: str) -> bool:
    """Whether it solves the ODE."""
    return not SAMPLERS[sampler].stochastic


def fine_steps(subject: Bench, size: Size) -> int:
    return min(size.fine, subject.model.denoiser.schedule.steps or size.fine)


def ode_distances(
    request: Request, subject: Bench, size: Size, steps: Mapping[tuple[str, int], int]
) -> tuple[dict[tuple[str, int], float], float]:
    """(1) of every deterministic cell, and of the check against the solution."""
    fine = fine_steps(subject, size)
    truth, check = (landed(request, subject, size.rows, name, fine) for name in ODE)
    found = {
        (name, asked): rms(landed(request, subject, size.rows, name, s) - truth)
        for (name, asked), s in steps.items()
        if solves(name)
    }
    return found, rms(check - truth)


def rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def landed(request: Request, subject: Bench, rows: int, sampler: str, steps: int) -> Tensor:
    """Where a sampler leads the first rows, codec units (rows, C, H, W), before they are rounded to levels."""

    def walk() -> dict[str, Tensor]:
        model = subject.model
        walked = model.trajectory(range(rows), model.labels(rows), request.seed, sampler, steps, GRID, PLAIN)
        *_, (_, x, _) = walked
        return {"x": x.cpu()}

    key = {**subject.key, "rows": rows, "sampler": sampler, "steps": steps}
    return remembered(request, key, f"ode-{sampler}-{steps}", walk)["x"]


def see(found: Found, distances: Cells, floor: float, title: str) -> str:
    """What the numbers say; every sentence is computed."""
    return "\n\n".join(
        [
            _winners(found, distances, floor, title),
            _alike(distances),
            _agreement(found, distances, title),
            _stochastic(found),
            _beside_published(found, title),
        ]
    )


def _winners(found: Found, distances: Cells, floor: float, title: str) -> str:
    every, chance = frechet(found), errors(found)
    lines = [
        f"**Best by column.** Real pictures of the same labels have {title} {floor:.3g} at this n.  Cells that differ "
        "by less than twice the standard error of their difference are as good within chance."
    ]
    for asked in columns(frechet(found)):
        scores, far = column(every, asked), column(distances, asked)
        best = min(scores, key=lambda name: scores[name])
        alike = [name for name in scores if name != best and not apart(every, chance, (name, asked), (best, asked))]
        line = f"At {asked} evaluations {best} has {scores[best]:.3g} ({scores[best] / floor:.2f} times real pictures)"
        line += f", as good within chance: {', '.join(alike)}" if alike else ""
        if far:
            nearest = min(far, key=lambda name: far[name])
            line += f"; nearest to the ODE is {nearest} (rms {far[nearest]:.2g})"
        lines.append(line + ".")
    return " ".join(lines)


def _alike(distances: Cells) -> str:
    """Samplers that took the same way: with few steps all of them are long, and a long step is DDIM's."""
    groups: dict[tuple[int, float], list[str]] = {}
    for (name, asked), far in distances.items():
        groups.setdefault((asked, round(far, 9)), []).append(name)
    same = [f"{' and '.join(names)} at {asked}" for (asked, _), names in groups.items() if len(names) > 1]
    told = "; ".join(same) or "none"
    return (
        f"**The same way.** Equal to the last digit are: {told}.  Samplers take a step that is too long for their "
        "polynomial as DDIM does (`exponential.long`), and with few steps those can be all."
    )


def _agreement(found: Found, distances: Cells, title: str) -> str:
    """Whether the better solver is the better sampler."""
    known = {
        asked: rank_correlation(frechet(found), {cell: x for cell, x in distances.items() if cell[1] == asked})
        for asked in columns(distances)
    }
    said = ", ".join(f"{x:.2f} at {asked}" for asked, x in known.items())
    line = (
        f"**Better solver, better samples?** The rank correlation of {title} and rms over the deterministic samplers "
        f"is {said} evaluations."
    )
    if low := [str(asked) for asked, x in known.items() if x < ALIKE]:
        line += (
            f"  At {', '.join(low)} what is nearer to the ODE is not better by these features: the solvers' errors "
            "there are less than the model's own, or of a kind (smoother, more contrast) that the features like."
        )
    return line


def _stochastic(found: Found) -> str:
    """From how many evaluations noise on the way costs nothing."""
    scores, chance, lines = frechet(found), errors(found), ["**Noise on the way.**"]
    for name in [name for name in SOLVERS if not solves(name)]:
        caught = []
        for asked in columns(frechet(found)):
            here = column(scores, asked)
            best = min((other for other in here if solves(other)), key=lambda other: here[other], default=None)
            if name in here and best is not None:
                worse = here[name] > here[best] and apart(scores, chance, (name, asked), (best, asked))
                caught += [] if worse else [asked]
        told = f"at {', '.join(map(str, caught))} evaluations" if caught else "at none of these numbers"
        lines.append(f"{name} is as good as the best deterministic sampler {told}.")
    return " ".join(lines)


def _beside_published(found: Found, title: str) -> str:
    """The order of the published samplers, there and here, at every number that has two of them."""
    scores, lines = frechet(found), ["**Beside the published.**"]
    for asked in columns(frechet(found)):
        ours = column(scores, asked)
        theirs = {name: x for name, x in column(SOLVER_CELLS, asked).items() if name in ours}
        if len(theirs) < 2:
            continue
        paper, here = (sorted(theirs, key=lambda name: row[name]) for row in (theirs, ours))
        gap = ours["ddim"] / ours[paper[0]] if "ddim" in theirs else math.nan
        line = f"At {asked} evaluations the order there is {' < '.join(paper)}, here {' < '.join(here)}"
        if "ddim" in theirs:
            line += f"; DDIM is {theirs['ddim'] / theirs[paper[0]]:.2f} times {paper[0]} there, {gap:.2f} times here"
        lines.append(line + ".")
    lines.append(
        f"The figures there are FID of CIFAR-10 from three papers with three networks, each on its own grid; here all "
        f"are {title} of one network on grid `{GRID}`, whose floor draws ratios towards 1."
    )
    return " ".join(lines)


def number_lines(found: Found, distances: Cells, size: Size, title: str) -> list[list[str]]:
    """A line a sampler: Frechet distance; rms."""
    lines = []
    for name in SOLVERS:
        texts = []
        for asked in size.evaluations:
            scores, far = found.get((name, asked)), distances.get((name, asked))
            text = "-" if scores is None else f"{scores['frechet']:.3g} ± {scores[ERROR]:.2g}"
            texts.append(text + (f"; {far:.2g}" if far is not None else ""))
        lines.append([f"{name}: {title}" + ("; rms" if solves(name) else ""), *texts])
    for name in dict.fromkeys(name for name, _ in SOLVER_CELLS):
        texts = [f"{SOLVER_CELLS.get((name, asked), '-')}" for asked in size.evaluations]
        lines.append([f"{name}: published FID, CIFAR-10", *texts])
    return lines


def _row(name: str, steps: int, scores: Mapping[str, Any], floor: float, far: float | None, asked: int) -> list[Any]:
    """A row of the CSV."""
    distance, paper = scores["frechet"], SOLVER_CELLS.get((name, asked))
    measures = [scores["kernel"]["value"], *(scores[column] for column in (*SCORED, *SPENT))]
    return [name, steps, GRID, scores["n"], distance, scores[ERROR], distance - floor, far, paper, *measures]


def _draw(found: Found, distances: Cells, size: Size, floor: float, title: str) -> Figure:
    drawn = figures.figure(13, 13)
    axes = drawn.subplot_mosaic([["a", "b"], ["c", "d"], ["e", "e"]], height_ratios=(1, 1.1, 1.2))
    under = [f"{asked}" for asked in size.evaluations]
    scores = frechet(found)
    table = [[scores.get((name, asked)) for asked in size.evaluations] for name in SOLVERS]
    heat(axes["a"], table, SOLVERS, under, f"{title}, {how_many(size.n)}; real pictures {floor:.3g}")
    own = [name for name in SOLVERS if solves(name)]
    table = [[distances.get((name, asked)) for asked in size.evaluations] for name in own]
    heat(axes["b"], table, own, under, "rms distance to the ODE's own solution")
    marks = "osD^v<>Pp*X"
    for k, name in enumerate(SOLVERS):
        for key, values in (("c", scores), ("d", distances)):
            points = sorted((asked, x) for (other, asked), x in values.items() if other == name)
            if points:
                axes[key].loglog(*zip(*points, strict=True), f"{marks[k]}-", ms=4, lw=1, color=f"C{k % 10}", label=name)
    axes["c"].axhline(floor, color="grey", lw=1, label="real pictures")
    axes["c"].set(ylabel=title)
    axes["d"].set(ylabel="rms to the ODE's solution, [-1, 1] units")
    for key in "cd":
        axes[key].legend(fontsize=7, ncols=2)
        axes[key].set_xticks(size.evaluations, under)
        axes[key].minorticks_off()
    for key in "abcd":
        axes[key].set_xlabel("evaluations of the network a sample")
    _strip(axes["e"], found, size)
    return drawn


def _strip(axis: Any, found: Found, size: Size) -> None:
    """The first samples of some cells; white where a sampler cannot have that number."""
    each = max(1, 18 // len(size.evaluations))
    blank = np.full_like(next(iter(found.values()))["images"][:each], 255)
    sheet = [
        np.concatenate(
            [found[name, asked]["images"][:each] if (name, asked) in found else blank for asked in size.evaluations]
        )
        for name in SHOWN
    ]
    under = [f"{asked}" if k == each // 2 else "" for asked in size.evaluations for k in range(each)]
    figures.pictures(axis, in_codec_units(torch.from_numpy(np.stack(sheet))), SHOWN, under, "the first samples")
