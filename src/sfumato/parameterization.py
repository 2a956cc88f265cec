"""What a network predicts, as one 2x2 solve.

A network's target is a combination of signal and noise, and x_t is another:

    y   = a x0 + b eps
    x_t = alpha x0 + sigma eps                                                                             (1)

    det = alpha b - sigma a,   x0 = (b x_t - sigma y)/det,   eps = (alpha y - a x_t)/det                    (2)

    target     a                          b                      det
    eps        0                          1                      alpha
    x0         1                          0                      -sigma
    score      0                          -1/sigma               -alpha/sigma         grad log q(x_t | x_0)
    v          -sigma                     alpha                  alpha^2 + sigma^2
    flow       alpha'                     sigma'                 alpha sigma' - sigma alpha'     dx_t/dt
    edm        (1 - c_skip alpha)/c_out   -c_skip sigma/c_out    -sigma/c_out

EDM's coefficients, for data of standard deviation sigma_data, here for any alpha (its paper has alpha = 1):

    c_in^-2 = sigma^2 + (alpha sigma_data)^2,  c_skip = alpha sigma_data^2 c_in^2,  c_out = sigma sigma_data c_in    (3)

det tells where a row is ill-conditioned: REFUSED lists the pairs that do not work, with the reason and the way out.
From (2) an error d in x0 is an error -(det/sigma) d in y, so a weight w on the x0 error is w (sigma/det)^2 on y's.

T. Salimans, J. Ho, "Progressive Distillation", arXiv:2202.00512 (v)
T. Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv:2206.00364 (edm)
Y. Lipman et al., "Flow Matching for Generative Modeling", arXiv:2210.02747 (flow)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.gaussian import expand
from sfumato.options import unknown
from sfumato.schedules import Schedule

SIGMA_DATA = 0.5  # EDM's standard deviation of the data, for pictures in [-1, 1]

Row = tuple[Tensor, Tensor]


def _constant(a: float, b: float) -> Callable[[Schedule, Tensor], Row]:
    return lambda schedule, t: (torch.full_like(schedule.sigma(t), a), torch.full_like(schedule.sigma(t), b))


def _score(schedule: Schedule, t: Tensor) -> Row:
    sigma = schedule.sigma(t)
    return torch.zeros_like(sigma), -1 / sigma


def _v(schedule: Schedule, t: Tensor) -> Row:
    return -schedule.sigma(t), schedule.alpha(t)


def _flow(schedule: Schedule, t: Tensor) -> Row:
    return schedule.dalpha(t), schedule.dsigma(t)


def edm_coefficients(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """c_in, c_skip, c_out of (3), float64, (B,)."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    c_in = (sigma.square() + (alpha * SIGMA_DATA).square()).rsqrt()
    return c_in, alpha * SIGMA_DATA**2 * c_in.square(), sigma * SIGMA_DATA * c_in


def _edm(schedule: Schedule, t: Tensor) -> Row:
    _, c_skip, c_out = edm_coefficients(schedule, t)
    return (1 - c_skip * schedule.alpha(t)) / c_out, -c_skip * schedule.sigma(t) / c_out


TARGETS: dict[str, Callable[[Schedule, Tensor], Row]] = {
    "eps": _constant(0, 1),
    "x0": _constant(1, 0),
    "score": _score,
    "v": _v,
    "flow": _flow,
    "edm": _edm,
}


def ends_in_noise(schedule: Schedule) -> bool:
    return bool((schedule.alpha(torch.ones(1)) == 0).any())


# (target, schedules with this property) -> why it is refused and what to do instead
REFUSED: dict[str, tuple[Callable[[Schedule], bool], str]] = {
    "eps": (ends_in_noise, "alpha(1) = 0, so eps says nothing of x_0 at t = 1"),
    "score": (ends_in_noise, "alpha(1) = 0, so the score says nothing of x_0 at t = 1"),
    "flow": (lambda s: s.name == "blurring", "alpha' is so steep there that errors grow 600-fold in x_0"),
}


def check(target: str, schedule: Schedule) -> None:
    """Raise ValueError if the target is unknown, or refused with this schedule."""
    if target not in TARGETS:
        raise unknown("target", target, TARGETS)
    applies, reason = REFUSED.get(target, (lambda _: False, ""))
    if applies(schedule):
        raise ValueError(
            f"target {target!r} with schedule {schedule.spec['name']!r} is refused: {reason}; "
            "take target 'v' or 'x0', or another schedule"
        )


def determinant(target: str, schedule: Schedule, t: Tensor) -> Tensor:
    """det = alpha b - sigma a of (2), float64, (B,)."""
    a, b = TARGETS[target](schedule, t)
    return schedule.alpha(t) * b - schedule.sigma(t) * a


def to_target(target: str, schedule: Schedule, t: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """y = a x0 + b eps (1): (B, ...)."""
    a, b = TARGETS[target](schedule, t)
    return expand(a, x0) * x0 + expand(b, x0) * eps


def from_target(target: str, schedule: Schedule, t: Tensor, x_t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(x0, eps) from what a network said, by (2): both (B, ...)."""
    a, b = TARGETS[target](schedule, t)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    det = alpha * b - sigma * a
    x0 = expand(b / det, x_t) * x_t - expand(sigma / det, x_t) * y
    return x0, expand(alpha / det, x_t) * y - expand(a / det, x_t) * x_t


def scaled_input(target: str, schedule: Schedule, t: Tensor, x_t: Tensor) -> Tensor:
    """What the network is shown: c_in x_t for EDM (3), x_t itself for every other row."""
    return expand(edm_coefficients(schedule, t)[0], x_t) * x_t if target == "edm" else x_t
