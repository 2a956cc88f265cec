"""Inference times: which t a sampler visits.

A grid is a list t_S = 1 > t_{S-1} > ... > t_1 > t_0 = 0, walked as S pairs (t, s) = (t_{k+1}, t_k); flipped, it is
walked from data to noise.  The first state is the prior at t = 1 and the last is at t = 0, where sigma = 0, for every
S.  On a T-step schedule all t_k are distinct steps i_k/T, so S runs from 1 to T, and S = T visits every one.

    trailing    i_k = round(T k/S)                        equal strides down from T [1]
    uniform     i_k = 1 + round((T - 1)(k - 1)/(S - 1))   equal strides from T to 1, then the last step 1 -> 0
    quadratic   i_k = round(T (k/S)^2)                    more steps where there is little noise [2]
    shifted     i_k = round(T shift u/(1 + (shift - 1) u)), u = k/S      more where there is much: larger pictures [3]
    ratio       sigma/alpha = r_max k/S                   the time of dy/dr = eps, y = x/alpha
    karras      (sigma/alpha)^(1/rho) in equal steps from r_max to r_min, then the last step to 0 [4]
    logsnr      log(sigma/alpha) likewise: the time of exponential integrators [5]

r_min is sigma/alpha at the first of T steps and r_max that at t = 1, both held within RATIOS; t_S = 1 even where
sigma/alpha is larger there.  On a continuous schedule T is 1 in these formulas and nothing is rounded.

[1] S. Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv:2305.08891
[2] J. Song et al., "Denoising Diffusion Implicit Models", arXiv:2010.02502, app. D.2
[3] P. Esser et al., "Scaling Rectified Flow Transformers", arXiv:2403.03206, sec. 5.3.2
[4] T. Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv:2206.00364, eq. (5)
[5] C. Lu et al., "DPM-Solver", arXiv:2206.00927
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sfumato.options import above_zero, whole
from sfumato.schedules import Schedule

RATIOS = (0.002, 80.0)  # sigma/alpha is taken between EDM's sigma_min and sigma_max


def _visit(schedule: Schedule, wished: np.ndarray) -> Tensor:
    """Wished steps 0 = i_0 < ... < i_S = T (or times, on a continuous schedule), ascending -> the grid, descending.

    On a T-step schedule they are rounded, ties to even; those that then fall together move up to the next free step,
    i_k = max_j<=k (i_j + k - j), capped so that the steps above still fit.
    """
    if schedule.steps is not None:
        k = np.arange(len(wished))
        i = np.maximum.accumulate(wished.round() - k).clip(0, schedule.steps - k[-1]) + k
        wished = i / schedule.steps
    return torch.from_numpy(wished).flip(0)


def _reach(schedule: Schedule) -> tuple[float, float]:
    """r_min and r_max: sigma/alpha at the first step and at t = 1, within RATIOS."""
    ends = torch.tensor([1 / schedule.steps if schedule.steps else 0.0, 1.0], dtype=torch.float64)
    return tuple(torch.exp(-0.5 * schedule.path.logsnr(ends)).clamp(*RATIOS).tolist())


def _at_ratios(schedule: Schedule, r: np.ndarray) -> Tensor:
    """The grid whose times but the first and the last have these sigma/alpha (S,), ascending."""
    if schedule.steps is None:
        wished = schedule.path.time_of_logsnr(torch.from_numpy(-2 * np.log(r))).numpy()
    else:
        i = np.arange(1, schedule.steps + 1)
        there = -0.5 * schedule.path.logsnr(torch.from_numpy(i / schedule.steps)).numpy()
        wished = np.interp(np.log(r), there.clip(max=np.log(RATIOS[1]) + np.arange(len(i))), i)
    wished[-1] = schedule.steps or 1
    return _visit(schedule, np.append(0, wished))


def trailing(schedule: Schedule, steps: int) -> Tensor:
    return _visit(schedule, np.linspace(0, schedule.steps or 1, whole("steps", steps, schedule.steps) + 1))


def quadratic(schedule: Schedule, steps: int) -> Tensor:
    return _visit(schedule, np.linspace(0, 1, whole("steps", steps, schedule.steps) + 1) ** 2 * (schedule.steps or 1))


def shifted(schedule: Schedule, steps: int, shift: float = 3.0) -> Tensor:
    u = np.linspace(0, 1, whole("steps", steps, schedule.steps) + 1)
    return _visit(schedule, above_zero("shift", shift) * u / (1 + (shift - 1) * u) * (schedule.steps or 1))


def ratio(schedule: Schedule, steps: int) -> Tensor:
    return _at_ratios(schedule, np.linspace(0, _reach(schedule)[1], whole("steps", steps, schedule.steps) + 1)[1:])


def karras(schedule: Schedule, steps: int, rho: float = 7.0) -> Tensor:
    above_zero("rho", rho)
    low, high = _reach(schedule)
    u = np.linspace(low ** (1 / rho), high ** (1 / rho), whole("steps", steps, schedule.steps))
    return _at_ratios(schedule, u**rho)


def logsnr(schedule: Schedule, steps: int) -> Tensor:
    return _at_ratios(schedule, np.geomspace(*_reach(schedule), whole("steps", steps, schedule.steps)))


def uniform(schedule: Schedule, steps: int) -> Tensor:
    if schedule.steps is None or whole("steps", steps, schedule.steps) == 1:
        return trailing(schedule, steps)
    return _visit(schedule, np.append(0, 1 + np.linspace(0, schedule.steps - 1, steps).round()))


# (schedule, steps) -> (S + 1,) float64, from 1 down to 0
GRIDS: dict[str, Callable[..., Tensor]] = {
    "trailing": trailing,
    "uniform": uniform,
    "quadratic": quadratic,
    "shifted": shifted,
    "ratio": ratio,
    "karras": karras,
    "logsnr": logsnr,
}


def pairs(times: Tensor) -> list[tuple[Tensor, Tensor]]:
    """A grid (S + 1,), falling or rising, as the S pairs (t, s) of its steps, 0-dimensional float64 tensors."""
    times = torch.as_tensor(times, dtype=torch.float64)
    steps = times.diff() if times.ndim == 1 and len(times) > 1 else torch.zeros(1)
    if not (bool((steps < 0).all()) or bool((steps > 0).all())) or times.min() < 0 or times.max() > 1:
        raise ValueError(
            f"a grid is a list of at least two times falling from at most 1 to at least 0, or rising; "
            f"got {times.tolist()[:8]}"
        )
    return list(itertools.pairwise(times))
