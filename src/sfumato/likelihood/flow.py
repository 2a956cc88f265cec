"""Log-likelihood by the probability-flow ODE.

The flow carries the density of noise to one of data.  In z = x_t/r and the angle u of `samplers.runge_kutta` (1), (2),

    d log p(z)/du = -div dz/du,   so that                                                                   (1)
    log p_0(x_0) = log p_1(x_1) + sum_i log(r_i(1)/r_i(0)) + int div dz/du du   from data to noise          (2)

which is exact for any denoiser, learned or not: a flow has one density.  (A T-step network is asked between its steps
and below the first one, too.)  Both integrals are one state,

    y = (z_1, ..., z_D, l/sqrt(D)),   dl/du = div dz/du = sum_v v^T (d/dz dz/du) v                          (3)

so the same Runge-Kutta generator takes the same steps for both; scaled like this, l counts in a row's error as the
mean of D dimensions.  The sum in (3) runs over the D unit vectors (exact), or is the mean over a few random v of +-1,
fixed along the way, so that the ODE is smooth (Hutchinson: no bias, one gradient a v).

Levels are made a density by noise of one bin's width (uniform dequantisation), whose bits are a bound by Jensen:

    -log2 P(x) <= -E_u log2 p_0(x + u) - D log2 bin,   u uniform in [-bin/2, bin/2]^D                       (4)

Y. Song et al., "Score-Based Generative Modeling through SDEs", arXiv:2011.13456, sec. 4.3 and app. D.2
W. Grathwohl et al., "FFJORD", arXiv:1810.01367 (the trace estimate)
L. Theis, A. van den Oord, M. Bethge, "A note on the evaluation of generative models", arXiv:1511.01844 (4)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.denoiser import Cond, Denoiser, Prediction
from sfumato.gaussian import expand
from sfumato.noise import DEQUANTISE, HUTCHINSON, normal, philox
from sfumato.options import unknown, whole
from sfumato.samplers.runge_kutta import Clock, Solve, integrate

EXACT = 32  # "auto": up to so many dimensions the divergence is exact, a gradient a dimension at every call
Prior = Callable[[Tensor], Tensor]  # x_1 (B, ...) -> log p_1(x_1), nats, (B,)
Vectors = list[Tensor]  # the v of (3), each to be broadcast to z (B, ...)


def _exact(rows: range, shape: torch.Size, probes: int, seed: int) -> Vectors:
    return list(torch.eye(shape.numel()).reshape(-1, 1, *shape))


def _hutchinson(rows: range, shape: torch.Size, probes: int, seed: int) -> Vectors:
    seeds = [seed + 2**20 * row for row in rows]
    return [normal(seeds, shape, HUTCHINSON, probe).sign() / math.sqrt(probes) for probe in range(probes)]


def _auto(rows: range, shape: torch.Size, probes: int, seed: int) -> Vectors:
    return (_exact if shape.numel() <= EXACT else _hutchinson)(rows, shape, probes, seed)


# (rows, shape of one, probes, seed) -> the v of (3); a row's own are a function of (seed, row)
DIVERGENCES: dict[str, Callable[[range, torch.Size, int, int], Vectors]] = {
    "auto": _auto,
    "exact": _exact,
    "hutchinson": _hutchinson,
}


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    *,
    prior: Prior | None = None,
    cond: Cond | None = None,
    tolerance: float = 1e-5,
    divergence: str = "auto",
    probes: int = 1,
    seed: int = 0,
    batch: int = 256,
) -> Tensor:
    """log p_0(x) of each row by (2), nats, (N,), float64; x is (N, ...), in codec units.

    prior: log-density of x_1, N(0, prior_std^2 I) if None.  tolerance: `samplers.runge_kutta`'s, for z and for l/D.
    divergence: a row of DIVERGENCES.  probes: vectors of Hutchinson's estimate.  Row n does not depend on the others.
    The denoiser must be differentiable by x.  Take one that does not clip x_0: no flow leads out of the limits, so what
    noise has put there has no density.
    """
    if divergence not in DIVERGENCES:
        raise unknown("divergence", divergence, DIVERGENCES)
    if not len(x) or not x.is_floating_point():
        raise ValueError(f"x must be rows of floating point numbers; got {x.dtype} {tuple(x.shape)}")
    clock, parts = Clock(denoiser.schedule), []
    for start in range(0, len(x), whole("batch", batch)):
        rows = range(start, min(start + batch, len(x)))
        part = None if cond is None else {name: c[rows.start : rows.stop] for name, c in cond.items()}
        vectors = [v.to(x) for v in DIVERGENCES[divergence](rows, x.shape[1:], whole("probes", probes), seed)]
        if start == 0:
            _check_slope(denoiser, x[: len(rows)], part, clock)
        parts.append(_integral(denoiser, x[rows.start : rows.stop], prior, part, clock, vectors, tolerance))
    return torch.cat(parts)


@dataclass(frozen=True)
class FlowBits:
    """The bound (4), bits a dimension.

    total: mean over the rows.  standard_error: of that mean, which holds the noise of the draws and of the probes.
    rows: (N,).  calls: of the denoiser, in all, each for a batch of rows.
    """

    total: float
    standard_error: float
    rows: Tensor
    calls: int


def bits_per_dim_flow(
    denoiser: Denoiser,
    x_0: Tensor,
    *,
    bin_width: float | None,
    encode: Callable[[Tensor], Tensor] | None = None,
    draws: int = 1,
    prior: Prior | None = None,
    cond: Cond | None = None,
    tolerance: float = 1e-4,
    divergence: str = "auto",
    probes: int = 1,
    seed: int = 0,
    batch: int = 256,
) -> FlowBits:
    """(4) for x_0 (N, ...) at the centres of bins of bin_width; None is for data without levels, and adds no noise.

    encode: from there to the denoiser's units, if they are others: it must keep volumes, as an orthonormal transform
    does.  draws: of u a row, averaged.  The others are `log_likelihood`'s.
    """
    if not len(x_0) or not x_0.is_floating_point():
        raise ValueError(
            f"x_0 is at least one row of floats, in codec units (codec.encode(x)); got {x_0.dtype} {tuple(x_0.shape)}"
        )
    n, dimension = len(x_0), x_0[:1].numel()
    counted, bits = _Counted(denoiser), torch.zeros(n, dtype=torch.float64)
    for draw in range(whole("draws", draws) if bin_width else 1):
        noisy = x_0 + (bin_width or 0) * _uniform(n, x_0.shape[1:], seed, draw).to(x_0)
        log_p = log_likelihood(
            counted,
            encode(noisy) if encode else noisy,
            prior=prior,
            cond=cond,
            tolerance=tolerance,
            divergence=divergence,
            probes=probes,
            seed=seed + 2**50 * draw,
            batch=batch,
        )
        bits -= (log_p / dimension + math.log(bin_width or 1)) / math.log(2)
    bits /= draws if bin_width else 1
    error = (bits.std() / math.sqrt(n)).item() if n > 1 else math.nan
    return FlowBits(bits.mean().item(), error, bits, counted.calls)


@final
class _Counted(Denoiser):
    def __init__(self, inner: Denoiser):
        self.inner, self.schedule, self.calls = inner, inner.schedule, 0

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        self.calls += 1
        return self.inner(x_t, t, cond)


def _uniform(n: int, shape: torch.Size, seed: int, draw: int) -> Tensor:
    """Uniform in [-1/2, 1/2], (n, *shape): row by row a function of (seed, row, draw)."""
    rows = [philox(seed + 2**20 * row, DEQUANTISE, draw).random(tuple(shape)) for row in range(n)]
    return torch.stack([torch.as_tensor(row) for row in rows]) - 0.5


def _integral(
    denoiser: Denoiser,
    x: Tensor,
    prior: Prior | None,
    cond: Cond | None,
    clock: Clock,
    vectors: Vectors,
    tolerance: float,
) -> Tensor:
    """(2) for one batch (B, ...): (B,)."""
    scale = math.sqrt(x[0].numel())

    def field(y: Tensor, u: Tensor) -> Solve:
        velocity, divergence = yield y[:, :-1].view_as(x), clock.time(u)
        return torch.cat([velocity.flatten(1), divergence[:, None] / scale], 1)

    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    r = clock.at(ends)[0]
    y = torch.cat([(x / expand(r[:1], x)).flatten(1), x.new_zeros(len(x), 1)], 1)
    walk, answer = integrate(field, y, clock, ends, tolerance), None
    while True:
        try:
            z, t = walk.send(answer)
        except StopIteration as end:
            y = end.value
            break
        answer = _velocity(denoiser, clock, z, t, cond, vectors)
    x_1 = expand(r[1:], x) * y[:, :-1].view_as(x)
    stretch = torch.broadcast_to(expand((r[1:] / r[:1]).log(), x), x.shape).double().flatten(1).sum(1)
    with torch.no_grad():
        log_prior = _normal(x_1, denoiser.schedule.prior_std) if prior is None else prior(x_1)
    return (log_prior.double() + stretch + y[:, -1].double() * scale).cpu()


def _normal(x: Tensor, std: float) -> Tensor:
    """log N(x; 0, std^2 I), nats, (B,), float64."""
    return -0.5 * ((x.double() / std).square() + math.log(2 * math.pi * std**2)).flatten(1).sum(1)


def _velocity(
    denoiser: Denoiser, clock: Clock, z: Tensor, t: Tensor, cond: Cond | None, vectors: Vectors
) -> tuple[Tensor, Tensor]:
    """dz/du (B, ...) and sum_v v^T (d/dz dz/du) v (B,); gradients are on in here and nowhere else."""
    with torch.inference_mode(False), torch.enable_grad():
        z = z.detach().clone().requires_grad_()
        r, of_x0, of_eps = (expand(c, z) for c in clock.at(t))
        p = denoiser(r * z, t.to(z.device), cond)
        velocity = of_x0 * p.x0 + of_eps * p.eps
        divergence = torch.zeros_like(z).flatten(1).sum(1)
        for i, v in enumerate(vectors):
            divergence = divergence + (v * _pull(velocity, z, v, keep=i + 1 < len(vectors))).flatten(1).sum(1)
    return velocity.detach(), divergence.detach()


def _pull(velocity: Tensor, z: Tensor, v: Tensor, keep: bool) -> Tensor:
    """v^T (d velocity/dz), (B, ...)."""
    try:
        return torch.autograd.grad(velocity, z, v.expand_as(velocity), retain_graph=keep)[0]
    except RuntimeError as error:
        raise ValueError(
            f"the denoiser cannot be differentiated by x ({str(error).splitlines()[0]}); a likelihood by the ODE needs "
            "one that neither detaches, nor runs under no_grad, nor changes its tensors in place"
        ) from error


def _check_slope(denoiser: Denoiser, x: Tensor, cond: Cond | None, clock: Clock) -> None:
    """Raise ValueError if the gradient of the denoiser's answer is not its slope: part of it was then detached.

    For a few rows, half-way between data and noise: v^T J v against a difference of the velocity along v.
    """
    x = x[:8]
    cond = None if cond is None else {name: c[:8] for name, c in cond.items()}
    u = clock.angles[-1:].expand(len(x)) / 2
    v = _hutchinson(range(len(x)), x.shape[1:], 1, 0)[0].to(x)
    z, t, step = expand(u.cos(), x) * x + expand(u.sin(), x) * v.roll(1, -1), clock.time(u), 0.03
    slope = _velocity(denoiser, clock, z, t, cond, [v])[1]
    ahead, behind = (_velocity(denoiser, clock, z + way * step * v, t, cond, [])[0] for way in (1, -1))
    measured = (v * (ahead - behind)).flatten(1).sum(1) / (2 * step)
    size = (slope.abs() + measured.abs()).sum() + 1e-2 * x.numel()
    if not bool((slope - measured).abs().sum() <= 0.25 * size):
        raise ValueError(
            f"the gradient of the denoiser's answer by x ({slope.sum():.3g}) is not its slope ({measured.sum():.3g}); "
            "a likelihood by the ODE needs a denoiser that does not detach or use no_grad inside"
        )
