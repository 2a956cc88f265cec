"""Adaptive Runge-Kutta: the probability-flow ODE to a tolerance, each row with steps of its own.

Divided by its scale, every point x_t = alpha x_0 + sigma eps lies at an angle between data and noise:

    r = sqrt(alpha^2 + sigma^2),   phi = atan2(sigma, alpha),   z = x_t/r = cos(phi) x_0 + sin(phi) eps     (1)

and the probability-flow ODE dx/dt = alpha' x0 + sigma' eps, with x0 and eps as predicted, becomes

    dz/dphi = cos(phi) eps - sin(phi) x0,   phi from 0 (data) to pi/2 (noise)                              (2)

for every schedule alike: it is regular at both ends, where alpha = 0 as well, and the kinks of a T-step schedule are
gone.  Where alpha or sigma differs from value to value of x (blurring), value i has its own angle phi_i, and all turn
with their mean u: dz_i/du = (phi_i'/u') (cos(phi_i) eps_i - sin(phi_i) x0_i).

A step of Dormand and Prince has order 5 and an estimate e of its error, of order 5 too:

    k_j = f(y + h sum_{i<j} a_ji k_i, u + c_j h),   y <- y + h sum_j b_j k_j,   e = h sum_j (b_j - b*_j) k_j     (3)
    accepted if q = |e|/(tolerance max(1, |y|)) <= 1;   then h <- h min(5, max(1/5, 0.9 q^(-1/5)))             (4)

where |.| is the root mean square over a row.  k_7 is the next step's k_1, so a step costs 6 calls.  A row that has
arrived takes steps of length 0 until all have.  eps need not be defined at sigma = 0, so the last (or first) EDGE
radians are one midpoint step, asked at its middle, with an error of EDGE^3 |z'''|/24.

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

from sfumato.denoiser import Prediction
from sfumato.gaussian import expand
from sfumato.options import whole
from sfumato.samplers.loop import Noise, Query, Steps, Walk
from sfumato.schedules import SNAP, Schedule

EDGE = 1e-3
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
    """(1) for a schedule: the angle u of a time, the time of an angle, and the velocity (2) between them."""

    def __init__(self, schedule: Schedule):
        self.schedule = schedule
        self.times = torch.linspace(0, 1, 257, dtype=torch.float64).square()
        self.angles = torch.cat([self.angle(t) for t in self.times.split(16)])

    def parts(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """r and phi at t (B,): (B,), or (B, ...) where the schedule differs from value to value."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        alpha, sigma = expand(alpha, sigma), expand(sigma, alpha)
        return torch.hypot(alpha, sigma), torch.atan2(sigma, alpha)

    def angle(self, t: Tensor) -> Tensor:
        """u at t, both (B,)."""
        return self.parts(t)[1].reshape(len(t), -1).mean(1)

    def time(self, u: Tensor) -> Tensor:
        """t at u, both (B,): by the secant method on u^2, which is nearly linear in t at the start, within its cell."""
        cell = torch.searchsorted(self.angles, u).clamp(1, len(self.times) - 1)
        low, high = self.times[cell - 1], self.times[cell]
        before, off_before = low, self.angles[cell - 1].square() - u.square()
        t, off = high, self.angles[cell].square() - u.square()
        for _ in range(30):
            slope = torch.where(off == off_before, 0.0, (t - before) / (off - off_before))
            before, off_before, t = t, off, torch.clamp(t - off * slope, low, high)
            off = self.angle(t).square() - u.square()
            if bool((off.abs() < 1e-14 * u).all()):
                break
        return t

    def velocity(self, t: Tensor, p: Prediction) -> Tensor:
        """dz/du (2) at t (B,), from what is predicted there."""
        _, phi = self.parts(t)
        turn = torch.ones_like(phi)
        if phi.ndim > 1:
            alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
            dalpha, dsigma = self.schedule.dalpha(t), self.schedule.dsigma(t)
            turn = (expand(alpha, phi) * expand(dsigma, phi) - expand(sigma, phi) * expand(dalpha, phi)) / (
                expand(alpha, phi).square() + expand(sigma, phi).square()
            )
            turn = turn / turn.flatten(1).mean(1).reshape(-1, *[1] * (phi.ndim - 1))
        return expand(turn * phi.cos(), p.eps) * p.eps - expand(turn * phi.sin(), p.x0) * p.x0


def runge_kutta(
    x: Tensor, times: Steps, schedule: Schedule, noise: Noise, *, tolerance: float = 1e-5, calls: int = 10_000
) -> Walk:
    """x_1 (B, ...) -> x_0 by (3) and (4), or the other way: from the first of times to the last, whatever lies between.

    tolerance: of a step's error, relative to data of unit scale.  calls: give up after so many.
    """
    clock = Clock(schedule)

    def field(z: Tensor, u: Tensor) -> Walk:
        t = clock.time(u)
        p = yield Query(expand(clock.parts(t)[0], z) * z, t)
        return clock.velocity(t, p)

    ends = torch.stack([times[0][0], times[-1][1]]).to(torch.float64).cpu()
    r, _ = clock.parts(ends)
    z = yield from flow(field, x / expand(r[:1], x), clock, ends, tolerance, calls)
    return expand(r[1:], x) * z


def flow(field: Field, y: Tensor, clock: Clock, ends: Tensor, tolerance: float, calls: int) -> Solve:
    """y (B, ...) at the first of the two times `ends` -> y at the second, along dy/du = field."""
    start, end = clock.angle(ends).tolist()
    edge = min(max(start, end), max(EDGE, 2 * clock.angle(torch.tensor([2 * SNAP])).item()))
    if start == 0:
        y = yield from midpoint(field, y, 0.0, edge)
    y = yield from dormand_prince(field, y, start or edge, end or edge, tolerance, calls)
    if end == 0:
        y = yield from midpoint(field, y, edge, 0.0)
    return y


def midpoint(field: Field, y: Tensor, start: float, end: float) -> Solve:
    """One step from start to end that asks only at its middle, twice: y_m = y + h/2 f(y), y + h f(y_m)."""
    middle = torch.full((len(y),), (start + end) / 2, dtype=torch.float64)
    k = yield from field(y, middle)
    k = yield from field(y + (end - start) / 2 * k, middle)
    return y + (end - start) * k


def dormand_prince(field: Field, y: Tensor, start: float, end: float, tolerance: float, calls: int) -> Solve:
    """(3) and (4) from start to end (y (B, ...), each row with its own u and h), by at most so many calls of field."""
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie between 0 and 1; got {tolerance}")
    whole("calls", calls)
    tolerance = max(tolerance, 10 * torch.finfo(y.dtype).eps)
    way = math.copysign(1, end - start)
    u = torch.full((len(y),), start, dtype=torch.float64)
    h = torch.full_like(u, tolerance**0.2)
    k = [(yield from field(y, u))]
    used = 1
    while bool((left := (end - u).abs()).any()):
        if used > calls:
            raise ValueError(
                f"runge_kutta is {left.max():.3g} radians from its end after {calls} calls; take a tolerance above "
                f"{tolerance:.3g}, or more calls (a denoiser that is noisy or gives NaN never arrives)"
            )
        h = torch.where(1.1 * h < left, h, left)
        step = expand(way * h, y)
        for row, c in zip(A, C, strict=True):
            there = y + step * _sum(row, k)
            k.append((yield from field(there, u + way * c * h)))
        used += len(C)
        size = torch.maximum(_rms(y), _rms(there)).clamp(min=1)
        q = _rms(step * _sum(E, k)) / (tolerance * size)
        accepted = q <= 1
        u = torch.where(accepted, torch.where(h == left, end, u + way * h), u)
        h = h * (0.9 * q**-0.2).nan_to_num(nan=0.2).clamp(0.2, 5)
        mask = accepted.reshape(-1, *[1] * (y.ndim - 1)).to(y.device)
        y, k = torch.where(mask, there, y), [torch.where(mask, k[-1], k[0])]
    return y


def _sum(weights: tuple[float, ...], k: list[Tensor]) -> Tensor:
    return sum((w * k_j for w, k_j in zip(weights[1:], k[1:], strict=True)), weights[0] * k[0])


def _rms(y: Tensor) -> Tensor:
    """|y| of each row, (B,), float64, on the CPU."""
    return y.double().flatten(1).square().mean(1).sqrt().cpu()
