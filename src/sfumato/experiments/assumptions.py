"""assumptions: what a diffusion model need not be, on one data set, with one budget and one score.

    eps       the noise is predicted                    weight 1 on |eps error|^2                (DDPM)
    x0        the picture is predicted                  weight snr + 1 on |x_0 error|^2: that of v
    v         v = alpha eps - sigma x_0 is predicted    weight 1 on |v error|^2
    flow      dx/dt along the straight path             weight 1 on |dx/dt error|^2, logit-normal times
    no-time   flow, by a network that is not told t
    blur      noise and blur: alpha(t) of each frequency by itself, v predicted, weight 1 on |x_0 error|^2

The first three share their path (cosine, s = 0.2, T = 1000), and one equation turns each answer into the others, so
they differ only in what a network's error costs at each t.  All have the same network, batches and number of steps,
and are sampled by DDIM (on the straight path: Euler) with equal numbers of calls.  What lies under the score is the
error of the predicted x_0 by logSNR, which on every path of plain noise is the same question: its least possible value
does not depend on the path.  Beside it is that of one Gaussian a class, whose denoiser is exact and linear in x_t.

J. Ho et al., arXiv:2006.11239 (eps); T. Salimans, J. Ho, "Progressive Distillation", arXiv:2202.00512 (x0, v)
X. Liu et al., "Flow Straight and Fast", arXiv:2209.03003; P. Esser et al., arXiv:2403.03206 (logit-normal times)
Q. Sun et al., "Is Noise Conditioning Necessary for Denoising Generative Models?", arXiv:2502.13129 (no time)
E. Hoogeboom, T. Salimans, "Blurring Diffusion Models", arXiv:2209.05557
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato import gaussian
from sfumato.codecs import Codec
from sfumato.denoiser import Cond, Denoiser
from sfumato.experiments import figures
from sfumato.experiments.report import Report, Request, digest, remembered
from sfumato.experiments.trainings import SCORES, Judged, References, judged_by, score_cells, trained_here
from sfumato.model import Model, Sampling
from sfumato.noise import EPS, normal
from sfumato.recipes import assumptions as recipes
from sfumato.recipes.digits import digits
from sfumato.schedules import Rectified
from sfumato.tasks import generate
from sfumato.tasks.evaluate import bound_of
from sfumato.train import Loss, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ASSUMPTIONS: dict[str, Callable[[], Run]] = {
    "eps": lambda: replace(digits(), target="eps", loss=Loss(weighting="simple", times="stratified")),
    "x0": recipes.x0,
    "v": lambda: replace(digits(), loss=Loss(weighting="v", times="stratified")),
    "flow": recipes.flow,
    "no-time": recipes.blind,
    "blur": recipes.blur,
}
COLUMNS = ("assumption", "score", "calls", "logsnr", "value", "standard_error")
HEADS = ("assumption", "agreement", "energy distance", "nearest row", "bits/dim", "energy by calls")
LOGSNRS = (-6.0, -4.5, -3.0, -1.5, 0.0, 1.5, 3.0, 4.5, 6.0)
GAUSSIAN = "one Gaussian a class"
SHOWN = 10  # samples shown of each

SEE = """\
All six make digits, and after so short a training five of them lie nearer to held-out rows than one Gaussian a class
does.  eps is behind x0 and v on the same path: near t = 1 an error d of eps is one of d sigma/alpha in x_0, where its
curve rises at low logSNR, and there samples begin.  x0 pays at the other end: its error at high logSNR hardly shows in
samples, but costs more than a bit.  Flow does best with few calls.  The network that is not told t can read off a
picture how noisy it is, except near the ends, where its curve rises; more calls do not help it.  Blurring is behind
at this budget: its samples are grainier, and farther from every row.  (Differences of a few thousandths of energy
distance are noise.  The bits of both straight paths are no judgement of them: the bound's T = 1,000 equal steps begin
at sigma = 0.001, and most of it is spent on noise far below a bin of 0.125; a likelihood by the ODE has no steps.)
"""


@dataclass(frozen=True)
class Size:
    """Training steps and batch; samples, and the calls they are made with; held-out rows of bits/dim and x_0 errors.

    The main table is of the last of `calls`.
    """

    training: int
    batch: int
    samples: int
    calls: tuple[int, ...]
    rows: int


QUICK, FULL = Size(150, 64, 100, (10, 50), 64), Size(400, 64, 300, (5, 10, 20, 50), 120)


def run(request: Request) -> Report:
    size = QUICK if request.quick else FULL
    judged = judged_by(digits().data)
    found: dict[str, dict[str, Tensor]] = {}
    basis = []
    for name in ASSUMPTIONS:
        model = trained_here(request, name, plan(name, size, request.seed))
        key = {"weights": digest(model), **asdict(size)}
        found[name] = remembered(request, key, f"scores-{name}", partial(measure, model, judged, size, request.seed))
        basis.append(f"{name}: {_told(model)}, weights sha256 `{digest(model)}`")
        request.say(f"{name}: energy distance {found[name]['energy'][-1].item():.4f}")
    references = judged.references(size.samples, request.seed)
    linear = linear_errors(judged, size, request.seed)
    return Report(
        title="Assumptions revisited",
        shown=(__doc__ or "").partition("\n\n")[2],
        see=SEE,
        basis=[
            f"data: {judged.splits.info.source}; held out: {judged.splits.info.rule}",
            f"each trained in this run for {size.training} steps of {size.batch} rows, from the same first weights",
            *basis,
            f"{size.samples} samples of each, classes in turn, ddim on grid trailing, x_0 clipped where pixels have "
            f"limits; calls of the network: {', '.join(map(str, size.calls))}",
            f"bits/dim (the bound, x_0 clipped) and error of x_0 (not clipped): {size.rows} held-out rows, with labels",
        ],
        heads=HEADS,
        numbers=_numbers(found, references, size),
        columns=COLUMNS,
        rows=table(found, references, linear, size),
        figure=_draw(found, references, linear, size, judged.codec),
    )


def plan(name: str, size: Size, seed: int) -> Run:
    """A row of ASSUMPTIONS with the budget and the sampling that all have."""
    run = ASSUMPTIONS[name]()
    return replace(
        run,
        steps=size.training,
        batch=size.batch,
        seed=seed,
        precision="float32",
        optimiser=replace(run.optimiser, warmup=min(run.optimiser.warmup, size.training // 5)),
        sampling=Sampling(sampler="ddim", steps=size.calls[-1], grid="trailing"),
    )


def _told(model: Model) -> str:
    config = model.config
    return f"schedule {config.schedule['name']}, target {config.target}, the network is told t as {config.time}"


def measure(model: Model, judged: Judged, size: Size, seed: int) -> dict[str, Tensor]:
    """SCORES by calls (calls,), bits/dim with its standard error (2,), the error of x_0 by LOGSNRS, SHOWN samples."""
    by_calls = []
    for calls in size.calls:
        made = generate(model, size.samples, steps=calls, seed=seed)
        assert made.labels is not None
        by_calls.append(judged(made.x, made.labels))
    found = {score: torch.tensor([s[score] for s in by_calls], dtype=torch.float64) for score in SCORES}
    if model.config.gaussian:
        bound = bound_of(model, judged.splits, rows=size.rows, seed=seed)
        x_0, labels = judged.encoded_held_out(size.rows)
        squares = x0_squares(model.denoiser, x_0.to(model.device), {"label": labels.to(model.device)}, seed)
        found["bits"] = torch.tensor([bound.total, bound.standard_error], dtype=torch.float64)
        found["x0_error"] = squares.mean(1).sqrt()
    return {**found, "samples": torch.from_numpy(made.x[:SHOWN])}


@torch.no_grad()
def x0_squares(denoiser: Denoiser, x_0: Tensor, cond: Cond, seed: int) -> Tensor:
    """|x0(x_t, t) - x_0|^2 / D of each row at each of LOGSNRS, (LOGSNRS, N), float64; the noise is always the same."""
    schedule, found = denoiser.schedule, []
    eps = normal([seed + row for row in range(len(x_0))], x_0.shape[1:], EPS).to(x_0)
    for t in schedule.time_of_logsnr(torch.tensor(LOGSNRS, dtype=torch.float64)):
        at = t.expand(len(x_0)).to(x_0.device)
        p = denoiser(gaussian.perturb(schedule, x_0, at, eps), at, cond)
        found.append((p.x0 - x_0).double().square().flatten(1).mean(1).cpu())
    return torch.stack(found)


def linear_errors(judged: Judged, size: Size, seed: int) -> Tensor:
    """The error of x_0 of one Gaussian a class, by LOGSNRS."""
    x_0, labels = judged.encoded_held_out(size.rows)
    found = torch.zeros(len(LOGSNRS), len(x_0), dtype=torch.float64)
    for label, mixture in enumerate(judged.gaussians):
        here = labels == label
        found[:, here] = x0_squares(mixture.denoiser(Rectified(), x_0.shape[1:]), x_0[here], {}, seed)
    return found.mean(1).sqrt()


def table(found: dict[str, dict[str, Tensor]], references: References, linear: Tensor, size: Size) -> list[list[Any]]:
    """The CSV's rows."""
    rows: list[list[Any]] = []
    for name, scores in found.items():
        for score in SCORES:
            rows += [[name, score, c, None, v, None] for c, v in zip(size.calls, scores[score].tolist(), strict=True)]
        if "bits" in scores:
            rows.append([name, "bits_per_dim", None, None, *scores["bits"].tolist()])
            errors = zip(LOGSNRS, scores["x0_error"].tolist(), strict=True)
            rows += [[name, "x0_error", None, logsnr, value, None] for logsnr, value in errors]
    for name, values in references.items():
        rows += [[name, score, None, None, value, None] for score, value in values.items() if value is not None]
    rows += [[GAUSSIAN, "x0_error", None, x, v, None] for x, v in zip(LOGSNRS, linear.tolist(), strict=True)]
    return rows


def _numbers(found: dict[str, dict[str, Tensor]], references: References, size: Size) -> list[list[str]]:
    lines = []
    for name, scores in found.items():
        bits = "{:.3f} ± {:.3f}".format(*scores["bits"].tolist()) if "bits" in scores else "-"
        earlier = ", ".join(f"{v:.3f}" for v in scores["energy"].tolist())
        values = {score: scores[score][-1].item() for score in SCORES}
        lines.append([name, *score_cells(values), bits, earlier])
    return lines + [[name, *score_cells(values), "-", "-"] for name, values in references.items()]


def _draw(
    found: dict[str, dict[str, Tensor]], references: References, linear: Tensor, size: Size, codec: Codec
) -> Figure:
    drawn = figures.figure(13, 4.2)
    axes = drawn.subplots(1, 3, width_ratios=(1.25, 1, 1))
    sheet = torch.stack([codec.encode(scores["samples"]) for scores in found.values()])
    figures.pictures(axes[0], sheet, list(found), [""] * SHOWN, f"samples, {size.calls[-1]} calls")
    for name, scores in found.items():
        axes[1].semilogx(size.calls, scores["energy"], "o-", markersize=4, linewidth=1, label=name)
    for style, (name, values) in zip("-.:", references.items(), strict=False):
        if values["energy"] is not None:
            axes[1].axhline(values["energy"], color="grey", linewidth=0.9, linestyle=style, label=name)
    axes[1].set_xticks(size.calls, [str(calls) for calls in size.calls])
    axes[1].minorticks_off()
    axes[1].set(title="energy distance to held-out rows", xlabel="calls of the network", ylim=(0, None))
    axes[1].legend(fontsize=7)
    for name, scores in found.items():
        if "x0_error" in scores:
            axes[2].plot(LOGSNRS, scores["x0_error"] / linear, "o-", markersize=4, linewidth=1, label=name)
    axes[2].axhline(1, color="grey", linewidth=0.9, linestyle=":", label=GAUSSIAN)
    axes[2].set(title="error of x_0 over that of the Gaussians", xlabel="logSNR", ylim=(0.7, 2.5))
    axes[2].legend(fontsize=7)
    return drawn
