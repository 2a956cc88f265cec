"""What exponential integrators share: half logSNR as their time, and the step that is exact where x0 stands still.

With l = logsnr/2 = log(alpha/sigma), h = l_s - l_t and A = sigma_s/sigma_t, the probability-flow ODE is solved by

    x_s = A x_t + alpha_s int_{l_t}^{l_s} exp(l - l_s) x0(l) dl                                            (1)

and with x0 replaced by a polynomial in l through the last predictions, the integral has a closed form.  h is infinite
in a step from alpha = 0 or to sigma = 0, where there is no polynomial in l: such a step is of first order.

C. Lu et al., "DPM-Solver++", arXiv:2211.01095, prop. 4.1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.gaussian import expand
from sfumato.schedules import Schedule

LONGEST = 10.0  # how many times smaller (or larger) a step may make sigma/alpha, to be taken by a polynomial of eps

REACH = 3.0  # how many times longer than the step before a step may be, to be taken by a polynomial


@dataclass(frozen=True)
class Node:
    """A prediction (B, ...) and the half logSNR at which it was made."""

    l: Tensor
    value: Tensor


def half_logsnr(schedule: Schedule, t: Tensor) -> Tensor:
    return 0.5 * schedule.logsnr(t)


def carried(schedule: Schedule, x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """(1) for constant x0: A x + (alpha_s - A alpha_t) x0, whose factor is -alpha_s expm1(-h)."""
    a = schedule.sigma(s) / schedule.sigma(t)
    return expand(a, x) * x + expand(schedule.alpha(s) - a * schedule.alpha(t), x) * x0


def finite(h: Tensor) -> bool:
    return bool(h.isfinite().all())


def within_reach(nodes: Sequence[Node], l_t: Tensor, h: Tensor) -> list[Node]:
    """The nodes, newest first, of a polynomial that is carried over a step h from l_t: none if h is beyond REACH.

    A long step beyond close nodes, as the last one of a coarse uniform grid is, would blow up what lies between them.
    """
    if not nodes or bool((h.abs() > REACH * (l_t - nodes[0].l).abs()).any()):
        return []
    return list(nodes)


def long(schedule: Schedule, t: Tensor, s: Tensor) -> bool:
    """Whether the step makes sigma/alpha more than LONGEST times smaller or larger.

    In sigma/alpha it then is as long as the way to the data, and what eps does on it cannot be read off its ends: such
    are steps from alpha = 0, to sigma = 0, and the first ones of coarse grids.
    """
    down = schedule.alpha(s) * schedule.sigma(t)
    up = schedule.alpha(t) * schedule.sigma(s)
    return bool(((down > LONGEST * up) | (up > LONGEST * down)).any())


def phi_2(h: Tensor) -> Tensor:
    """expm1(-h)/h + 1, the weight of a slope in (1)."""
    return torch.expm1(-h) / h + 1
