"""Ticks and crosses: what the literature gives the families of generators, and what numbers give them.

A score's place among some rows is 1 for the best and 0 for the worst,

    place = 1 - (best - value)/max(best - worst, least),      value = -log score where it is a distance or a time,

least being log 2 there and 0.1 for shares, so that small differences make no cross; the place on an axis is the mean
over its scores; a place in the best third is a tick, in the worst third a cross.  A place says nothing of absolute
worth: it is one among these rows, on these pictures, with this wall-clock.  The words follow from the numbers.

Z. Xiao, K. Kreis, A. Vahdat, "Tackling the Generative Learning Trilemma with Denoising Diffusion GANs",
arXiv:2112.07804, figure 1
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato.experiments import figures
from sfumato.experiments.families import CODEC

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Facts = dict[str, float]  # score -> value

MANY, FEW = "diffusion, many steps", "diffusion, few steps"
FLOOR = "training pictures"
SCATTER = "frechet_standard_deviation"  # of the floor's sets
TOGETHER = 256  # samples that are drawn at once where that is timed
SHOWN = 12  # pictures of a row
COLUMNS = ("row", "rate", "score", "value")
AXES: dict[str, tuple[str, ...]] = {
    "quality": ("frechet", "precision", "density"),
    "diversity": ("recall", "coverage"),
    "speed": ("ms_alone", "ms_together"),
}
LOGARITHMIC = ("frechet", "ms_alone", "ms_together")  # and the lower, the better
LEAST_RANGE = {True: math.log(2), False: 0.1}
TICK, CROSS, BETWEEN = "✓", "✗", "~"
# quality, diversity, speed
PUBLISHED: dict[str, dict[str, str]] = {
    "VAE": {"quality": CROSS, "diversity": TICK, "speed": TICK},
    "GAN": {"quality": TICK, "diversity": CROSS, "speed": TICK},
    "flow": {"quality": CROSS, "diversity": TICK, "speed": TICK},
    MANY: {"quality": TICK, "diversity": TICK, "speed": CROSS},
}


def places(rows: Mapping[str, Facts], name: str) -> dict[str, float]:
    """Each row's place in [0, 1] by a score: 1 the best, 0 the worst (of at least the least range)."""
    logarithmic = name in LOGARITHMIC
    values = {row: -math.log(max(facts[name], 1e-12)) if logarithmic else facts[name] for row, facts in rows.items()}
    best = max(values.values())
    width = max(best - min(values.values()), LEAST_RANGE[logarithmic])
    return {row: 1 - (best - value) / width for row, value in values.items()}


def marks(rows: Mapping[str, Facts]) -> dict[str, dict[str, tuple[str, float]]]:
    """row -> axis -> its mark and its place."""
    found: dict[str, dict[str, tuple[str, float]]] = {row: {} for row in rows}
    for axis, names in AXES.items():
        every = [places(rows, name) for name in names]
        for row in rows:
            place = sum(one[row] for one in every) / len(every)
            found[row][axis] = (TICK if place >= 2 / 3 else CROSS if place <= 1 / 3 else BETWEEN, place)
    return found


def _quality(row: str, rows: Mapping[str, Facts], real: Facts, better: bool) -> str:
    mine, worst = rows[row], max(rows, key=lambda one: rows[one]["frechet"])
    said = f"its distance {mine['frechet']:.3g} is {mine['frechet'] / real['frechet']:.1f} times the floor's"
    if better:
        behind = rows[worst]["frechet"] / mine["frechet"]
        return f"{said} and the worst row's ({worst}) {behind:.1f} times its own: a mark is one among these rows"
    made = f"{mine['steps']:,.0f} steps ({mine['epochs']:.1f} epochs) of {mine['parameters']:,.0f} parameters"
    return f"{said} after {made}, where the literature trains larger networks for hundreds of thousands"


def _diversity(row: str, rows: Mapping[str, Facts], real: Facts, better: bool) -> str:
    mine = rows[row]
    said = (
        f"recall {mine['recall']:.2f} and coverage {mine['coverage']:.2f} (real pictures {real['recall']:.2f} and "
        f"{real['coverage']:.2f})"
    )
    if not better:
        bits = "" if math.isnan(mine["bits"]) else f", here {mine['bits']:.2f} bits/dim"
        return (
            f"{said}; both count a real picture only where samples come near it, and of these samples "
            f"{mine['precision']:.0%} look real (of real pictures {real['precision']:.0%}), while the literature "
            f"speaks of likelihood{bits}"
        )
    if math.isnan(mine["rarest"]):
        return f"{said}, on pictures with fewer and plainer modes than the photographs of the literature"
    kept = "no class is lost" if mine["rarest"] > real["rarest"] / 2 else "classes are lost here too"
    return (
        f"{said}; the digit it draws least often is {mine['rarest']:.1%} of its samples, of real ones "
        f"{real['rarest']:.1%}: {kept}, and ten plain classes are not the literature's photographs"
    )


def _speed(row: str, rows: Mapping[str, Facts], real: Facts, better: bool) -> str:
    mine, quickest = rows[row], min(rows, key=lambda one: rows[one]["ms_together"])
    return (
        f"{mine['ms_alone']:.3g} ms alone and {mine['ms_together']:.3g} ms among {TOGETHER} for {mine['calls']:.0f} "
        f"call{'s' if mine['calls'] > 1 else ''}, {quickest} {rows[quickest]['ms_alone']:.3g} and "
        f"{rows[quickest]['ms_together']:.3g}: "
        + ("its calls are few or cheap" if better else "what a call costs counts as much as how many there are")
    )


WHY: dict[str, Callable[[str, Mapping[str, Facts], Facts, bool], str]] = {
    "quality": _quality,
    "diversity": _diversity,
    "speed": _speed,
}
ORDER = (CROSS, BETWEEN, TICK)
# the distance of few steps over that of many, at most -> what is said of it
VERDICTS = ((1.25, "few steps lose next to nothing"), (2, "few steps lose some"), (math.inf, "few steps lose much"))


def words(rows: Mapping[str, Facts], real: Facts, title: str) -> str:
    """What the table shows, where it differs from the published one, and why; Markdown."""
    measured = marks(rows)
    pairs = [(row, axis) for row in PUBLISHED for axis in AXES]
    apart = [(row, axis) for row, axis in pairs if measured[row][axis][0] != PUBLISHED[row][axis]]
    lines = [f"{len(pairs) - len(apart)} of {len(pairs)} marks are as published."]
    for row, axis in apart:
        mark, told = measured[row][axis][0], PUBLISHED[row][axis]
        reason = WHY[axis](row, rows, real, ORDER.index(mark) > ORDER.index(told))
        lines.append(f"- **{row}, {axis}**: published {told}, measured {mark}. Why: {reason}.")
    many, few = rows[MANY], rows[FEW]
    faster, change = many["ms_together"] / few["ms_together"], few["frechet"] / many["frechet"]
    verdict = next(said for most, said in VERDICTS if change < most)
    lines += [
        "",
        f"The literature has no mark for few steps. Here {few['calls']:.0f} calls instead of {many['calls']:.0f} are "
        f"{faster:.1f} times as fast and have {change:.2f} times the {title} of many: {verdict}. "
        f"Marks of few steps: {', '.join(f'{axis} {mark}' for axis, (mark, _) in measured[FEW].items())}.",
    ]
    free = [row for row, found in measured.items() if all(mark == TICK for mark, _ in found.values())]
    lines.append(f"All three at once: {', '.join(free) if free else 'none'}.")
    return "\n".join(lines)


def table(
    rows: Mapping[str, Facts], real: Facts, sweep: Mapping[str, Mapping[float, float]], rates: Mapping[str, float]
) -> list[list[Any]]:
    """The CSV's rows; sweep: family -> rate -> its distance to the rows kept aside; rates: row -> its rate."""
    lines: list[list[Any]] = [
        [family, rate, "validation_frechet", value] for family, found in sweep.items() for rate, value in found.items()
    ]
    lines += [[row, rates[row], name, value] for row, facts in rows.items() for name, value in facts.items()]
    for row, found in marks(rows).items():
        lines += [[row, rates[row], f"{axis}_place", place] for axis, (_, place) in found.items()]
    lines += [[FLOOR, None, name, value] for name, value in real.items()]
    return [[*line[:3], None if math.isnan(line[3]) else line[3]] for line in lines]


def heads(title: str) -> tuple[str, ...]:
    """The heads of `cells`; title: how the Frechet distance is called."""
    published, measured = "published: quality, diversity, speed", "measured"
    names = (title, "precision", "density", "recall", "coverage", "rarest digit")
    return ("row", published, measured, *names, "ms a sample, alone", f"among {TOGETHER}", "calls", "bits/dim", "rate")


def cells(rows: Mapping[str, Facts], real: Facts, rates: Mapping[str, float]) -> list[list[str]]:
    """The page's table, the floor below it."""

    def scores(facts: Facts) -> list[str]:
        shares = [f"{facts[name]:.3f}" for name in ("precision", "density", "recall", "coverage")]
        return [f"{facts['frechet']:.3g}", *shares, "-" if math.isnan(facts["rarest"]) else f"{facts['rarest']:.1%}"]

    lines, measured = [], marks(rows)
    for row, facts in rows.items():
        told = PUBLISHED.get(row)
        lines.append(
            [
                row,
                "-" if told is None else " ".join(told.values()),
                " ".join(mark for mark, _ in measured[row].values()),
                *scores(facts),
                f"{facts['ms_alone']:.3g}",
                f"{facts['ms_together']:.3g}",
                f"{facts['calls']:.0f}",
                "-" if math.isnan(facts["bits"]) else f"{facts['bits']:.2f}",
                f"{rates[row]:g}",
            ]
        )
    distance, *rest = scores(real)
    return [*lines, [f"{FLOOR} (the floor)", "-", "-", f"{distance} ± {real[SCATTER]:.2g}", *rest, *["-"] * 5]]


def draw(
    rows: Mapping[str, Facts],
    real: Facts,
    sweep: Mapping[str, Mapping[float, float]],
    samples: Mapping[str, Tensor],
    title: str,
) -> Figure:
    """Quality by diversity, coloured by speed; the sweeps of the rates; the first samples (n, 1, H, W) of each row."""
    drawn = figures.figure(13, 4.2)
    axes = drawn.subplots(1, 3, width_ratios=(1.15, 0.8, 1.5))
    speed = [math.log10(facts["ms_together"]) for facts in rows.values()]
    scale = {"cmap": "viridis", "vmin": min(speed), "vmax": max(speed)}
    for (row, facts), shape, c in zip(rows.items(), "osD^v", speed, strict=True):
        points = axes[0].scatter(
            [facts["coverage"]], [facts["frechet"]], c=[c], marker=shape, s=70, label=row, edgecolors="black", **scale
        )
    axes[0].scatter([real["coverage"]], [real["frechet"]], marker="*", color="C3", s=90, label=FLOOR)
    axes[0].set(xlabel="diversity: coverage", ylabel=f"quality: {title}, better upwards", yscale="log")
    axes[0].invert_yaxis()
    axes[0].margins(0.15)
    axes[0].legend(fontsize=7)
    drawn.colorbar(points, ax=axes[0], label="log10 ms a sample")
    for family, found in sweep.items():
        shown = {rate: value for rate, value in found.items() if math.isfinite(value)}
        axes[1].loglog(list(shown), list(shown.values()), "o-", markersize=4, linewidth=1, label=family)
    axes[1].set(xlabel="learning rate", title=f"{title} to rows kept aside")
    rates = list(next(iter(sweep.values())))
    axes[1].set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes[1].minorticks_off()
    axes[1].title.set_fontsize(10)
    axes[1].legend(fontsize=7)
    sheet = torch.stack([CODEC.encode(x[:SHOWN]) for x in samples.values()])
    figures.pictures(axes[2], sheet, list(samples), [""] * SHOWN, "samples, not selected")
    return drawn
