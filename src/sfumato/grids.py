"""Inference times: which t a sampler visits.

A grid is a descending list t_S = 1 > t_{S-1} > ... > t_1 > t_0 = 0, walked as S pairs (t, s) = (t_{k+1}, t_k).  The
first state is the prior at t = 1 and the last is at t = 0, where sigma = 0, for every S.  On a T-step schedule all t_k
are distinct steps i_k/T, so S runs from 1 to T, and S = T visits every one.

    trailing    i_k = round(T k/S)                        equal strides down from T [1]
    uniform     i_k = 1 + round((T - 1)(k - 1)/(S - 1))   equal strides from T to 1, then the last step 1 -> 0
    quadratic   i_k = round(T (k/S)^2)                    more steps where there is little noise [2]

On a continuous schedule trailing and uniform are both t_k = k/S, and quadratic (k/S)^2.

[1] S. Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv:2305.08891
[2] J. Song et al., "Denoising Diffusion Implicit Models", arXiv:2010.02502, app. D.2
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sfumato.options import whole
from sfumato.schedules import Schedule


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


def trailing(schedule: Schedule, steps: int) -> Tensor:
    return _visit(schedule, np.linspace(0, schedule.steps or 1, whole("steps", steps, schedule.steps) + 1))


def uniform(schedule: Schedule, steps: int) -> Tensor:
    if schedule.steps is None or whole("steps", steps, schedule.steps) == 1:
        return trailing(schedule, steps)
    return _visit(schedule, np.append(0, 1 + np.linspace(0, schedule.steps - 1, steps).round()))


def quadratic(schedule: Schedule, steps: int) -> Tensor:
    k = np.linspace(0, 1, whole("steps", steps, schedule.steps) + 1)
    return _visit(schedule, k**2 * (schedule.steps or 1))


# (schedule, steps) -> (S + 1,) float64, from 1 down to 0
GRIDS: dict[str, Callable[[Schedule, int], Tensor]] = {
    "trailing": trailing,
    "uniform": uniform,
    "quadratic": quadratic,
}


def pairs(times: Tensor) -> list[tuple[Tensor, Tensor]]:
    """A grid (S + 1,) as the S pairs (t, s) of its steps, 0-dimensional float64 tensors."""
    times = torch.as_tensor(times, dtype=torch.float64)
    if times.ndim != 1 or len(times) < 2 or not bool((times[:-1] > times[1:]).all()) or times[0] > 1 or times[-1] < 0:
        raise ValueError(
            f"a grid is a list of at least two times falling from at most 1 to at least 0; got {times.tolist()[:8]}"
        )
    return list(itertools.pairwise(times))
