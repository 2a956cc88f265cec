"""Bits per dimension by the variational bound.

    -log2 p(x_0) / D  <=  L_T + sum_{i=2}^{T} L_{i-1} + L_0,   each of `gaussian` (4), in bits a dimension  (1)

The sum runs over every step of the T-step grid, or is estimated without bias from `draws` steps a row: drawn with
p_i in proportion to 1/i, as the terms themselves fall, stratified over the row, and weighted by 1/(draws p_i).  (Drawn
uniformly, a row rarely meets the few early steps that hold most of its bits, and small samples come out too low.)  L_T
and L_0 are always computed for every row.  The bin width belongs to the codec: digits have 17 levels, pictures 256,
and a uniform guess costs log2(levels) bits.

J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239, eq. (5)
A. Nichol, P. Dhariwal, "Improved Denoising Diffusion Probabilistic Models", arXiv:2102.09672
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato import gaussian
from sfumato.denoiser import Cond, Denoiser
from sfumato.noise import BOUND, normal, philox
from sfumato.options import unknown, whole
from sfumato.variances import VARIANCES

EpsAt = Callable[[Tensor, Tensor], Tensor]  # (rows, step of each row) -> eps of x_0's shape


@dataclass(frozen=True)
class Bound:
    """The bound (1) and its parts, bits a dimension, means over the rows.

    terms: (T,), [L_0, L_1, ..., L_{T-1}] when every step was computed, else None.  rows: (N,), each row's total.
    standard_error: of the mean over rows, which holds the draws' own error too.
    """

    total: float
    standard_error: float
    prior: float
    decoder: float
    rows: Tensor
    terms: Tensor | None


def bits_per_dim(
    denoiser: Denoiser,
    x_0: Tensor,
    *,
    bin_width: float | None,
    cond: Cond | None = None,
    variance: str = "model",
    steps: int = 1000,
    draws: int | None = None,
    seed: int = 0,
    batch: int = 512,
    eps_at: EpsAt | None = None,
) -> Bound:
    """The bound (1) for x_0 (N, ...), in codec units.

    bin_width: the codec's; None gives a bound on the density.  variance: a row of VARIANCES.  steps: T on a
    continuous schedule; a T-step one has its own.  draws: steps drawn a row, None for all T.  Row n's noise at step
    i is a function of (seed, n, i), or eps_at(rows, steps) if that is given.
    """
    if variance not in VARIANCES:
        raise unknown("variance", variance, VARIANCES)
    total_steps = denoiser.schedule.steps or whole("steps", steps)
    if not len(x_0):
        raise ValueError(f"x_0 has shape {tuple(x_0.shape)}; the bound needs at least one row")
    n, dimension = len(x_0), x_0[0].numel()
    draws = None if draws is not None and draws >= total_steps - 1 else draws
    if draws is not None and draws < 1:
        raise ValueError(f"draws must be at least 1, or None for every step; got {draws}")
    noise = eps_at or (lambda rows, i: _row_noise(seed, rows, i, x_0.shape[1:]))
    nats = torch.zeros(n, total_steps, dtype=torch.float64) if draws is None else None
    middle = torch.zeros(n, dtype=torch.float64)
    first = torch.zeros(n, dtype=torch.float64)
    for rows, i, weight in _visits(n, total_steps, draws, seed, batch):
        values = _terms(denoiser, x_0, cond, variance, total_steps, rows, i, noise, bin_width)
        first.index_add_(0, rows[i == 1], values[i == 1])
        middle.index_add_(0, rows[i > 1], (weight * values)[i > 1])
        if nats is not None:
            nats[rows, i - 1] = values
    prior = gaussian.prior_term(denoiser.schedule, x_0).flatten(1).sum(1).cpu()
    bits = 1 / (dimension * math.log(2))
    rows_total = (prior + first + middle) * bits
    return Bound(
        total=rows_total.mean().item(),
        standard_error=(rows_total.std() / math.sqrt(n)).item() if n > 1 else math.nan,
        prior=prior.mean().item() * bits,
        decoder=first.mean().item() * bits,
        rows=rows_total,
        terms=None if nats is None else nats.mean(0) * bits,
    )


def _visits(n: int, steps: int, draws: int | None, seed: int, batch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(rows, steps i, weights where i > 1) in batches: step 1 of every row, and the others or a draw of them."""
    weights = torch.ones(steps + 1, dtype=torch.float64)
    if draws is None:
        others = torch.arange(2, steps + 1).repeat(n, 1)
    else:
        p = 1 / torch.arange(2, steps + 1, dtype=torch.float64)
        p = p / p.sum()
        u = torch.from_numpy(philox(seed, BOUND, 2**32).random((n, draws)))
        stratified = (torch.arange(draws) + u) / draws
        others = 2 + torch.searchsorted(p.cumsum(0), stratified, right=True).clamp(max=steps - 2)
        weights[2:] = 1 / (draws * p)
    everything = torch.cat([torch.ones(n, 1, dtype=torch.long), others], 1)
    flat_rows, flat_steps = torch.arange(n)[:, None].expand_as(everything).reshape(-1), everything.reshape(-1)
    for chunk in torch.arange(len(flat_rows)).split(batch):
        yield flat_rows[chunk], flat_steps[chunk], weights[flat_steps[chunk]]


def _row_noise(seed: int, rows: Tensor, i: Tensor, shape: torch.Size) -> Tensor:
    return torch.cat([normal([seed + 2**20 * int(r)], shape, BOUND, int(k)) for r, k in zip(rows, i, strict=True)])


def _terms(
    denoiser: Denoiser,
    x_0: Tensor,
    cond: Cond | None,
    variance: str,
    steps: int,
    rows: Tensor,
    i: Tensor,
    noise: EpsAt,
    bin_width: float | None,
) -> Tensor:
    """The bound's term of each row at its step i, nats summed over dimensions, (B,), float64, on the CPU."""
    schedule, there = denoiser.schedule, rows.to(x_0.device)
    x, t, s = x_0[there], (i.double() / steps).to(x_0.device), ((i - 1).double() / steps).to(x_0.device)
    x_t = gaussian.perturb(schedule, x, t, noise(rows, i).to(x))
    with torch.no_grad():
        p = denoiser(x_t, t, None if cond is None else {name: c[there] for name, c in cond.items()})
        log_variance = VARIANCES[variance](schedule, t, s, p)
        return gaussian.bound_term(schedule, x, x_t, t, s, p.x0, log_variance, bin_width).flatten(1).sum(1).cpu()
