"""forward-chain: a picture noised through q(x_t | x_{t-1}), beside the closed form q(x_t | x_0) at the same t.

Step by step, x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) eps_t, and at once, x_t = alpha_t x_0 + sigma_t eps, must
have the same distribution.  Of N chains from one x_0 with D pixels are measured

    signal    a = sum_n <x_t^n, x_0> / (N |x_0|^2),           theory alpha_t,    error sigma_t/sqrt(N |x_0|^2)
    variance  v = sum_n |x_t^n - mean_n x_t|^2 / (D (N - 1)), theory sigma_t^2,  error sigma_t^2 sqrt(2/(D (N - 1)))

whose errors are exact for Gaussian noise, so that z = (measured - theory)/error is N(0, 1) for the signal and, D N
being large, for the variance.

J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239, eqs. (2), (4), figure 2
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato import gaussian, schedules
from sfumato.codecs import PixelCodec
from sfumato.experiments import chains, figures
from sfumato.experiments.drawings import drawings
from sfumato.experiments.report import Report, Request
from sfumato.noise import EPS, normal
from sfumato.schedules import Discrete

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = (
    *("i", "t", "alpha", "signal_chain", "signal_closed", "z_signal_chain", "z_signal_closed"),
    *("sigma2", "variance_chain", "variance_closed", "z_variance_chain", "z_variance_closed"),
)
SHOWN_AT = (0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1)

SEE = """\
Both rows of pictures sink into the same noise at the same pace: they differ in their noise, not in its amount.  Signal
and variance, measured on either, lie on the curves of theory.  The z-scores look like draws of N(0, 1): nearly all
within ±2, hardly ever one beyond ±4; those of neighbouring t of the chain go together, since its states do.
"""


@dataclass(frozen=True)
class Size:
    """Chains measured, pixels a side, and the times at which they are looked at."""

    chains: int
    pixels: int = 64
    frames: int = 50


QUICK, FULL = Size(128), Size(2048)


def run(request: Request) -> Report:
    size = QUICK if request.quick else FULL
    schedule = schedules.linear()
    x_0 = PixelCodec().encode(torch.from_numpy(drawings(size.pixels)))[1]  # the plane, (H, W)
    rows, shown = measure(schedule, x_0, size, request.seed)
    last = rows[-1]
    return Report(
        title="The forward chain, step by step and at once",
        shown=(__doc__ or "").partition("\n\n")[2],
        see=SEE,
        basis=[
            f"picture: the plane of `experiments/drawings.py`, {size.pixels}x{size.pixels} grey",
            f"schedule: linear, T = {schedule.steps}, every step walked",
            f"{size.chains} chains, and at each t as many draws of the closed form",
        ],
        numbers=[
            ("largest z-score of the chain", f"{max(max(abs(r[5]), abs(r[10])) for r in rows):.2f}"),
            ("largest z-score of the closed form", f"{max(max(abs(r[6]), abs(r[11])) for r in rows):.2f}"),
            ("signal at T: theory, chain, closed form", f"{last[2]:.5f}, {last[3]:.5f}, {last[4]:.5f}"),
            ("variance at T: theory, chain, closed form", f"{last[7]:.5f}, {last[8]:.5f}, {last[9]:.5f}"),
        ],
        columns=COLUMNS,
        rows=rows,
        figure=_draw(rows, shown),
    )


def measure(schedule: Discrete, x_0: Tensor, size: Size, seed: int) -> tuple[list[list[Any]], Tensor]:
    """The CSV's rows, and one chain and one closed-form draw at SHOWN_AT: (2, K, 1, H, W)."""
    steps = schedule.steps
    times = torch.arange(steps + 1, dtype=torch.float64) / steps
    start = x_0.expand(size.chains, *x_0.shape)
    looked_at = set(chains.frame_numbers(steps, size.frames)[1:])
    shown_at = {round(t * steps) for t in SHOWN_AT}
    rows, shown = [], []
    for i, (t, x_t) in enumerate(chains.forward(schedule, start, times, seed)):
        if i not in looked_at | shown_at:
            continue
        eps = normal([seed], start.shape, EPS, steps + 1 + i)[0]
        at_once = gaussian.perturb(schedule, start, t.expand(size.chains), eps)
        if i in shown_at:
            shown.append(torch.stack([x_t[0], at_once[0]]))
        if i in looked_at:
            rows.append(_row(schedule, x_0, t, i, x_t, at_once))
    return rows, torch.stack(shown, 1)[:, :, None]


def _row(schedule: Discrete, x_0: Tensor, t: Tensor, i: int, chain: Tensor, closed: Tensor) -> list[Any]:
    n, power, pixels = len(chain), x_0.double().square().sum().item(), x_0.numel()
    alpha, sigma = schedule.alpha(t).item(), schedule.sigma(t).item()
    signal = [((x * x_0).sum(dtype=torch.float64) / (n * power)).item() for x in (chain, closed)]
    variance = [x.double().var(0).mean().item() for x in (chain, closed)]
    z_signal = [(a - alpha) / (sigma / math.sqrt(n * power)) for a in signal]
    z_variance = [(v - sigma**2) / (sigma**2 * math.sqrt(2 / (pixels * (n - 1)))) for v in variance]
    return [i, t.item(), alpha, *signal, *z_signal, sigma**2, *variance, *z_variance]


def _draw(rows: list[list[Any]], shown: Tensor) -> Figure:
    drawn = figures.figure(10, 5.4)
    top, bottom = drawn.subfigures(2, 1, height_ratios=(1, 1.25), squeeze=False)[:, 0]
    names = [f"t = {round(1000 * t)}" for t in SHOWN_AT]
    figures.pictures(top.subplots(), shown, ["step by step\nq(x_t | x_t-1)", "at once\nq(x_t | x_0)"], names)
    column = {name: [row[j] for row in rows] for j, name in enumerate(COLUMNS)}
    axes = bottom.subplots(1, 3)
    for axis, theory, what, label in (
        (axes[0], "alpha", "signal", "signal: theory alpha_t"),
        (axes[1], "sigma2", "variance", "variance: theory sigma_t²"),
    ):
        axis.plot(column["i"], column[theory], color="black", linewidth=1, label="theory")
        axis.plot(column["i"], column[f"{what}_chain"], "o", markersize=5, fillstyle="none", label="step by step")
        axis.plot(column["i"], column[f"{what}_closed"], "x", markersize=4, label="at once")
        axis.set(xlabel="t", title=label)
        axis.legend(fontsize=8)
    for name, marker in (
        ("signal_chain", "o"),
        ("variance_chain", "s"),
        ("signal_closed", "x"),
        ("variance_closed", "+"),
    ):
        axes[2].plot(column["i"], column[f"z_{name}"], marker, markersize=4, label=name.replace("_", ", "))
    for edge in (-2, 2):
        axes[2].axhline(edge, color="grey", linewidth=0.8, linestyle="--")
    axes[2].set(xlabel="t", title="z = (measured - theory)/error", ylim=(-6, 6))
    axes[2].legend(fontsize=7, ncols=2)
    return drawn
