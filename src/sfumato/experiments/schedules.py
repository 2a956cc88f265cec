"""schedules: how linear, quadratic, cosine and sigmoid betas spend the same T steps.

    alpha-bar_i = prod_{j <= i} (1 - beta_j),   logSNR_i = log(alpha-bar_i/(1 - alpha-bar_i)),   i = 1..T

The terminal alpha-bar says how much of the picture is left at T, where sampling begins from pure noise: what is left
is paid for as L_T = KL(q(x_T | x_0) || N(0, I)).  The cost is the time to build a schedule and to ask it for logSNR.

J. Ho et al., arXiv:2006.11239 (linear, and "quad" of its code); A. Nichol, P. Dhariwal, "Improved Denoising Diffusion
Probabilistic Models", arXiv:2102.09672 (cosine, figures 3 and 5); M. Xu et al., "GeoDiff", arXiv:2203.02923 (sigmoid)
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato import gaussian
from sfumato.codecs import PixelCodec
from sfumato.experiments import figures
from sfumato.experiments.drawings import drawings
from sfumato.experiments.report import Report, Request
from sfumato.noise import EPS, normal
from sfumato.schedules import SCHEDULES, Discrete

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("linear", "quadratic", "cosine", "sigmoid")
COLUMNS = ("schedule", "i", "t", "beta", "alpha_bar", "logsnr", "terminal_alpha_bar", "build_ms", "call_us")
SHOWN_AT = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
CALL_ROWS = 256  # times asked at once where the cost of a call is measured
HEADS = ("schedule", "alpha-bar at T", "L_T of the picture", "i of logSNR = 0", "to build", f"logSNR of {CALL_ROWS} t")

SEE = """\
The linear betas drown the picture first: it has more noise than signal after a quarter of the steps, and the last half
is spent on what is noise already.  The sigmoid betas keep it longer and then lose it fastest; cosine lets it go most
evenly, over all of the steps, and with its last few betas, near 1, leaves least of it at T.  Quadratic leaves most.
Each costs next to nothing beside one call of a network.
"""


@dataclass(frozen=True)
class Size:
    """Steps T, every so many a row of the CSV, and how often the costs are measured."""

    repeats: int
    steps: int = 1000
    every: int = 10


QUICK, FULL = Size(repeats=30), Size(repeats=300)


def run(request: Request) -> Report:
    size = QUICK if request.quick else FULL
    made: dict[str, Discrete] = {name: SCHEDULES[name](steps=size.steps) for name in NAMES}  # type: ignore[misc]
    costs = {name: cost(name, size) for name in NAMES}
    rows = [row for name in NAMES for row in table(name, made[name], size, *costs[name])]
    x_0 = PixelCodec().encode(torch.from_numpy(drawings(64)))[:1, None]  # the spiral, (1, 1, H, W)
    numbers = []
    for name, schedule in made.items():
        left = schedule.alphas_cumprod[-1].item()
        bits = gaussian.prior_term(schedule, x_0).mean().item() / math.log(2)
        half = _where_equal(schedule)
        build_ms, call_us = costs[name]
        numbers.append(
            (name, f"{left:.6e}", f"{bits:.2e} bits/dim", str(half), f"{build_ms:.3f} ms", f"{call_us:.0f} µs")
        )
    return Report(
        title="Four schedules",
        shown=(__doc__ or "").partition("\n\n")[2],
        see=SEE,
        basis=[
            f"T = {size.steps}, the schedules' own defaults, float64",
            "picture: the spiral of `experiments/drawings.py`, 64x64 grey, the same noise in every column",
            f"costs: median of {size.repeats} repeats",
        ],
        heads=HEADS,
        numbers=numbers,
        columns=COLUMNS,
        rows=rows,
        figure=_draw(made, x_0, request.seed),
    )


def table(name: str, schedule: Discrete, size: Size, build_ms: float, call_us: float) -> list[list[Any]]:
    """The CSV's rows of one schedule: i = 1, every `every`-th, T."""
    t = torch.arange(1, schedule.steps + 1, dtype=torch.float64) / schedule.steps
    betas, alpha_bar = schedule.betas.tolist(), schedule.alphas_cumprod.tolist()
    logsnr = schedule.logsnr(t).tolist()
    kept = sorted({1, schedule.steps, *range(size.every, schedule.steps + 1, size.every)})
    return [
        [name, i, i / schedule.steps, betas[i - 1], alpha_bar[i - 1], logsnr[i - 1], alpha_bar[-1], build_ms, call_us]
        for i in kept
    ]


def cost(name: str, size: Size) -> tuple[float, float]:
    """Median milliseconds to build the schedule, and microseconds to ask logSNR of CALL_ROWS times."""
    t = torch.rand(CALL_ROWS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    schedule = SCHEDULES[name](steps=size.steps)
    build = _median_seconds(lambda: SCHEDULES[name](steps=size.steps), size.repeats)
    call = _median_seconds(lambda: schedule.logsnr(t), size.repeats)
    return 1e3 * build, 1e6 * call


def _median_seconds(action: Callable[[], Any], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def _where_equal(schedule: Discrete) -> int:
    """The first i at which there is more noise than signal."""
    return 1 + int((schedule.alphas_cumprod > 0.5).sum())


def _draw(made: dict[str, Discrete], x_0: Tensor, seed: int) -> Figure:
    drawn = figures.figure(10, 7)
    top, bottom = drawn.subfigures(2, 1, height_ratios=(1, 1.35), squeeze=False)[:, 0]
    axes = top.subplots(1, 3)
    for name, schedule in made.items():
        i = torch.arange(1, schedule.steps + 1)
        axes[0].plot(i, schedule.betas, label=name)
        axes[1].plot(i, schedule.alphas_cumprod, label=name)
        axes[2].plot(i, schedule.logsnr(i.double() / schedule.steps), label=name)
    axes[0].set(title="beta", xlabel="i", yscale="log")
    axes[1].set(title="alpha-bar", xlabel="i")
    axes[2].set(title="logSNR", xlabel="i")
    axes[2].axhline(0, color="grey", linewidth=0.8, linestyle="--")
    axes[1].legend(fontsize=8)
    t = torch.tensor(SHOWN_AT, dtype=torch.float64)
    eps = normal([seed], x_0.shape[1:], EPS).expand(len(t), *x_0.shape[1:])
    pictures = torch.stack([gaussian.perturb(s, x_0.expand_as(eps), t, eps) for s in made.values()])
    figures.pictures(bottom.subplots(), pictures, list(made), [f"i = {round(1000 * x)}" for x in SHOWN_AT])
    return drawn
