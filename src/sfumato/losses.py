"""What a network is trained on.

A weight is defined once, on the error of x_0, and holds for every target (an eps-, an x0- and a v-network that make
the same x_0 have the same loss).  With snr = alpha^2/sigma^2, s = t - 1/T, and c_0 and u_ts of `gaussian` (3):

    L = E_t E_eps w(t) |x0(x_t, t) - x_0|^2 / D                                                            (1)

    simple     snr                      |eps error|^2 with weight 1: DDPM's L_simple
    x0         1
    v          snr + 1                  |v error|^2 with weight 1 (alpha^2 + sigma^2 = 1)
    velocity   (det_flow/sigma)^2       |dx/dt error|^2 with weight 1: flow matching
    min_snr    min(snr, gamma)          on eps: min(snr, gamma)/snr
    sigmoid    snr sigmoid(bias - logsnr)
    edm        1/sigma_data^2 + snr     EDM's (sigma^2 + sigma_data^2)/(sigma sigma_data)^2
    bound      lambda_t = c_0^2/(2 variance): (1) is then L_{t-1} in nats a dimension; small variance: (snr_s - snr_t)/2

    L_vlb    = T E_t [L_{t-1} or L_0]   in bits a dimension, for fixed and learned variance                 (2)
    L_hybrid = L_simple + 0.001 L_vlb, whose second term does not move the mean                             (3)

J. Ho et al., arXiv:2006.11239; A. Nichol, P. Dhariwal, arXiv:2102.09672 (hybrid); T. Hang et al., "Min-SNR
Weighting", arXiv:2303.09556; E. Hoogeboom et al., "Simpler Diffusion", arXiv:2410.19324 (sigmoid); T. Karras et al.,
arXiv:2206.00364 (edm)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato import gaussian
from sfumato.denoiser import Prediction
from sfumato.parameterization import SIGMA_DATA, determinant
from sfumato.schedules import SNAP, Schedule
from sfumato.variances import VARIANCES

CONTINUOUS_STEPS = 1000  # the T of a bound on a continuous schedule

Weighting = Callable[[Schedule, Tensor], Tensor]


def previous(schedule: Schedule, t: Tensor) -> Tensor:
    """s = t - 1/T, float64, (B,); exactly 0 under the first step."""
    s = t.double() - 1 / (schedule.steps or CONTINUOUS_STEPS)
    return torch.where(s < SNAP, 0.0, s)


def _snr(schedule: Schedule, t: Tensor) -> Tensor:
    return schedule.logsnr(t).exp()


def min_snr(schedule: Schedule, t: Tensor, gamma: float = 5.0) -> Tensor:
    return _snr(schedule, t).clamp(max=gamma)


def sigmoid(schedule: Schedule, t: Tensor, bias: float = 0.0) -> Tensor:
    logsnr = schedule.logsnr(t)
    return torch.exp(logsnr + torch.nn.functional.logsigmoid(bias - logsnr))


def bound(schedule: Schedule, t: Tensor, variance: str = "small") -> Tensor:
    """lambda_t = c_0^2/(2 variance) for a fixed variance, "small" or "large"."""
    if variance not in ("small", "large"):
        raise ValueError(f"weighting bound takes a fixed variance, small or large; got {variance!r}")
    s = previous(schedule, t)
    _, c_0, _ = gaussian.posterior_coefficients(schedule, t, s)
    return 0.5 * torch.exp(2 * c_0.log() - VARIANCES[variance](schedule, t, s, Prediction(t, t)))


# the weight on the squared x_0 error, float64, (B,)
WEIGHTINGS: dict[str, Weighting] = {
    "simple": _snr,
    "x0": lambda schedule, t: torch.ones_like(_snr(schedule, t)),
    "v": lambda schedule, t: _snr(schedule, t) + 1,
    "velocity": lambda schedule, t: (determinant("flow", schedule, t) / schedule.sigma(t)).square(),
    "min_snr": min_snr,
    "sigmoid": sigmoid,
    "edm": lambda schedule, t: _snr(schedule, t) + 1 / SIGMA_DATA**2,
    "bound": bound,
}


def _row_mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)


@dataclass(frozen=True)
class Noised:
    """x_t = alpha x_0 + sigma eps and how it was made: x_0, x_t, eps (B, ...), t (B,); the codec's bin_width."""

    schedule: Schedule
    x_0: Tensor
    x_t: Tensor
    t: Tensor
    bin_width: float | None
    eps: Tensor | None = None


def simple(at: Noised, prediction: Prediction, weighting: Weighting) -> Tensor:
    """(1) with the weighting, one value a row, (B,)."""
    return _row_mean(gaussian.expand(weighting(at.schedule, at.t), at.x_0) * (prediction.x0 - at.x_0).square())


def vlb(at: Noised, prediction: Prediction, weighting: Weighting) -> Tensor:
    """T times the term of the bound at t (2), bits a dimension, one value a row, (B,); the weighting plays no part."""
    s = previous(at.schedule, at.t)
    log_variance = VARIANCES["model"](at.schedule, at.t, s, prediction)
    nats = gaussian.bound_term(at.schedule, at.x_0, at.x_t, at.t, s, prediction.x0, log_variance, at.bin_width)
    return (at.schedule.steps or CONTINUOUS_STEPS) * _row_mean(nats).to(at.x_0) / math.log(2)


def hybrid(at: Noised, prediction: Prediction, weighting: Weighting) -> Tensor:
    """(3), one value a row, (B,): the bound teaches the variance, (1) alone the mean."""
    frozen = replace(prediction, x0=prediction.x0.detach())
    return simple(at, prediction, weighting) + 0.001 * vlb(at, frozen, weighting)


LOSSES: dict[str, Callable[[Noised, Prediction, Weighting], Tensor]] = {"simple": simple, "vlb": vlb, "hybrid": hybrid}
