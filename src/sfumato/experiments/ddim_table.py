"""ddim-table: how good samples are by the number of steps and by the noise on the way (DDIM, table 1).

    x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 u_ts) eps + eta sqrt(u_ts) z,     z ~ N(0, I)               (1)

over S steps, eta = 0 (no noise: the ODE) to eta = 1 (ancestral sampling), and the row sigma-hat, which adds DDPM's
larger variance (`samplers.ddim`, (2)).  The times are the paper's for CIFAR-10, tau_i = floor(c i^2), our grid
`quadratic`.  Its other choice, floor(c i), is our `trailing`; `uniform` is neither.

The published figures are of another data set and another network, so it is the shape that is compared: the order of
the cells (Spearman's rank correlation), whether a row falls as S grows, and each cell's ratio to eta = 0 at its S.
Where a ratio differs, the cell is sampled once more with one thing changed.

J. Song, C. Meng, S. Ermon, "Denoising Diffusion Implicit Models", arXiv:2010.02502, table 1 and app. D.2
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sfumato.experiments import figures
from sfumato.experiments.published import (
    DDIM,
    DDIM_CELLS,
    DDIM_STEPS,
    Cells,
    apart,
    column,
    rank_correlation,
    ratios,
    rises,
    strangest,
)
from sfumato.experiments.report import Report, Request
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
    standard_error,
)
from sfumato.model import Model
from sfumato.tasks.scores import score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = (
    "eta",
    "steps",
    "grid",
    "clip",
    "n",
    "frechet",
    "frechet_standard_error",
    "above_floor",
    "ratio",
    "published_fid",
    "published_ratio",
    "kernel",
    "precision",
    "recall",
    "density",
    "coverage",
    "agreement",
    "evaluations",
    "seconds",
    "milliseconds_per_sample",
)
SCORED = ("precision", "recall", "density", "coverage", "agreement")
SPENT = ("evaluations", "seconds", "milliseconds_per_sample")
# how a row of the paper is called here
ETAS: dict[str, str] = {
    "0": "ddim",
    "0.2": "ddim:eta=0.2",
    "0.5": "ddim:eta=0.5",
    "1": "ddim:eta=1",
    "sigma-hat": "ddim-sigma-hat",
}
EXPLAINS = 0.2  # the part of a difference, in logarithms, that a cause must take away
GRID = "quadratic"
OTHER_GRID = "trailing"
PAPER = ratios(DDIM_CELLS, "0")


@dataclass(frozen=True)
class Size:
    """n samples at each of steps; `few` at `long` steps and beside it, and where one thing is changed."""

    n: int
    steps: tuple[int, ...]
    long: int
    few: int


QUICK = Size(200, (10, 20, 50), 100, 100)
FULL = Size(1000, (10, 20, 50, 100), 1000, 200)


@dataclass(frozen=True)
class Table:
    """The measured cells: `whole` by (eta, S) at n, `part` at few, `changed` by (eta, what was changed) at few.

    floor and noise: mean and standard deviation of the scores of sets of real pictures, by n (`sampled.by_chance`).
    """

    whole: dict[tuple[str, int], dict[str, Any]]
    part: dict[tuple[str, int], dict[str, Any]]
    changed: dict[tuple[str, str], dict[str, Any]]
    floor: dict[int, float]
    noise: dict[int, float]


def run(request: Request) -> Report:
    size = QUICK if request.quick else FULL
    subject = bench(request)
    most = subject.model.denoiser.schedule.steps or size.long
    size = replace(size, steps=tuple(s for s in size.steps if s < most) or (most,), long=min(size.long, most))
    table = measure(request, subject, size)
    title = subject.network.title
    return Report(
        title="Steps and noise: the table of DDIM",
        shown=(__doc__ or "").partition("\n\n")[2],
        see=see(table, size, title, subject.model),
        basis=[
            *subject.basis,
            f"samples of the plain conditional model (w = 1), labels in turn, grid `{GRID}`, {how_many(size.n)}; at "
            f"S = {size.long} and beside it {how_many(size.few)}",
            f"disjoint sets of real pictures, labels in turn, at most {SETS}: "
            + "; ".join(f"n = {n:,}: {x:.3g} ± {table.noise[n]:.2g}" for n, x in table.floor.items()),
            "published figures: arXiv:2010.02502, table 1, CIFAR-10, FID of 50,000 samples",
        ],
        heads=("eta", *(f"S = {s}" for s in size.steps), *(f"S = {s}, n = {size.few}" for s in beside(size))),
        numbers=number_lines(table, size, title),
        columns=COLUMNS,
        rows=csv_rows(table, size),
        figure=_draw(table, size, title, subject),
        facts={**subject.facts, "sampler": "ddim:eta=ETA", "guidance": 1.0},
    )


def beside(size: Size) -> tuple[int, int]:
    """The step counts of the columns at `few`."""
    return size.steps[-1], size.long


def measure(request: Request, subject: Bench, size: Size) -> Table:
    """Every cell; the rows at `few` of the smaller step counts are the first ones of their n."""
    whole, part, changed = {}, {}, {}
    usual = Setting("", 0, GRID, 1.0, size.n, kept=size.few)
    for (eta, sampler), steps in itertools.product(ETAS.items(), size.steps):
        setting = replace(usual, sampler=sampler, steps=steps)
        whole[eta, steps] = measured(request, subject, setting, f"{eta}-{steps}")
    for eta, sampler in ETAS.items():
        for steps in {size.steps[0], size.steps[-1]}:
            part[eta, steps] = _first(subject, whole[eta, steps])
        setting = replace(usual, sampler=sampler, steps=size.long, n=size.few)
        part[eta, size.long] = measured(request, subject, setting, f"{eta}-{size.long}")
        few = replace(setting, steps=size.steps[0])
        unclipped = replace(subject, subject=replace(subject.subject, model=_unclipped(subject.model)))
        changed[eta, "grid"] = measured(request, subject, replace(few, grid=OTHER_GRID), f"{eta}-grid")
        changed[eta, "clip"] = measured(request, unclipped, few, f"{eta}-clip")
    real = {n: by_chance(subject.floors(n)) for n in (size.n, size.few)}
    floor, noise = ({n: found[k] for n, found in real.items()} for k in (0, 1))
    return Table(whole, part, changed, floor, noise)


def _first(subject: Bench, found: dict[str, Any]) -> dict[str, Any]:
    """The scores of the kept images alone."""
    images = found["images"]
    asked = subject.model.labels(len(images))
    names, network = subject.model.config.label_names, subject.network
    labels = network.own_labels(None if asked is None else asked.numpy(), names)
    scores = score(images, subject.reference, network, labels)
    return {**found, **scores, ERROR: standard_error(subject, images)}


def _unclipped(model: Model) -> Model:
    """The model whose x_0 is not held in the data's limits."""
    return Model(replace(model.config, sampling=replace(model.config.sampling, clip=False)), model.net)


def see(table: Table, size: Size, title: str, model: Model) -> str:
    """What the numbers say of the two shapes; every sentence is computed."""
    whole, part = frechet(table.whole), frechet(table.part)
    return "\n\n".join(
        [
            _order(whole, title),
            _falls(table, size),
            _gains(whole, size, table.floor[size.n]),
            _end(part, errors(table.part), size),
            _cause(table, size),
            _circumstances(whole, size, table, title, model),
        ]
    )


def _order(whole: Cells, title: str) -> str:
    theirs = DDIM_CELLS
    both = [cell for cell in whole if cell in theirs]
    lines = [
        f"**Order.** Over the {len(both)} cells that both tables have, the rank correlation of {title} here and the "
        f"published FID is {rank_correlation(whole, theirs):.2f}."
    ]
    for s in sorted({s for _, s in both}):
        ours = sorted(ETAS, key=lambda eta: whole[eta, s])
        paper = sorted(ETAS, key=lambda eta: theirs[eta, s])
        same = "as published" if ours == paper else f"published: {' < '.join(paper)}"
        lines.append(f"At S = {s} the rows are, best first, {' < '.join(ours)} ({same}).")
    return " ".join(lines)


def _falls(table: Table, size: Size) -> str:
    last = {cell: x for cell, x in frechet(table.part).items() if cell[1] in beside(size)}
    whole, chance = frechet(table.whole), errors(table.whole)
    grown = {eta: rises(whole, chance, eta) + rises(last, errors(table.part), eta) for eta in ETAS}
    told = [
        f"eta = {eta} rises " + " and ".join(f"from S = {a} to {b}" for a, b in where)
        for eta, where in grown.items()
        if where
    ]
    return (
        "**More steps.** The published rows all fall at every step of S.  Here, with less than twice the standard "
        f"error of a difference taken for chance, {'; '.join(told) or 'no row rises anywhere'}."
    )


def _gains(whole: Cells, size: Size, floor: float) -> str:
    first, last = size.steps[0], size.steps[-1]
    lines = ["**How much.**"]
    for eta in ("0", "1", "sigma-hat"):
        gain = whole[eta, first] / whole[eta, last]
        line = f"eta = {eta}: S = {first} is {gain:.2f} times S = {last}"
        if (a := DDIM_CELLS.get((eta, first))) and (b := DDIM_CELLS.get((eta, last))):
            line += f" (published {a / b:.2f})"
        lines.append(line + ";")
    above = (whole["0", first] - floor) / max(whole["0", last] - floor, 1e-9)
    tail = f"above the floor of {floor:.3g} the first of these is " + (
        f"{above:.2f}." if whole["0", last] > floor else "without meaning, since the last cell lies below it."
    )
    return " ".join([*lines, tail])


def _end(part: Cells, chance: Cells, size: Size) -> str:
    """The longest walk, where the paper's sigma-hat is best."""
    last, first = ("sigma-hat", size.long), ("0", size.long)
    best = min(ETAS, key=lambda eta: part[eta, size.long])
    line = (
        f"**The longest walk.** At S = {size.long} ({how_many(size.few)}) the best row here is eta = {best}; sigma-hat "
        f"has {part[last]:.3g} ± {chance[last]:.2g} and eta = 0 {part[first]:.3g} ± {chance[first]:.2g}, which "
        f"{'can' if apart(part, chance, last, first) else 'cannot'} be told apart."
    )
    if theirs := column(DDIM_CELLS, size.long):
        line += f"  Published: eta = {min(theirs, key=lambda eta: theirs[eta])}."
    return line


def _cause(table: Table, size: Size) -> str:
    """What brings the strangest ratio nearer to the published one: the other grid, or no clipping."""
    first, cells = size.steps[0], frechet(table.part)
    eta = strangest(ratios(cells, "0"), PAPER, first)
    if eta is None:
        return f"**Why.** The paper has no column S = {first}, so nothing is explained."
    theirs = PAPER[eta, first]
    found = {"as it is": ratios(cells, "0")[eta, first]} | {
        name: table.changed[eta, what]["frechet"] / table.changed["0", what]["frechet"]
        for what, name in (("grid", f"on grid `{OTHER_GRID}`"), ("clip", "with x_0 unclipped"))
    }
    gaps = {name: abs(math.log(ratio / theirs)) for name, ratio in found.items()}
    nearest = min(gaps, key=lambda name: gaps[name])
    said = ", ".join(f"{name} {ratio:.3g}" for name, ratio in found.items())
    if gaps[nearest] < (1 - EXPLAINS) * gaps["as it is"]:
        verdict = f"{nearest} it comes nearest, so that choice is a part of the difference"
    else:
        verdict = "neither change explains it, so the data, the features, the network or its schedule must"
    return (
        f"**Why.** The ratio that differs most at S = {first} is that of eta = {eta}: published {theirs:.3g} times "
        f"eta = 0, here ({how_many(size.few)}) {said}; {verdict}."
    )


def _circumstances(whole: Cells, size: Size, table: Table, title: str, model: Model) -> str:
    """What differs in any case, and what the floor hides."""
    floor, best = table.floor[size.n], min(whole.values())
    config = model.config
    clipped = "clipped" if config.sampling.clip else "not clipped"
    return (
        f"**What differs in any case.** The data ({config.data.get('source', 'unknown')}; theirs CIFAR-10), the "
        f"features ({title}; theirs Inception-v3), the network (target {config.target} on schedule "
        f"{config.schedule['name']}, x_0 {clipped}; theirs eps on linear betas), and n: {size.n:,} samples, fewer than "
        f"50,000, give even real pictures of the same labels {floor:.3g}, {100 * floor / best:.0f} % of the best cell "
        f"here, so that ratios of small scores are drawn towards 1."
    )


def number_lines(table: Table, size: Size, title: str) -> list[list[str]]:
    """Measured (ratio to eta = 0; time), then published (ratio)."""
    ours, few = ratios(frechet(table.whole), "0"), ratios(frechet(table.part), "0")
    lines = []
    for eta in ETAS:
        cells = [_cell(table.whole[eta, s], ours[eta, s]) for s in size.steps]
        cells += [_cell(table.part[eta, s], few[eta, s]) for s in beside(size)]
        lines.append([f"{eta}: {title} (of eta = 0; ms a sample)", *cells])
    for eta in ETAS:
        columns = (*size.steps, *beside(size))
        cells = [f"{DDIM_CELLS[eta, s]:g} (x {PAPER[eta, s]:.2f})" if (eta, s) in PAPER else "-" for s in columns]
        lines.append([f"{eta}: published FID, CIFAR-10", *cells])
    return lines


def _cell(found: Mapping[str, Any], ratio: float) -> str:
    return f"{found['frechet']:.3g} ± {found[ERROR]:.2g} (x {ratio:.2f}; {found['milliseconds_per_sample']:.0f})"


def csv_rows(table: Table, size: Size) -> list[list[Any]]:
    """The CSV's rows: the cells at n, those at few, and those with one thing changed."""
    rows = []
    for cells in (table.whole, table.part):
        ours = ratios(frechet(cells), "0")
        for (eta, s), found in cells.items():
            paper = [DDIM_CELLS.get((eta, s)), PAPER.get((eta, s))]
            rows.append(_row(eta, s, GRID, True, found, table.floor, [ours[eta, s], *paper]))
    for (eta, what), found in table.changed.items():
        grid, ratio = OTHER_GRID if what == "grid" else GRID, found["frechet"] / table.changed["0", what]["frechet"]
        rows.append(_row(eta, size.steps[0], grid, what != "clip", found, table.floor, [ratio, None, None]))
    return rows


def _row(
    eta: str,
    steps: int,
    grid: str,
    clip: bool,
    found: Mapping[str, Any],
    floor: Mapping[int, float],
    compared: Sequence[float | None],
) -> list[Any]:
    n, distance = found["n"], found["frechet"]
    scored = [found[name] for name in SCORED]
    spent = [found[name] for name in SPENT]
    return [
        *(eta, steps, grid, clip, n, distance, found[ERROR], distance - floor[n]),
        *compared,
        found["kernel"]["value"],
        *scored,
        *spent,
    ]


def _draw(table: Table, size: Size, title: str, subject: Bench) -> Figure:
    drawn = figures.figure(12, 13)
    axes = drawn.subplot_mosaic([["a", "b"], ["c", "d"], ["e", "e"]], height_ratios=(1, 1.1, 1.5))
    names, columns = list(ETAS), [*size.steps, *beside(size)]
    ours = [
        [table.whole[eta, s]["frechet"] for s in size.steps] + [table.part[eta, s]["frechet"] for s in beside(size)]
        for eta in names
    ]
    labels = [*(f"{s}" for s in size.steps), *(f"{s}\nn = {size.few}" for s in beside(size))]
    heat(axes["a"], ours, names, labels, f"{title}, {how_many(size.n)}")
    theirs = [list(DDIM[eta]) for eta in names]
    heat(axes["b"], theirs, names, [f"{s}" for s in DDIM_STEPS], "published FID, CIFAR-10, n = 50,000")
    for key in "ab":
        axes[key].set(xlabel="steps S", ylabel="eta")
    for k, eta in enumerate(names):
        axes["c"].loglog(size.steps, ours[k][: len(size.steps)], "o-", color=f"C{k}", ms=4, label=f"eta = {eta}")
        axes["c"].loglog(columns[-2:], ours[k][-2:], "s:", color=f"C{k}", ms=4, mfc="none")
        axes["d"].loglog(DDIM_STEPS, theirs[k], "o-", color=f"C{k}", ms=4, label=f"eta = {eta}")
    axes["c"].axhline(table.floor[size.n], color="grey", lw=1, label=f"real pictures, n = {size.n:,}")
    axes["c"].axhline(table.floor[size.few], color="grey", lw=1, ls=":", label=f"real pictures, n = {size.few}")
    axes["c"].set(xlabel="steps S", ylabel=title, title=f"measured (dotted: n = {size.few})")
    axes["d"].set(xlabel="steps S", ylabel="FID", title="published")
    axes["c"].legend(fontsize=7)
    axes["d"].legend(fontsize=7)
    shown = [*size.steps, size.long]
    each = max(1, 15 // len(shown))
    images = np.stack([np.concatenate([_pictures(table, eta, s)[:each] for s in shown]) for eta in names])
    under = [f"S = {s}" if k == each // 2 else "" for s in shown for k in range(each)]
    figures.pictures(
        axes["e"], in_codec_units(torch.from_numpy(images)), names, under, "the first samples of each cell"
    )
    return drawn


def _pictures(table: Table, eta: str, steps: int) -> np.ndarray:
    found = table.whole.get((eta, steps)) or table.part[eta, steps]
    return found["images"]
