"""Inference times: which t a sampler visits.

A grid is a descending list t_S = 1 > t_{S-1} > ... > t_1 > t_0 = 0, walked as S pairs (t, s) = (t_{k+1}, t_k).  The
first state is the prior at t = 1 and the last is at t = 0, where sigma = 0, for every S.  On a T-step schedule all t_k
are distinct steps i_k/T, so S runs from 1 to T, and S = T visits every one.

    trailing    i_k = round(T k/S)                        equal strides down from T [1]
    uniform     i_k = round(1 + (T - 1)(k - 1)/(S - 1))   equal strides from T to 1, then the last step 1 -> 0
    quadratic   i_k = round(T (k/S)^2)                    more steps where there is little noise [2]

On a continuous schedule trailing and uniform are both t_k = k/S, and quadratic (k/S)^2.

[1] S. Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv:2305.08891
[2] J. Song et al., "Denoising Diffusion Implicit Models", arXiv:2010.02502, app. D.2
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.schedules import Schedule


def _check(schedule: Schedule, steps: int) -> int:
    most = schedule.steps
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1 or (most is not None and steps > most):
        allowed = "at least 1" if most is None else f"1 to {most}, the steps the model was trained on"
        raise ValueError(f"steps must be a whole number, {allowed}; got {steps!r}")
    return steps


def _visit(schedule: Schedule, t: Tensor) -> Tensor:
    """Wished times 0 = t_0 < ... < t_S = 1, ascending -> the grid, descending; distinct steps on a T-step schedule.

    Rounded steps that fall together move up to the next free one: i_k = max_j<=k (i_j + k - j), capped so that the
    steps above still fit.
    """
    if schedule.steps is not None:
        k = torch.arange(len(t))
        room = schedule.steps - (len(t) - 1)
        i = (t * schedule.steps + 1e-9).round().long() - k
        t = (i.cummax(0).values.clamp(0, room) + k).double() / schedule.steps
    return t.flip(0)


def trailing(schedule: Schedule, steps: int) -> Tensor:
    return _visit(schedule, torch.linspace(0, 1, _check(schedule, steps) + 1, dtype=torch.float64))


def uniform(schedule: Schedule, steps: int) -> Tensor:
    if schedule.steps is None or _check(schedule, steps) == 1:
        return trailing(schedule, steps)
    visited = torch.linspace(1 / schedule.steps, 1, steps, dtype=torch.float64)
    return _visit(schedule, torch.cat([visited.new_zeros(1), visited]))


def quadratic(schedule: Schedule, steps: int) -> Tensor:
    return _visit(schedule, torch.linspace(0, 1, _check(schedule, steps) + 1, dtype=torch.float64).square())


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
    return list(zip(times[:-1], times[1:], strict=True))
