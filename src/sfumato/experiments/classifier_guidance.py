"""classifier-guidance: an unconditional model told what to draw by a classifier of noisy pictures, by its scale s.

    Algorithm 1   x_s ~ N(mu + s Sigma g, Sigma),   g = grad log p(y | x_t)         ancestral sampling      (1)
    Algorithm 2   eps <- eps - s sigma g                                            any sampler             (2)

s = 0 is the model without guidance.  The model is unconditional in that it is told the null label, which is
classifier-free guidance with w = 0, and beside that the conditional model, told the label itself, w = 1.  Whether a
sample shows the label that was asked for is judged by a classifier of clean pictures, another network than the one that
guides.

On Gaussians everything is known.  Guidance at scale s is often read as sampling from p(x) p(y|x)^s, and that is what it
does at s = 0 and 1 only: the scores that it follows are those of p_t(x_t) p(y|x_t)^s, and for another s they are not
what the product becomes when noise is added to it.

P. Dhariwal, A. Nichol, "Diffusion Models Beat GANs on Image Synthesis", arXiv:2105.05233, sec. 4, table 4, fig. 4
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sfumato.classifier import Classifier, load_classifier
from sfumato.experiments import figures, guided_gaussians
from sfumato.experiments.published import ADM, Row
from sfumato.experiments.report import Report, Request, digest
from sfumato.experiments.sampled import Bench, Setting, bench, how_many, measured
from sfumato.experiments.tradeoff import (
    NOISE,
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
from sfumato.model import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# data set -> the zoo's classifier of its noisy pictures
NOISY = {"mnist": "mnist-noisy"}
SCALES = (0.0, 1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Arm:
    """How a curve is made: a sampler, an algorithm, w of the model (0 without label, 1 with), the scales."""

    sampler: str
    algorithm: int
    w: float
    scales: tuple[float, ...] = SCALES


DDIM, ANCESTRAL, CONDITIONAL = "unconditional, Algorithm 2", "unconditional, Algorithm 1", "conditional, Algorithm 1"
# the published curves are by Algorithm 1
ARMS = {
    ANCESTRAL: Arm("ancestral", 1, 0.0),
    CONDITIONAL: Arm("ancestral", 1, 1.0, (0.0, 1.0, 10.0)),
    DDIM: Arm("ddim", 2, 0.0),
}
STYLES = {DDIM: "o-", ANCESTRAL: "s--", CONDITIONAL: "d-."}


COLUMNS = (
    "curve",
    "scale",
    "sampler",
    "steps",
    "w",
    *VALUES,
    "published_fid",
    "published_sfid",
    "published_is",
    "published_precision",
    "published_recall",
    "mean",
    "standard_deviation",
    "distance_from_product",
)


@dataclass(frozen=True)
class Size:
    """Samples of every setting; steps of DDIM and of ancestral sampling; steps of both on Gaussians."""

    samples: int
    ddim: int
    ancestral: int
    chain: int


QUICK, FULL = Size(200, 10, 25, 100), Size(1000, 20, 50, 1000)


def run(request: Request) -> Report:
    size = QUICK if request.quick else FULL
    on = bench(request)
    judge = noise_aware(request, on.model)
    most = on.model.denoiser.schedule.steps
    steps = {name: min(wished, most or wished) for name, wished in (("ddim", size.ddim), ("ancestral", size.ancestral))}
    points = []
    for curve, arm in ARMS.items():
        for scale in arm.scales:
            setting = Setting(arm.sampler, steps[arm.sampler], None, guide(arm, scale, judge), size.samples)
            name = f"{arm.sampler}-{arm.w:g}-{scale:g}"
            points.append(point(curve, scale, measured(request, on, setting, name)))
    real = real_of(on, size.samples)
    gaussians = guided_gaussians.lines(SCALES, size.chain)
    return Report(
        title="Classifier guidance by its scale",
        shown=(__doc__ or "").partition("\n\n")[2],
        see=words(points, real) + "\n\n" + guided_gaussians.words(gaussians, size.chain),
        basis=[*on.basis, *basis(on, judge, size, steps)],
        heads=heads(on),
        numbers=numbers(points, real),
        columns=COLUMNS,
        rows=[*table(points, real, steps), *gaussian_table(gaussians, size.chain)],
        figure=_draw(points, real, on, gaussians),
        facts={**on.facts, "guiding_classifier": digest(judge)},
    )


def noise_aware(request: Request, model: Model) -> Classifier:
    """The zoo's classifier of noisy pictures of the model's data, noised as the model's are."""
    if not model.config.conditions.classes:
        raise ValueError(f"{request.name} asks for labels and {request.model} knows none; give a --model of classes")
    name = NOISY.get(model.config.trained_on.name)
    if name is None:
        raise ValueError(
            f"{request.name} needs a classifier of noisy pictures, and the zoo has them of {', '.join(NOISY)} only, "
            f"not of {model.config.trained_on.name}; give a --model of these data"
        )
    classifier = load_classifier(name)
    if dict(classifier.config.schedule or {}) != dict(model.config.schedule):
        raise ValueError(
            f"{request.model} was trained with schedule {model.config.schedule} and the classifier {name} with "
            f"{classifier.config.schedule}; give a --model of the classifier's schedule"
        )
    return classifier


def guide(arm: Arm, scale: float, judge: Classifier) -> Guide:
    """The guidance of an arm at a scale."""
    return Guide(
        arm.w,
        classifier=judge.logits,
        classifier_scale=scale,
        algorithm=arm.algorithm,
        told={"classifier": digest(judge)},
    )


def basis(on: Bench, judge: Classifier, size: Size, steps: Mapping[str, int]) -> list[str]:
    grid = on.model.config.sampling.grid
    return [
        f"every score: {how_many(size.samples)}, classes in turn, grid {grid}, the same noise at every scale; ddim "
        f"with {steps['ddim']} steps, ancestral with {steps['ancestral']}; an evaluation is one row of the model's "
        "network, and at scales above 0 each step costs a row of the classifier, forwards and backwards, beside it",
        f"the classifier that guides: {sum(p.numel() for p in judge.net.parameters()):,} parameters, noise-aware, "
        f"weights sha256 `{digest(judge)}`; "
        f"agreement is judged by `{on.network.name}`",
        "published: arXiv:2105.05233, table 4, ImageNet 256x256, 50,000 samples, Algorithm 1 with 250 steps; so the "
        f"curves by Algorithm 1 ({steps['ancestral']} steps) stand beside it",
        f"Gaussians: schedule {guided_gaussians.SCHEDULE}, grid {guided_gaussians.GRID}, {size.chain} steps, moments "
        "propagated exactly, float64",
    ]


def _published(p: Point) -> Row | None:
    """The published figures beside a point: they are by Algorithm 1."""
    arm = ARMS[p.curve]
    return ADM.get((arm.w == 1, p.scale)) if arm.algorithm == 1 else None


def table(points: Sequence[Point], real: Real, steps: Mapping[str, int]) -> list[list[Any]]:
    """The CSV's rows: measured and published side by side, and real pictures."""
    rows: list[list[Any]] = []
    for p in points:
        arm, beside = ARMS[p.curve], _published(p)
        published = [None] * 5 if beside is None else list(vars(beside).values())
        rows.append([p.curve, p.scale, arm.sampler, steps[arm.sampler], arm.w, *p.cells(), *published, *[None] * 3])
    return [*rows, ["real training pictures", *[None] * 4, *(real.values[name] for name in VALUES), *[None] * 8]]


def gaussian_table(found: Sequence[guided_gaussians.Line], steps: int) -> list[list[Any]]:
    """The CSV's rows of the Gaussians."""
    blank = [None] * (1 + len(VALUES) + 5)
    return [
        [what, scale, None, walked, *blank, *moments]
        for what, scale, walked, *moments in guided_gaussians.rows(found, steps)
    ]


def heads(on: Bench) -> list[str]:
    measured_here = ["agreement", on.network.title, "precision", "recall", "density", "coverage", "evaluations"]
    return ["guidance", "scale", *measured_here, "published FID", "published precision, recall"]


def numbers(points: Sequence[Point], real: Real) -> list[list[str]]:
    lines = []
    for name, scale, values, beside in (
        *((p.curve, f"{p.scale:g}", p.values, _published(p)) for p in points),
        ("real training pictures", "", real.values, None),
    ):
        lines.append(
            [
                name,
                scale,
                cell(values["agreement"], "{:.1%}"),
                cell(values["frechet"], "{:.3g}"),
                *(cell(values[key], "{:.3f}") for key in ("precision", "recall", "density", "coverage")),
                cell(values["evaluations"], "{:g}"),
                *(("-", "-") if beside is None else (f"{beside.fid:.2f}", f"{beside.precision}, {beside.recall}")),
            ]
        )
    return lines


def words(points: Sequence[Point], real: Real) -> str:
    """What the numbers say beside the published ones: where the shapes differ, and why."""
    paragraphs = [_agreement(points), _distance(points, ANCESTRAL, real), _variety(points), _algorithms(points, real)]
    return "\n\n".join([*(text for text in paragraphs if text), _distance(points, CONDITIONAL, real)])


def _agreement(points: Sequence[Point]) -> str:
    """Whether the samples show what was asked for."""
    here = of(points, ANCESTRAL)
    if here[0].values["agreement"] is None:
        return ""
    first, one, last = here[0], at(points, ANCESTRAL, 1.0), here[-1]
    text = (
        f"**Agreement** with the label asked for, by the classifier that does not guide: {percent(first['agreement'])} "
        f"without guidance, which knows no label, {percent(one['agreement'])} at scale 1, "
        f"{percent(last['agreement'])} at {last.scale:g} (it "
        f"{course([p['agreement'] for p in here], shares(first['n']))}). The paper's scale 1 gave the class asked for "
        "about half of its classifier's probability, in pictures that did not show it, and larger scales nearly all. "
    )
    if one["agreement"] > 0.9:
        return text + "Here scale 1 is enough: these classes are told apart early, while there still is much noise."
    return text + "Here, too, scale 1 is not enough: where the classifier is unsure its gradient is small."


def _by_scale(points: Sequence[Point], name: str, shape: str) -> str:
    return f"{told(points, name, shape)} at {', '.join(f'{p.scale:g}' for p in points)}"


def _distance(points: Sequence[Point], curve: str, real: Real) -> str:
    """Frechet distance by scale, at the published scales and at all."""
    here = of(points, curve)
    common = [p for p in here if _published(p) is not None]
    theirs = [found.fid for p in common if (found := _published(p)) is not None]
    best, within = least(here), real.within(here)
    published, ours = course(theirs, NOISE * min(theirs)), course([p["frechet"] for p in common], within)
    text = (
        f"**Frechet distance, {curve}.** Published it {published} ({', '.join(f'{fid:.2f}' for fid in theirs)} at "
        f"{', '.join(f'{p.scale:g}' for p in common)}); here it {ours} ({_by_scale(here, 'frechet', '{:.3g}')}), "
        f"least at {best.scale:g}. "
    )
    if ours == published:
        return text + "The shape is the published one."
    first, last, within_shares = here[0], here[-1], shares(here[0]["n"])
    fallen = last["recall"] < first["recall"] - within_shares
    if last["frechet"] > first["frechet"] + within:
        return text + (
            "The shapes differ: a large scale costs more here than it mends. Unguided samples are nearer to the data "
            f"than ImageNet's (precision {first['precision']:.2f}, published {_of_unguided(curve).precision}), and "
            f"what the classifier adds is {'certainty at the price of recall' if fallen else 'no more likeness'} "
            f"({first['recall']:.2f} without, {last['recall']:.2f} at {last.scale:g})."
        )
    if last["frechet"] < first["frechet"] - within:
        return text + (
            f"The shapes differ on the way: a large scale pays in both, and here 1 {_small(here, within)}. "
            f"{_shares(first, best)}"
        )
    return text + "The shapes differ: neither gain nor loss of the published size can be told from noise here."


def _small(here: Sequence[Point], within: float) -> str:
    """What scale 1 does to the distance."""
    apart = at(here, here[0].curve, 1.0)["frechet"] - here[0]["frechet"]
    return "costs too" if apart > within else "pays already" if apart < -within else "does nothing yet"


def _shares(first: Point, best: Point) -> str:
    """What guidance mends, by the classifier score."""
    if first.values["classifier_score"] is None or best["classifier_score"] <= first["classifier_score"]:
        return "What it mends is the likeness."
    return (
        "What it mends are the shares of the classes and the samples between them (classifier score "
        f"{first['classifier_score']:.2f} without, {best['classifier_score']:.2f} at {best.scale:g}), which features "
        "that are clusters by class see most."
    )


def _of_unguided(curve: str) -> Row:
    return ADM[ARMS[curve].w == 1, 0.0]


def _variety(points: Sequence[Point]) -> str:
    """Precision and recall of the unconditional model by scale."""
    here, found, same = of(points, ANCESTRAL), [], []
    ends = ADM[False, 0.0], ADM[False, 10.0]
    for name in ("precision", "recall"):
        values = [p[name] for p in here]
        within = shares(here[0]["n"])
        way = course([values[0], values[-1]], within)
        wanted = course([getattr(end, name) for end in ends], 0.01)
        same.append(way == wanted)
        found.append(
            f"{name}, published {getattr(ends[0], name)} to {getattr(ends[1], name)} from scale 0 to 10, here "
            f"{course(values, within)} ({_by_scale(here, name, '{:.2f}')})"
        )
    text = f"**Precision and recall, {ANCESTRAL}.** {found[0].capitalize()}; {found[1]}. "
    if all(same):
        return text + "It is the published trade: certainty for variety."
    if same[1]:
        return text + (
            "Recall pays as published, and precision does not gain: a large scale follows the classifier to where it "
            "is most certain, which is not where most pictures are."
        )
    if same[0]:
        return text + "Precision gains as published, and recall hardly pays: a class has few forms to lose here."
    return text + "Neither goes the published way: what guidance changes most here is the label, not the likeness."


def _algorithms(points: Sequence[Point], real: Real) -> str:
    """The two algorithms beside each other."""
    parts = []
    for p in of(points, ANCESTRAL):
        two = at(points, DDIM, p.scale)
        agreement = "" if p.values["agreement"] is None else f", agreement {percent(p['agreement'])}"
        other = "" if two.values["agreement"] is None else f", {percent(two['agreement'])}"
        both = f"{p['frechet']:.3g}{agreement} by the first, {two['frechet']:.3g}{other} by the second"
        parts.append(f"{p.scale:g}: {both}")
    one, two = least(of(points, ANCESTRAL)), least(of(points, DDIM))
    apart = one["frechet"] - two["frechet"]
    verdict = (
        "At their best scales they are as good."
        if abs(apart) <= real.within([one, two])
        else f"At its best scale the {'second' if apart > 0 else 'first'} is nearer to the data."
    )
    return (
        f"**Algorithm 1** (ancestral, {one['evaluations']:g} evaluations) **beside Algorithm 2** (DDIM, "
        f"{two['evaluations']:g}), distance by scale: {'; '.join(parts)}. {verdict}"
    )


def _draw(points: Sequence[Point], real: Real, on: Bench, gaussians: Sequence[guided_gaussians.Line]) -> Figure:
    drawn = figures.figure(13, 8)
    axes = drawn.subplot_mosaic([["a", "b", "c"], ["d", "d", "e"]], height_ratios=(1, 1.1))
    title, plain = on.network.title, of(points, ANCESTRAL)
    for curve, style in STYLES.items():
        here = of(points, curve)
        if here[0].values["agreement"] is not None:
            trade_off(axes["a"], here, "frechet", "agreement", curve, style)
        trade_off(axes["b"], here, "recall", "precision", curve, style)
        scales = [p.scale for p in here]
        axes["c"].plot(scales, [p["frechet"] for p in here], style, markersize=4, linewidth=1, label=curve)
    for conditional, style in ((False, "o:"), (True, "d:")):
        theirs = {scale: row for (told_label, scale), row in ADM.items() if told_label == conditional}
        x, y = [row.recall for row in theirs.values()], [row.precision for row in theirs.values()]
        label = f"published, {'conditional' if conditional else 'unconditional'}"
        axes["b"].plot(x, y, style, color="grey", markersize=4, linewidth=1, label=label)
        for scale, row in theirs.items():
            axes["b"].annotate(f"{scale:g}", (row.recall, row.precision), fontsize=7, color="grey")
    axes["a"].set(
        title=f"by scale, n = {points[0]['n']:.0f}", xlabel=title, ylabel="agreement with the label", xscale="log"
    )
    axes["b"].set(title="precision and recall by scale", xlabel="recall", ylabel="precision")
    axes["c"].axhline(real.frechet, color="grey", linewidth=0.8, linestyle=":", label="real training pictures")
    axes["c"].set(title="distance by scale", xlabel="scale s", ylabel=title, yscale="log")
    guided_gaussians.draw(axes["e"], gaussians)
    for key in "abce":
        axes[key].legend(fontsize=7)
    names = [f"{p.scale:g}" for p in plain]
    strips(axes["d"], plain, names, f"{ANCESTRAL}, by scale: one noise and one label a column")
    return drawn
