"""reuse: deep features used again at neighbouring steps, what that costs in quality and gains in time.

Of every k evaluations the whole UNet is asked at the first, its first level alone at the others (`nn.reuse`).  For each
number of steps S and each k,

    Frechet distance   of the features of n samples and of held-out pictures
    rms                sqrt(mean |x_0 - x_0'|^2 / D),  [-1, 1] units                                       (1)
    seconds            of a sample, and how many times as fast it is as with k = 1

where x_0' is the sample of the same seed with the whole network at every one of the same S steps: the error of the
approximation itself.  What it must beat is fewer steps with the whole network, which cost as little.

X. Ma et al., "DeepCache" (arXiv 2312.00858), whose tables have k = 2, 3, 5, 10
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sfumato.experiments import figures
from sfumato.experiments.report import Report, Request, remembered
from sfumato.experiments.sampled import (
    ERROR,
    Bench,
    Setting,
    bench,
    by_chance,
    how_many,
    in_codec_units,
    measured,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("steps", "every", "n", "frechet", ERROR, "rms_to_whole", "milliseconds_per_sample", "times_as_fast")
EVERY = (1, 2, 3, 5)

Found = Mapping[tuple[int, int], Mapping[str, Any]]  # (steps, every) -> scores
Apart = Mapping[tuple[int, int], float]  # (steps, every) -> (1)


@dataclass(frozen=True)
class Size:
    """n samples a cell, numbers of steps, and so many rows of (1)."""

    n: int
    steps: tuple[int, ...]
    rows: int


QUICK = Size(200, (10, 20), 16)
FULL = Size(1000, (10, 20, 50), 64)


def run(request: Request) -> Report:
    size = QUICK if request.quick else FULL
    subject = bench(request)
    usual, title = subject.model.config.sampling, subject.network.title
    cells = [(steps, every) for steps in size.steps for every in EVERY]
    found = {
        (steps, every): measured(request, subject, _setting(subject, steps, every, size.n), f"{steps}-{every}")
        for steps, every in cells
    }
    distances = {cell: apart(request, subject, *cell, size.rows) for cell in cells if cell[1] > 1}
    floor, noise = by_chance(subject.floors(size.n))
    return Report(
        title="Deep features, used again",
        shown=(__doc__ or "").partition("\n\n")[2],
        see=see(found, distances, title),
        basis=[
            *subject.basis,
            f"sampler `{usual.sampler}`, grid `{usual.grid}`, guidance {usual.guidance:g}, {how_many(size.n)}",
            f"real pictures at this n: {floor:.3g} ± {noise:.2g}",
            f"rms: {size.rows} rows; times: {torch.get_num_threads()} threads, precision {subject.model.precision}",
        ],
        heads=("steps", *(f"k = {every}" for every in EVERY)),
        numbers=[[f"{steps}", *(_cell(found, distances, steps, every) for every in EVERY)] for steps in size.steps],
        columns=COLUMNS,
        rows=[_row(found, distances, *cell) for cell in cells],
        figure=_draw(found, distances, size, floor, title),
        facts={**subject.facts, "precision": subject.model.precision},
    )


def _setting(subject: Bench, steps: int, every: int, n: int) -> Setting:
    usual = subject.model.config.sampling
    return Setting(usual.sampler, steps, usual.grid, None, n, reuse=every)


def apart(request: Request, subject: Bench, steps: int, every: int, rows: int) -> float:
    """(1) of the first rows."""

    def walk() -> dict[str, torch.Tensor]:
        model = subject.model
        ends = []
        for k in (1, every):
            for _, x, _ in model.trajectory(range(rows), model.labels(rows), request.seed, steps=steps, reuse=k):
                end = x
            ends.append(end)
        return {"rms": (ends[0] - ends[1]).double().square().mean().sqrt()[None].cpu()}

    key = {**subject.key, "rows": rows, "steps": steps, "every": every}
    return float(remembered(request, key, f"apart-{steps}-{every}", walk)["rms"])


def faster(found: Found, steps: int, every: int) -> float:
    """How many times as fast as with the whole network at every step."""
    cost = "milliseconds_per_sample"
    return float(found[steps, 1][cost] / found[steps, every][cost])


def _cell(found: Found, distances: Apart, steps: int, every: int) -> str:
    scores = found[steps, every]
    text = f"{scores['frechet']:.3g} ± {scores[ERROR]:.2g}; {scores['milliseconds_per_sample']:.1f} ms"
    if every == 1:
        return text
    return f"{text} ({faster(found, steps, every):.2f} times as fast); rms {distances[steps, every]:.2g}"


def _row(found: Found, distances: Apart, steps: int, every: int) -> list[Any]:
    scores = found[steps, every]
    spent = scores["milliseconds_per_sample"]
    distance = distances.get((steps, every))
    return [steps, every, scores["n"], scores["frechet"], scores[ERROR], distance, spent, faster(found, steps, every)]


def see(found: Found, distances: Apart, title: str) -> str:
    """What the numbers say; every sentence is computed."""
    every_steps, cost = sorted({steps for steps, _ in found}), "milliseconds_per_sample"
    lines = [f"**The error.** Numbers are {title}; time a sample; rms."]
    for every in EVERY[1:]:
        told = ", ".join(f"{distances[steps, every]:.2g} at {steps}" for steps in every_steps)
        lines.append(f"With k = {every} the rms is {told} steps.")
    whole = {steps: found[steps, 1] for steps in every_steps}
    beaten: list[str] = []
    kept: list[str] = []
    for (steps, every), scores in found.items():
        rivals = [one for one in whole.values() if one[cost] <= 1.02 * scores[cost]]
        if every == 1 or not rivals:
            continue
        best = min(one["frechet"] for one in rivals)
        (beaten if best <= scores["frechet"] else kept).append(f"S = {steps} with k = {every}")
    lines.append(
        "\n\n**Is it worth it?** The whole network with fewer steps, in no more time, is at least as good as "
        f"{'; '.join(beaten) or 'none of them'}; and it is worse than {'; '.join(kept) or 'none of them'}."
    )
    return " ".join(lines)


def _draw(found: Found, distances: Apart, size: Size, floor: float, title: str) -> Figure:
    drawn = figures.figure(12, 9)
    axes = drawn.subplot_mosaic([["a", "b"], ["c", "c"]], height_ratios=(1, 1.1))
    for number, steps in enumerate(size.steps):
        points = [found[steps, every] for every in EVERY]
        spent = [one["milliseconds_per_sample"] for one in points]
        axes["a"].plot(spent, [one["frechet"] for one in points], "o-", color=f"C{number}", label=f"S = {steps}")
        for every, x, one in zip(EVERY, spent, points, strict=True):
            axes["a"].annotate(f"k = {every}", (x, one["frechet"]), fontsize=7)
        far = [distances[steps, every] for every in EVERY[1:]]
        axes["b"].plot(EVERY[1:], far, "o-", color=f"C{number}", label=f"S = {steps}")
    axes["a"].axhline(floor, color="grey", lw=1, label="real pictures")
    axes["a"].set(xscale="log", xlabel="milliseconds a sample", ylabel=f"{title}, {how_many(size.n)}")
    axes["b"].set(xlabel="k", ylabel="rms to the whole network's sample, [-1, 1] units", xticks=EVERY[1:])
    for key in "ab":
        axes[key].legend(fontsize=8)
    most = size.steps[len(size.steps) // 2]
    sheet = torch.stack([in_codec_units(torch.from_numpy(found[most, every]["images"])) for every in EVERY])
    names = [f"k = {every}" for every in EVERY]
    figures.pictures(axes["c"], sheet, names, [""] * sheet.shape[1], f"the first samples, S = {most}")
    return drawn
