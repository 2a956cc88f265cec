"""bound-terms: where the bits of the variational bound are spent.

    -log2 p(x_0)/D  <=  L_T + sum_{i=2}^{T} L_{i-1} + L_0                                                  (1)
    L_{i-1} = lambda_t E |x0(x_t, t) - x_0|^2 / D  in nats, t = i/T, with lambda_t = c_0^2/(2 u_ts)          (2)

(2) holds for the small variance, and as a weight on the error of eps it is lambda_t/snr_t: what L_simple replaces by 1.
Every term is computed for every row, on held-out data, of the model as it samples (clipped, given its labels).

J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239, eqs. (5), (12), (14), table 4
A. Nichol, P. Dhariwal, "Improved Denoising Diffusion Probabilistic Models", arXiv:2102.09672, figure 2
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato import losses
from sfumato.experiments import figures
from sfumato.experiments.report import Report, Request, remembered
from sfumato.experiments.trained import Trained, trained
from sfumato.likelihood import bits_per_dim
from sfumato.metrics import HistogramBits
from sfumato.noise import BOUND, normal
from sfumato.schedules import Schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("term", "i", "t", "logsnr", "bits_per_dim", "lambda_x0", "lambda_eps", "x0_squared_error")
LEAST = 1e-8  # bits/dim, the least that is drawn
SPREAD = 2**20  # seeds between two rows' noise

SEE = """\
L_T is next to nothing: at T the picture is gone.  The bits lie at small t, where the finest grey levels are settled,
and most steps cost almost nothing each.  L_0 itself is small where neighbouring levels are further apart than the
noise of the first step, as the 17 levels of the digits are.  On the error of x_0 lambda_t falls over many orders of
magnitude; on that of eps it is largest at small t, then far below 1, until the last steps (where alpha goes to 0).
L_simple puts 1 there: it looks away from small t, and so gives up bits for what the eye sees.  The terms sum to the
model's bits/dim, to be compared with a per-pixel histogram's and with a uniform guess.
"""


@dataclass(frozen=True)
class Size:
    """Held-out rows, and how many of them are computed (and remembered) at a time."""

    rows: int
    block: int = 8


QUICK, FULL = Size(32), Size(1000)


@dataclass(frozen=True)
class Terms:
    """Means over rows, bits/dim: prior L_T; steps (T,) = [L_0, ..., L_{T-1}]; totals (N,), each row's bound."""

    prior: float
    steps: Tensor
    totals: Tensor

    @property
    def total(self) -> float:
        return self.totals.mean().item()

    @property
    def standard_error(self) -> float:
        return (self.totals.std() / math.sqrt(len(self.totals))).item()


def run(request: Request) -> Report:
    size = QUICK if request.quick else FULL
    subject = trained(request)
    terms = measure(request, subject, size)
    schedule, levels = subject.model.denoiser.schedule, subject.splits.info.levels
    assert levels is not None
    histogram = HistogramBits(subject.training_rows(), levels)
    histogram.update(subject.model.codec.decode(subject.held_out(len(terms.totals))[0]).cpu().numpy())
    rows = table(schedule, terms)
    middle = terms.steps[1:].sum().item()
    return Report(
        title="The terms of the variational bound",
        shown=(__doc__ or "").partition("\n\n")[2],
        see=SEE,
        basis=[
            *subject.basis,
            f"{len(terms.totals)} held-out rows, all {len(terms.steps)} steps of each, one noise a step and row",
        ],
        numbers=[
            ("L_T", f"{terms.prior:.3e} bits/dim"),
            (f"L_1 + ... + L_{len(terms.steps) - 1}", f"{middle:.4f} bits/dim"),
            ("L_0", f"{terms.steps[0].item():.4f} bits/dim"),
            ("sum: the bound", f"{terms.total:.4f} ± {terms.standard_error:.4f} bits/dim"),
            ("per-pixel histogram, on the same rows", f"{histogram.compute():.4f} bits/dim"),
            (f"uniform guess of {levels} levels", f"{math.log2(levels):.4f} bits/dim"),
        ],
        columns=COLUMNS,
        rows=rows,
        figure=_draw(rows, terms),
    )


def measure(request: Request, subject: Trained, size: Size) -> Terms:
    """Every term, in blocks of rows; a stopped run goes on with the next block."""
    x_0, labels = subject.held_out(size.rows)
    sums, priors, totals = torch.zeros(0), torch.zeros(0, dtype=torch.float64), []
    for first in range(0, len(x_0), size.block):
        rows = slice(first, min(first + size.block, len(x_0)))
        work = partial(_block, request, subject, x_0[rows], None if labels is None else labels[rows], first)
        part = remembered(request, {**subject.key, **asdict(size)}, f"rows-{first:05d}", work)
        sums = part["steps"] + (sums if len(sums) else 0)
        priors = torch.cat([priors, part["prior"]])
        totals.append(part["totals"])
        request.say(f"rows {rows.start}..{rows.stop - 1} of {len(x_0)}: {part['totals'].mean():.3f} bits/dim")
    return Terms(priors.sum().item() / len(x_0), sums / len(x_0), torch.cat(totals))


def _block(request: Request, subject: Trained, x_0: Tensor, labels: Tensor | None, first: int) -> dict[str, Tensor]:
    """Sums over some rows: steps (T,), the prior's (1,); and each row's total."""
    seeds = [request.seed + SPREAD * (first + row) for row in range(len(x_0))]

    def eps_at(rows: Tensor, steps: Tensor) -> Tensor:
        pairs = zip(rows.tolist(), steps.tolist(), strict=True)
        return torch.cat([normal([seeds[row]], x_0.shape[1:], BOUND, i) for row, i in pairs])

    bound = bits_per_dim(
        subject.model.in_float32().guided(),
        x_0,
        bin_width=subject.model.codec.bin_width,
        cond=None if labels is None else {"label": labels.to(x_0.device)},
        draws=None,
        eps_at=eps_at,
    )
    assert bound.terms is not None
    prior = torch.tensor([bound.prior], dtype=torch.float64)
    return {"steps": bound.terms * len(x_0), "prior": prior * len(x_0), "totals": bound.rows}


def table(schedule: Schedule, terms: Terms) -> list[list[Any]]:
    """The CSV's rows: L_0, L_1, ..., L_{T-1}, L_T and their sum."""
    steps = len(terms.steps)
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    logsnr, on_x0 = schedule.logsnr(t), losses.bound(schedule, t)
    on_eps = on_x0 * torch.exp(-logsnr)
    error = terms.steps * math.log(2) / on_x0
    rows: list[list[Any]] = []
    for k, bits in enumerate(terms.steps.tolist()):
        here = [x[k].item() for x in (t, logsnr)]
        weights = [on_x0[k].item(), on_eps[k].item()]
        rows.append([f"L_{k}", k + 1, *here, bits, *weights, None if k == 0 else error[k].item()])
    rows.append([f"L_{steps}", steps, 1.0, logsnr[-1].item(), terms.prior, None, None, None])
    rows.append(["sum", None, None, None, terms.total, None, None, None])
    return rows


def _draw(rows: list[list[Any]], terms: Terms) -> Figure:
    drawn = figures.figure(11, 3.8)
    axes = drawn.subplots(1, 3)
    steps = terms.steps.numpy()
    i = range(1, len(steps) + 1)
    axes[0].loglog(i[1:], steps[1:], linewidth=1, label="L_{i-1}, i = 2..T")
    axes[0].plot(1, max(steps[0], LEAST), "o", label=f"L_0 = {steps[0]:.2g}")
    axes[0].plot(len(steps), max(terms.prior, LEAST), "s", label=f"L_T = {terms.prior:.2g}")
    axes[0].set(title="each term", xlabel="i", ylabel=f"bits/dim (below {LEAST:g}: drawn there)")
    axes[0].legend(fontsize=8)
    for name, label in (("lambda_x0", "on the error of x_0"), ("lambda_eps", "on the error of eps")):
        values = [row[COLUMNS.index(name)] for row in rows[: len(steps)]]
        axes[1].loglog(i, values, linewidth=1, label=label)
    axes[1].axhline(1, color="grey", linewidth=0.8, linestyle="--", label="L_simple on eps")
    axes[1].set(title="lambda_t", xlabel="i", ylabel="weight")
    axes[1].legend(fontsize=8)
    axes[2].semilogx(i, steps.cumsum() + terms.prior, label="L_T + L_0 + ... + L_{i-1}")
    axes[2].axhline(terms.total, color="grey", linewidth=0.8, linestyle="--", label=f"sum = {terms.total:.3f}")
    axes[2].set(title="their sum", xlabel="i", ylabel="bits/dim", ylim=(0, None))
    axes[2].legend(fontsize=8)
    return drawn
