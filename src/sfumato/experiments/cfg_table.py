"""cfg-table: classifier-free guidance by its scale: what it gives in certainty and what it costs in distance.

    x0 = x0_null + w (x0_cond - x0_null),   w = 1 + w_seed                                                  (1)

w_seed is the paper's own scale: 0 is the plain conditional model.  A score of samples by a classifier p(y|x),

    exp E_x KL(p(y|x) | p(y)),   p(y) = E_x p(y|x),   at most the number of its classes                     (2)

rises with it, since every sample is told more clearly from the other classes; the Frechet distance to real pictures,
which asks for their variety too, has its least value at a small scale.  Beside the plain rule, on the same noise:

    interval       (1) only where low < t <= high, the plain model elsewhere (one evaluation a step there)
    autoguidance   x0 = x0_weak + w (x0_cond - x0_weak), a weaker model of the same data, told the same label
    rescale        (1), then brought back to the standard deviation of x0_cond
    apg            (1) without the part of the difference that is parallel to x0_cond

J. Ho, T. Salimans, "Classifier-Free Diffusion Guidance", arXiv:2207.12598, table 1 and fig. 4
T. Kynkaanniemi et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion
Models", arXiv:2404.07724
T. Karras et al., "Guiding a Diffusion Model with a Bad Version of Itself", arXiv:2406.02507
S. Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv:2305.08891, sec. 3.4 (rescale)
S. Sadat et al., "Eliminating Oversaturation and Artifacts of High Guidance Scales", arXiv:2410.02416 (apg)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sfumato.experiments import figures
from sfumato.experiments.published import CFG
from sfumato.experiments.report import Report, Request, digest
from sfumato.experiments.sampled import Bench, Setting, bench, how_many, measured
from sfumato.experiments.tradeoff import (
    VALUES,
    Point,
    Real,
    at,
    cell,
    course,
    least,
    of,
    percent,
    point,
    real_of,
    shares,
    strips,
    told,
    trade_off,
)
from sfumato.guidance.guide import Guide
from sfumato.model import Model, load, zoo
from sfumato.schedules import Schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLER = "dpmpp-2m"
SAME = "The best scale is the published one within noise. "
W_SEEDS = (0.0, 0.1, 0.3, 1.0, 2.0, 3.0)
AGAIN = (0.3, 1.0, 3.0)  # where the other curves are measured
STRONG = 3.0
INTERVAL = (2.4, -3.4)  # logSNR where guidance ends and where it begins: sigma/alpha from 0.3 to 5.5
COLUMNS = ("curve", "w_seed", "w", *VALUES, "published_fid", "published_is")


@dataclass(frozen=True)
class With:
    """What guidance may need beside its scale: the ends of the interval in t, and the weaker model, if there is one."""

    low: float
    high: float
    weak: Model | None


@dataclass(frozen=True)
class Curve:
    """How a curve is guided at w, the scales w_seed that it is measured at, and how it is drawn."""

    guide: Callable[[float, With], Guide]
    scales: tuple[float, ...]
    style: str


def _interval(w: float, given: With) -> Guide:
    return Guide(w, low=given.low, high=given.high)


def _autoguidance(w: float, given: With) -> Guide:
    assert given.weak is not None
    return Guide(w, weak=given.weak.denoiser, told={"weak": digest(given.weak)})


CURVES: dict[str, Curve] = {
    "cfg": Curve(lambda w, given: Guide(w), W_SEEDS, "o-"),
    "interval": Curve(_interval, AGAIN, "s--"),
    "autoguidance": Curve(_autoguidance, AGAIN, "d-."),
    "rescale": Curve(lambda w, given: Guide(w, mix="rescale"), (STRONG,), "^"),
    "apg": Curve(lambda w, given: Guide(w, mix="apg"), (STRONG,), "v"),
}


@dataclass(frozen=True)
class Size:
    """Samples of every setting, and steps."""

    samples: int
    steps: int


QUICK, FULL = Size(200, 10), Size(1000, 20)


def run(request: Request) -> Report:
    size = QUICK if request.quick else FULL
    on = bench(request)
    _check(request, on)
    schedule, weak = on.model.denoiser.schedule, weaker(request)
    given = With(*interval(schedule), weak)
    steps = min(size.steps, schedule.steps or size.steps)
    points = []
    for name, curve in CURVES.items():
        for w_seed in curve.scales if name != "autoguidance" or weak else ():
            setting = Setting(SAMPLER, steps, None, curve.guide(1 + w_seed, given), size.samples)
            points.append(point(name, w_seed, measured(request, on, setting, f"{name}-{w_seed:g}")))
    real = real_of(on, size.samples)
    return Report(
        title="Classifier-free guidance by its scale",
        shown=(__doc__ or "").partition("\n\n")[2],
        see=words(points, real, limit(on)),
        basis=[*on.basis, *basis(request, on, size.samples, steps, weak)],
        heads=heads(on),
        numbers=numbers(points, real),
        columns=COLUMNS,
        rows=table(points, real),
        figure=_draw(points, real, on),
        facts=on.facts,
    )


def _check(request: Request, on: Bench) -> None:
    if not on.model.config.conditions.classes:
        raise ValueError(f"{request.name} guides by a label and {request.model} knows none; give a --model of classes")


def weaker(request: Request) -> Model | None:
    """The zoo's weaker version of the request's MODEL, "MODEL-weak"; None if there is none."""
    name = f"{request.model}-weak"
    return load(name) if name in zoo() else None


def interval(schedule: Schedule) -> tuple[float, float]:
    """low and high in t of INTERVAL."""
    low, high = (float(schedule.time_of_logsnr(torch.tensor(logsnr))) for logsnr in INTERVAL)
    return low, high


def limit(on: Bench) -> int | None:
    """The most that the classifier score can be: the number of classes of the features' classifier."""
    log_probs = on.reference.seen.log_probs
    return None if log_probs is None else log_probs.shape[1]


def basis(request: Request, on: Bench, n: int, steps: int, weak: Model | None) -> list[str]:
    low, high = interval(on.model.denoiser.schedule)
    return [
        f"every score: {how_many(n)}, classes in turn, {SAMPLER}, {steps} steps, grid {on.model.config.sampling.grid}, "
        "the same noise at every scale; an evaluation is one row of one network",
        f"interval: {low:.3f} < t <= {high:.3f}, logSNR from {INTERVAL[1]:g} to {INTERVAL[0]:g}",
        f"autoguidance: by the zoo's `{request.model}-weak`, weights sha256 `{digest(weak)}`, "
        f"{weak.config.training.get('step', 0)} training steps"
        if weak
        else f"autoguidance is left out: the zoo has no weaker version of {request.model}, no `{request.model}-weak`",
        "published: arXiv:2207.12598, table 1, ImageNet 64x64, FID and IS of 50,000 samples, p_uncond = 0.1",
    ]


def table(points: Sequence[Point], real: Real) -> list[list[Any]]:
    """The CSV's rows: measured, the published figures beside the plain rule's; all the published; real pictures."""
    rows: list[list[Any]] = []
    for p in points:
        published = CFG.get(p.scale, (None, None)) if p.curve == "cfg" else (None, None)
        rows.append([p.curve, p.scale, 1 + p.scale, *p.cells(), *published])
    rows += [["published", w, 1 + w, *[None] * len(VALUES), *figures_of] for w, figures_of in CFG.items()]
    return [*rows, ["real training pictures", None, None, *(real.values[name] for name in VALUES), None, None]]


def heads(on: Bench) -> list[str]:
    measured_here = [on.network.title, on.network.classifier_title, "precision", "recall", "agreement", "evaluations"]
    return ["guidance", "w_seed", *measured_here, "published FID", "published IS"]


def numbers(points: Sequence[Point], real: Real) -> list[list[str]]:
    rows = [(p.curve, f"{p.scale:g}", p.values) for p in points] + [("real training pictures", "", real.values)]
    lines = []
    for curve, w_seed, values in rows:
        published = CFG.get(float(w_seed)) if curve == "cfg" else None
        lines.append(
            [
                curve,
                w_seed,
                cell(values["frechet"], "{:.3g}"),
                cell(values["classifier_score"], "{:.2f}"),
                cell(values["precision"], "{:.3f}"),
                cell(values["recall"], "{:.3f}"),
                cell(values["agreement"], "{:.1%}"),
                cell(values["evaluations"], "{:g}"),
                *(("-", "-") if published is None else (f"{published[0]:.2f}", f"{published[1]:g}")),
            ]
        )
    return lines


def words(points: Sequence[Point], real: Real, limit: int | None) -> str:
    """What the numbers say beside the published ones: where the shapes differ, and why."""
    plain = of(points, "cfg")
    paragraphs = [_distance(plain, real), _certainty(plain, real, limit), _variety(plain)]
    paragraphs += [_beside(points, curve, real) for curve in CURVES if curve != "cfg" and of(points, curve)]
    return "\n\n".join(text for text in paragraphs if text)


def _distance(plain: Sequence[Point], real: Real) -> str:
    """Frechet distance by scale."""
    best, first, last = least(plain), plain[0], plain[-1]
    there = min(CFG, key=lambda w: CFG[w][0])
    steeper = CFG[last.scale][0] / CFG[there][0]
    within = real.within(plain)
    near = [p.scale for p in plain if p["frechet"] - best["frechet"] <= within]
    low, high = min(near), max(near)
    alike = f" (nor can w_seed {low:g} to {high:g} be told from the least)" if low < high else ""
    text = (
        f"**Frechet distance.** Published, it falls from {CFG[0.0][0]:.2f} to {CFG[there][0]:.2f} at "
        f"w_seed = {there:g}, then rises to {CFG[last.scale][0]:.2f} at {last.scale:g}, {steeper:.0f} times the "
        f"least. Here it {course([p['frechet'] for p in plain], within)}: {first['frechet']:.3g} at 0, the least "
        f"{best['frechet']:.3g} at {best.scale:g}, {last['frechet']:.3g} at {last.scale:g}, "
        f"{last['frechet'] / best['frechet']:.1f} times the least{alike}. "
    )
    if low <= there <= high:
        text += "The best scale is the published one within noise, and so is none at all. " if low == 0 else SAME
    elif low > there:
        text += (
            "The best scale is larger here: this small model, soon trained, leaves more samples between the classes "
            f"than the published one, and guidance clears them away{_agreement(first, best)}. "
        )
    else:
        text += (
            f"Guidance only costs here: there is little to mend{_agreement(first, last)}, where ImageNet's 1,000 "
            "classes leave much. "
        )
    rise, floor = last["frechet"] / best["frechet"], real.frechet
    if rise < steeper / 2:
        text += (
            f"The rise is gentler. Of {first['n']:,.0f} samples even real pictures have a distance of {floor:.3g}, "
            "while of 50,000 they have almost none; and a class of these pictures has less variety to lose than one of "
            "ImageNet's."
        )
    elif rise > steeper * 2:
        text += (
            "The rise is steeper: the least is nearer to 0 by these features, which see few things beside the classes "
            "that guidance drives apart."
        )
    else:
        text += "The rise is of the published size."
    return text


def _agreement(a: Point, b: Point) -> str:
    """Agreement with the label at two scales, for a sentence; nothing where the features know no classes."""
    if a.values["agreement"] is None:
        return ""
    one, two = (f"{percent(p['agreement'])} at {p.scale:g}" for p in (a, b))
    return f" (agreement with the label: {one}, {two})"


def _certainty(plain: Sequence[Point], real: Real, limit: int | None) -> str:
    """The classifier score by scale."""
    score = real.values["classifier_score"]
    if limit is None or score is None:
        return "**Classifier score.** There is none: these features come with no classifier."
    first, last = plain[0], plain[-1]
    published = CFG[last.scale][1] / CFG[0.0][1]
    rise = last["classifier_score"] / first["classifier_score"]
    text = (
        f"**Classifier score.** Published, the Inception Score rises at every scale, from {CFG[0.0][1]:g} to "
        f"{CFG[last.scale][1]:g}, {published:.1f} times, of at most 1,000. Here the score "
        f"{course([p['classifier_score'] for p in plain], 0.01 * score)} from {first['classifier_score']:.2f} to "
        f"{last['classifier_score']:.2f}, {rise:.2f} times, of at most {limit}; real training pictures have "
        f"{score:.2f}. "
    )
    if rise > published / 2:
        return text + "The shape is the published one."
    return text + (
        f"It has less room to rise: unguided, the score already is {percent(first['classifier_score'] / limit)} of the "
        f"most that it can be, where ImageNet's was {percent(CFG[0.0][1] / 1000)}."
    )


def _variety(plain: Sequence[Point]) -> str:
    """Precision and recall by scale."""
    first, last = plain[0], plain[-1]
    within = shares(first["n"])
    courses = {name: course([p[name] for p in plain], within) for name in ("precision", "recall")}
    text = (
        f"**Precision and recall**, which the paper does not measure. Precision "
        f"{courses['precision']} ({told(plain, 'precision')}); recall {courses['recall']} ({told(plain, 'recall')}). "
    )
    if last["recall"] < first["recall"] - within:
        return text + (
            "Recall pays: guided samples crowd together where the label is certain, and leave its rarer forms out."
        )
    return text + f"Of {first['n']:,.0f} samples no loss of variety can be told from noise."


ABOUT = {
    "interval": "Left alone where there is most noise the samples keep their variety, and where there is least nothing "
    "is left to decide.",
    "autoguidance": "A weaker model errs in the same places, so that the difference points away from errors, not from "
    "other classes.",
    "rescale": "It brings back the contrast that guidance exaggerates, not the variety that it takes away.",
    "apg": "It leaves out what only exaggerates the contrast, not what takes the variety away.",
}


def certainty(points: Sequence[Point]) -> str:
    """What the trade-off is measured by: the classifier score, or precision where features have no classifier."""
    return "precision" if points[0].values["classifier_score"] is None else "classifier_score"


def plain_at(plain: Sequence[Point], by: str, value: float) -> float:
    """The plain rule's Frechet distance where it has a certainty, linear between its points."""
    line = sorted((p[by], p["frechet"]) for p in plain)
    return float(np.interp(value, [x for x, _ in line], [y for _, y in line]))


def _beside(points: Sequence[Point], curve: str, real: Real) -> str:
    """Another curve beside the plain rule, at the same scales and at the same certainty."""
    parts, gains, plain = [], [], of(points, "cfg")
    by, within = certainty(points), real.within(plain)
    for p in of(points, curve):
        same, equal = at(points, "cfg", p.scale), plain_at(plain, by, p[by])
        gains.append(0 if abs(p["frechet"] - equal) <= within else 1 if p["frechet"] < equal else -1)
        parts.append(
            f"at {p.scale:g} distance {p['frechet']:.3g} (plain: {same['frechet']:.3g}; {equal:.3g} where it is as "
            f"certain), {by.replace('_', ' ')} {p[by]:.2f} (plain: {same[by]:.2f}), {p['evaluations']:g} evaluations "
            f"(plain: {same['evaluations']:g})"
        )
    return (
        f"**{curve.capitalize()}** beside the plain rule: {'; '.join(parts)}. {_verdict(gains)}"
        f"{f' {ABOUT[curve]}' if max(gains) > 0 else ''}"
    )


def _verdict(gains: Sequence[int]) -> str:
    """gains: 1 where a curve is nearer to the data than the plain rule at equal certainty, -1 where farther."""
    if set(gains) == {1}:
        return "At equal certainty it is nearer to the data."
    if set(gains) == {0}:
        return "At equal certainty it is where the plain rule is, within noise: the same as a smaller scale."
    if set(gains) == {-1}:
        return "At equal certainty it is farther from the data."
    nearer, farther = gains.count(1), gains.count(-1)
    return f"At equal certainty it is nearer to the data at {nearer} of {len(gains)} scales, farther at {farther}."


def _draw(points: Sequence[Point], real: Real, on: Bench) -> Figure:
    drawn = figures.figure(13, 8)
    axes = drawn.subplot_mosaic([["a", "b", "c"], ["d", "d", "e"]], height_ratios=(1, 1.1))
    y = certainty(points)
    for curve in CURVES:
        style = CURVES[curve].style
        if here := of(points, curve):
            trade_off(axes["a"], here, "frechet", y, curve, style)
            trade_off(axes["c"], here, "recall", "precision", curve, style)
            axes["e"].plot([p.scale for p in here], [p["frechet"] for p in here], style, ms=4, lw=1, label=curve)
    title = on.network.title
    name = on.network.classifier_title if y == "classifier_score" else y
    axes["a"].set(title=f"measured, by w_seed, n = {points[0]['n']:.0f}", xlabel=title, ylabel=name)
    axes["b"].plot(*zip(*CFG.values(), strict=True), "o-", color="grey", markersize=4, linewidth=1)
    for w, place in CFG.items():
        axes["b"].annotate(f"{w:g}", place, xytext=(3, 3), textcoords="offset points", fontsize=7)
    axes["b"].set(title="published: ImageNet 64x64, by w_seed", xlabel="FID", ylabel="Inception Score")
    axes["c"].set(title="precision and recall", xlabel="recall", ylabel="precision")
    axes["e"].axhline(real.frechet, color="grey", linewidth=0.8, linestyle=":", label="real training pictures")
    axes["e"].set(title="distance by scale", xlabel="w_seed", ylabel=title, yscale="log")
    axes["e"].plot(
        W_SEEDS, [CFG[w][0] / CFG[0.0][0] * at(points, "cfg", 0.0)["frechet"] for w in W_SEEDS], "x:",
        color="grey", ms=4, lw=1, label="published FID, scaled to start alike",
    )  # fmt: skip
    for key in "ace":
        axes[key].legend(fontsize=7)
    plain = of(points, "cfg")
    strips(axes["d"], plain, [f"{p.scale:g}" for p in plain], "samples by w_seed: one noise and one label a column")
    return drawn
