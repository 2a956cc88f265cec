"""Adaptive Runge-Kutta: the probability-flow ODE to a tolerance, each row with steps of its own.

Divided by its scale, every point x_t = alpha x_0 + sigma eps lies at an angle between data and noise:

    r = sqrt(alpha^2 + sigma^2),   phi = atan2(sigma, alpha),   z = x_t/r = cos(phi) x_0 + sin(phi) eps     (1)

and the probability-flow ODE dx/dt = alpha' x0 + sigma' eps, with x0 and eps as predicted, becomes

    dz/dphi = cos(phi) eps - sin(phi) x0,   phi from 0 (data) to pi/2 (noise)                              (2)

for every schedule alike: it is regular at both ends, where alpha = 0 as well, and the kinks of a T-step schedule are
gone.  Where alpha or sigma differs from value to value of x (blurring), value i has its own angle phi_i, and all turn
with their mean u: dz_i/du = (phi_i'/u') (cos(phi_i) eps_i - sin(phi_i) x0_i).

A step of Dormand and Prince has order 5, with an estimate e of its error:

    k_j = f(y + h sum_{i<j} a_ji k_i, u + c_j h),   y <- y + h sum_j b_j k_j,   e = h sum_j (b_j - b*_j) k_j     (3)
    accepted if q = 10 |e|/(tolerance max(1, |y|)) <= 1;   then h <- h min(2, max(1/5, 0.9 q^(-1/5)))          (4)

where |.| is the root mean square over a row.  k_7 is the next step's k_1, so a step costs 6 calls.  The ten leaves
room for the other steps' errors and for what the flow makes of them; h grows slowly and stays below LONGEST, since an
estimate may vanish by chance.  A row that has arrived takes steps of length 0 until all have.  eps need not be defined
at sigma = 0, so the last (or first) EDGE radians are one midpoint step, asked at its middle, with an error of order
EDGE^3.

J. Dormand, P. Prince, "A family of embedded Runge-Kutta formulae", J. Comp. Appl. Math. 6 (1980), p. 19
E. Hairer, S. Norsett, G. Wanner, "Solving Ordinary Differential Equations I" (1993), sec. II.4
Y. Song et al., "Score-Based Generative Modeling through SDEs", arXiv:2011.13456, sec. 4.3
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import Any, final

import torch
from torch import Tensor

from sfumato.gaussian import expand
from sfumato.samplers.loop import Noise, Query, Steps, Walk
from sfumato.schedules import SNAP, Schedule

EDGE = 1e-3  # radians, as are
LONGEST, SHORTEST = 0.2, 1e-12
C = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
A = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),  # b: the last stage is the step's end
)
E = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)  # b - b*

# (y (B, ...), u (B,)) -> dy/du, by yielding questions and being sent the answers
Solve = Generator[Any, Any, Tensor]
Field = Callable[[Tensor, Tensor], Solve]


@final
class Clock:
    """(1) and (2) for a schedule: the angle u of a time, the time of an angle, and the coefficients of dz/du."""

    def __init__(self, schedule: Schedule):
        self.schedule = schedule
        self.times = torch.linspace(0, 1, 513, dtype=torch.float64).square()
        self.angles = torch.cat([self.angle(t) for t in self.times.split(32)])

    def angle(self, t: Tensor) -> Tensor:
        """u at t, both (B,)."""
        return self._angles(t).reshape(len(t), -1).mean(1)

    def _angles(self, t: Tensor) -> Tensor:
        """phi_i at t (B,): (B,), or (B, ...) where the schedule differs from value to value."""
        alpha, sigma = _alike(self.schedule.alpha(t), self.schedule.sigma(t))
        return torch.atan2(sigma, alpha)

    def time(self, u: Tensor) -> Tensor:
        """t at u, both (B,): within its cell by the secant method on u^2, which near t = 0 goes as t or t^2."""
        cell = torch.searchsorted(self.angles, u).clamp(1, len(self.times) - 1)
        low, high = self.times[cell - 1], self.times[cell]
        before, off_before = low, self.angles[cell - 1].square() - u.square()
        t, off = high, self.angles[cell].square() - u.square()
        for _ in range(30):
            slope = torch.where(off == off_before, 0.0, (t - before) / (off - off_before))
            near = bool((torch.minimum(off.abs(), off_before.abs()) < 1e-8 * u).all())
            before, off_before, t = t, off, torch.clamp(t - off * slope, low, high)
            if near:  # squared by this last step
                break
            off = self.angle(t).square() - u.square()
        return t

    def at(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """r, and the coefficients of x0 and eps in dz/du: each (B,), or (B, ...) where values differ."""
        alpha, sigma = _alike(self.schedule.alpha(t), self.schedule.sigma(t))
        r = torch.hypot(alpha, sigma)
        if r.ndim == 1:
            return r, -sigma / r, alpha / r
        turn = self.schedule.derivative(self._angles, t)
        turn = turn / expand(turn.flatten(1).mean(1), turn)  # d phi_i / du
        return r, -turn * sigma / r, turn * alpha / r


def _alike(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return expand(a, b), expand(b, a)


def runge_kutta(
    x: Tensor, times: Steps, schedule: Schedule, noise: Noise, *, tolerance: float = 1e-5, limit: int = 10_000
) -> Walk:
    """x_1 (B, ...) -> x_0, or back: from the first of times to the last, whatever lies between.

    tolerance: of z at the end, root mean square over a row.  limit: of calls, after which to give up.
    """
    clock = Clock(schedule)

    def field(z: Tensor, u: Tensor) -> Walk:
        t = clock.time(u)
        r, of_x0, of_eps = (expand(c, z) for c in clock.at(t))
        p = yield Query(r * z, t)
        return of_x0 * p.x0 + of_eps * p.eps

    ends = torch.stack([times[0][0], times[-1][1]]).to("cpu", torch.float64)
    scales = torch.hypot(*_alike(schedule.alpha(ends), schedule.sigma(ends)))
    z = yield from integrate(field, x / expand(scales[:1], x), clock, ends, tolerance, limit)
    return expand(scales[1:], x) * z


def integrate(field: Field, y: Tensor, clock: Clock, ends: Tensor, tolerance: float, limit: int = 10_000) -> Solve:
    """y (B, ...) at the first of the two times `ends` -> y at the second, along dy/du = field(y, u)."""
    start, end = clock.angle(ends).tolist()
    edge = min(max(start, end), max(EDGE, 2 * clock.angle(torch.tensor([2 * SNAP])).item()))
    if start == 0:
        y = yield from midpoint(field, y, 0.0, edge)
    y = yield from dormand_prince(field, y, start or edge, end or edge, tolerance, limit)
    if end == 0:
        y = yield from midpoint(field, y, edge, 0.0)
    return y


def midpoint(field: Field, y: Tensor, start: float, end: float) -> Solve:
    """One step from start to end that asks only at its middle, twice: y_m = y + h/2 f(y), y + h f(y_m)."""
    middle = torch.full((len(y),), (start + end) / 2, dtype=torch.float64)
    k = yield from field(y, middle)
    k = yield from field(y + (end - start) / 2 * k, middle)
    return y + (end - start) * k


def dormand_prince(field: Field, y: Tensor, start: float, end: float, tolerance: float, limit: int) -> Solve:
    """(3) and (4) from u = start to end; y is (B, ...), and each row has its own u and h."""
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie between 0 and 1; got {tolerance}")
    tolerance = max(tolerance, 10 * torch.finfo(y.dtype).eps)
    way = math.copysign(1, end - start)
    u = torch.full((len(y),), start, dtype=torch.float64)
    h = torch.full_like(u, min(LONGEST, tolerance**0.2))
    k = [(yield from field(y, u))]
    calls = 1
    while bool((left := (end - u).abs()).any()):
        if calls >= limit or bool((h[left > 0] < SHORTEST).any()):
            raise ValueError(
                f"after {calls} calls (limit={limit}) {int((left > 0).sum())} of {len(u)} rows have not arrived, with "
                f"steps down to {h[left > 0].min():.2g} radians: take a tolerance above {tolerance:.2g}; if that does "
                "not help, what the denoiser says is not finite or not continuous"
            )
        h = torch.where(1.1 * h < left, h, left)
        step = expand(way * h, y)
        for row, c in zip(A, C, strict=True):
            there = y + step * _sum(row, k)
            k.append((yield from field(there, u + way * c * h)))
        calls += len(C)
        size = torch.maximum(_rms(y), _rms(there)).clamp(min=1)
        q = 10 * _rms(step * _sum(E, k)) / (tolerance * size)
        u = torch.where(q <= 1, torch.where(h == left, end, u + way * h), u)
        h = (h * (0.9 * q**-0.2).nan_to_num(nan=0.2).clamp(0.2, 2)).clamp(max=LONGEST)
        accepted = (q <= 1).reshape(-1, *[1] * (y.ndim - 1)).to(y.device)
        y, k = torch.where(accepted, there, y), [torch.where(accepted, k[-1], k[0])]
    return y


def _sum(weights: tuple[float, ...], k: list[Tensor]) -> Tensor:
    total = weights[0] * k[0]
    for w, k_j in zip(weights[1:], k[1:], strict=True):
        total = total + w * k_j if w else total
    return total


def _rms(y: Tensor) -> Tensor:
    """|y| of each row, (B,), float64, on the CPU."""
    return y.double().flatten(1).square().mean(1).sqrt().cpu()
