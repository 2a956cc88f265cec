"""nll: what is minimised, what it costs in bits, and what the samples look like: Improved DDPM's table, on the digits.

    L_simple = E |eps error|^2/D             fixed variance, small (u_ts) or large (v_ts): the better one counts
    L_vlb    = the bound's terms, in bits    learned variance, times drawn by importance
    L_hybrid = L_simple + 0.001 L_vlb        learned variance, which L_vlb alone teaches

with linear and with cosine betas.  Bits/dim are the bound, every step of every held-out row, given its label; beside
them stand the differences to the first row, on the same rows with the same noise, whose errors are smaller; and the
bits/dim of the probability-flow ODE, another upper bound on the same quantity (uniform dequantisation, Hutchinson's
divergence), of fewer rows.  Both schedules begin as noisy, sqrt(beta_1) below the width of a bin, as Improved DDPM asks
for: otherwise what is compared is the bits that one of them spends on noise that no level can show.

A. Nichol, P. Dhariwal, "Improved Denoising Diffusion Probabilistic Models", arXiv:2102.09672, tables 1, 2, figure 2
Y. Song et al., "Score-Based Generative Modeling through SDEs", arXiv:2011.13456 (the ODE's likelihood)
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato.codecs import Codec
from sfumato.experiments import figures
from sfumato.experiments.report import Report, Request, digest, remembered
from sfumato.experiments.trainings import SCORES, Judged, References, judged_by, score_cells, trained_here
from sfumato.likelihood import bits_per_dim, bits_per_dim_flow
from sfumato.metrics import HistogramBits
from sfumato.model import Model, Sampling
from sfumato.recipes.digits import digits
from sfumato.tasks import generate
from sfumato.train import Loss, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEDULES = {"linear": "linear:steps={steps},beta_start=0.0007", "cosine": "cosine:steps={steps},s=0.2"}
OBJECTIVES = {
    "simple": Loss(kind="simple", weighting="simple", times="stratified"),
    "hybrid": Loss(kind="hybrid", weighting="simple", times="stratified"),
    "vlb": Loss(kind="vlb", times="importance"),
}
FIXED = ("small", "large")  # the variances of a model that learns none
COLUMNS = ("schedule", "objective", "score", "variance", "i", "value", "standard_error")
HEADS = ("schedule", "objective", "bits/dim", "to the first row", "ODE", "agreement", "energy distance", "nearest row")
SHOWN = 10  # samples shown of each

SEE = """\
The shape of the paper's table.  Cosine costs fewer bits than linear under every objective, and its terms are spread
over more of the steps.  Among objectives L_simple costs most bits; L_hybrid saves some by its learned variance alone
and makes as good samples; L_vlb saves most, and pays with samples that show the asked-for label less often, though on
these small pictures hardly with their energy distance, whose differences of a few thousandths are noise.  The ODE
agrees with the bound of simple and hybrid to within a tenth or two, and is far worse for vlb: it knows nothing of a
learned variance and asks for a density inside a bin, which L_vlb, whose last term counts whole bins, teaches nobody.
"""


@dataclass(frozen=True)
class Size:
    """Training steps and batch, T; held-out rows of the bound and of the ODE, its tolerance; samples, their steps."""

    training: int
    batch: int
    rows: int
    ode_rows: int
    samples: int
    steps: int = 100
    sampled: int = 50
    tolerance: float = 1e-2  # an error far below the standard error


QUICK, FULL = Size(120, 64, 32, 8, 100), Size(300, 64, 120, 32, 300)

Found = dict[tuple[str, str], dict[str, Tensor]]  # (schedule, objective) -> what `measure` gave


def run(request: Request) -> Report:
    size = QUICK if request.quick else FULL
    judged = judged_by(digits().data)
    found: Found = {}
    basis = []
    for pair in product(SCHEDULES, OBJECTIVES):
        name = "-".join(pair)
        model = trained_here(request, name, plan(*pair, size, request.seed))
        key = {"weights": digest(model), **asdict(size)}
        found[pair] = remembered(request, key, f"scores-{name}", partial(measure, model, judged, size, request.seed))
        basis.append(f"{name}: weights sha256 `{digest(model)}`")
        request.say(f"{name}: {best(found[pair])[1].mean().item():.3f} bits/dim")
    references = judged.references(size.samples, request.seed)
    histogram = HistogramBits(judged.train["x"], judged.splits.info.levels or 0)
    histogram.update(judged.held_out["x"][: size.rows])
    return Report(
        title="Bits and samples by schedule and objective",
        shown=(__doc__ or "").partition("\n\n")[2],
        see=SEE,
        basis=[
            f"data: {judged.splits.info.source}; held out: {judged.splits.info.rule}",
            f"schedules: {', '.join(text.format(steps=size.steps) for text in SCHEDULES.values())}",
            f"each trained in this run for {size.training} steps of {size.batch} rows, target v, the digits recipe's "
            "network; vlb draws times by importance as soon as each has been seen ten times",
            *basis,
            f"bound: {size.rows} held-out rows, all {size.steps} steps; ODE: the first {size.ode_rows} of them, to "
            f"tolerance {size.tolerance:g}, not clipped",
            f"{size.samples} samples of each, classes in turn, ancestral, {size.sampled} steps, its bound's variance",
        ],
        heads=HEADS,
        numbers=_numbers(found, references, histogram.compute()),
        columns=COLUMNS,
        rows=table(found, references),
        figure=_draw(found, references, judged.codec),
    )


def plan(schedule: str, objective: str, size: Size, seed: int) -> Run:
    """The digits recipe with a schedule and an objective, and the budget that all have."""
    run = digits()
    return replace(
        run,
        schedule=SCHEDULES[schedule].format(steps=size.steps),
        loss=OBJECTIVES[objective],
        learned_variance=objective != "simple",
        steps=size.training,
        batch=size.batch,
        seed=seed,
        optimiser=replace(run.optimiser, warmup=min(run.optimiser.warmup, size.training // 5)),
        sampling=Sampling(sampler="ancestral", steps=size.sampled, grid="trailing"),
    )


def measure(model: Model, judged: Judged, size: Size, seed: int) -> dict[str, Tensor]:
    """Each variance's bound of each row "rows-VARIANCE" (N,) and its terms (T,); the ODE's; SCORES; SHOWN samples."""
    x_0, labels = (a.to(model.device) for a in judged.encoded_held_out(size.rows))
    found: dict[str, Tensor] = {}
    exact = model.in_float32()
    ask = partial(bits_per_dim, exact.guided(), x_0, bin_width=model.codec.bin_width, cond={"label": labels}, seed=seed)
    for variance in ("learned",) if model.config.learned_variance else FIXED:
        bound = ask(variance=variance)
        assert bound.terms is not None
        found |= {f"rows-{variance}": bound.rows, f"terms-{variance}": bound.terms}
        found[f"prior-{variance}"] = torch.tensor([bound.prior], dtype=torch.float64)
    few = slice(size.ode_rows)
    ode = bits_per_dim_flow(
        exact.denoiser,
        x_0[few],
        bin_width=model.codec.bin_width,
        cond={"label": labels[few]},
        tolerance=size.tolerance,
        seed=seed,
    )
    made = generate(model, size.samples, sampler=f"ancestral:variance={best(found)[0]}", seed=seed)
    assert made.labels is not None
    scores = judged(made.x, made.labels)
    found |= {score: torch.tensor([value], dtype=torch.float64) for score, value in scores.items()}
    return {**found, "ode": ode.rows, "samples": torch.from_numpy(made.x[:SHOWN])}


def best(found: dict[str, Tensor]) -> tuple[str, Tensor]:
    """The variance with the least bound, and each row's bound under it (N,)."""
    variances = [name.removeprefix("rows-") for name in found if name.startswith("rows-")]
    which = min(variances, key=lambda variance: found[f"rows-{variance}"].mean().item())
    return which, found[f"rows-{which}"]


def _mean(rows: Tensor) -> tuple[float, float]:
    """A mean and its standard error."""
    return rows.mean().item(), (rows.std() / math.sqrt(len(rows))).item()


def table(found: Found, references: References) -> list[list[Any]]:
    """The CSV's rows."""
    rows: list[list[Any]] = []
    for pair, values in found.items():
        for name, x in values.items():
            what, _, variance = name.partition("-")
            if what == "rows":
                rows.append([*pair, "bits_per_dim", variance, None, *_mean(x)])
            elif what == "terms":
                rows += [[*pair, "term", variance, i, bits, None] for i, bits in enumerate(x.tolist(), start=1)]
            elif what == "prior":
                rows.append([*pair, "prior", variance, None, x.item(), None])
        rows.append([*pair, "bits_per_dim_ode", None, None, *_mean(values["ode"])])
        rows += [[*pair, score, best(values)[0], None, values[score].item(), None] for score in SCORES]
    for name, scores in references.items():
        rows += [[name, None, score, None, None, value, None] for score, value in scores.items() if value is not None]
    return rows


def _numbers(found: Found, references: References, histogram: float) -> list[list[str]]:
    lines, first = [], None
    for pair, values in found.items():
        variance, rows = best(values)
        first = rows if first is None else first
        apart = "-" if rows is first else "{:+.3f} ± {:.3f}".format(*_mean(rows - first))
        bits = "{:.3f} ± {:.3f}".format(*_mean(rows)) + f" ({variance})"
        ode = "{:.3f} ± {:.3f}".format(*_mean(values["ode"]))
        lines.append([*pair, bits, apart, ode, *score_cells({score: values[score].item() for score in SCORES})])
    lines += [[name, "", "-", "-", "-", *score_cells(scores)] for name, scores in references.items()]
    return [*lines, ["a histogram a pixel", "", f"{histogram:.3f}", *["-"] * 5]]


def _draw(found: Found, references: References, codec: Codec) -> Figure:
    drawn = figures.figure(13, 4.4)
    axes = drawn.subplots(1, 3, width_ratios=(1, 1, 1.25))
    colours, styles = (
        dict(zip(OBJECTIVES, ("C0", "C1", "C2"), strict=True)),
        dict(zip(SCHEDULES, ("--", "-"), strict=True)),
    )
    marks = dict(zip(SCHEDULES, "so", strict=True))
    for (schedule, objective), values in found.items():
        variance, rows = best(values)
        terms, (bits, error) = values[f"terms-{variance}"], _mean(rows)
        label = f"{schedule}, {objective}"
        i = range(1, len(terms) + 1)
        axes[0].loglog(i, terms, styles[schedule], color=colours[objective], linewidth=1, label=label)
        how = {"fmt": marks[schedule], "color": colours[objective], "markersize": 7, "label": label}
        axes[1].errorbar(bits, values["energy"].item(), xerr=error, capsize=2, **how)
    axes[0].set(title="each term of the bound", xlabel="i", ylabel="bits/dim")
    for name in ("training rows", "one Gaussian a class"):
        energy, style = references[name]["energy"], "-" if name == "training rows" else ":"
        assert energy is not None
        axes[1].axhline(energy, color="grey", linewidth=0.9, linestyle=style, label=name)
    axes[1].set(title="samples against bits", xlabel="bits/dim", ylabel="energy distance")
    for axis in axes[:2]:
        axis.legend(fontsize=7)
    sheet = torch.stack([codec.encode(values["samples"]) for values in found.values()])
    figures.pictures(axes[2], sheet, [", ".join(pair) for pair in found], [""] * SHOWN, "samples")
    return drawn
