"""The variance of a reverse step.

The variance of p(x_s | x_t), the step t -> s of the reverse chain, is one of VARIANCES, as log variance:

    large     v_ts                                     small   u_ts (clipped at s = 0)
    learned   exp(m log v_ts + (1 - m) log u_ts), m = what the network says
    optimal   u_ts + c_0^2 Var[x_0 | x_t], the best diagonal one, where the denoiser knows it

with v_ts, u_ts and c_0 of `gaussian` (2), (3).

J. Ho, A. Jain, P. Abbeel, arXiv:2006.11239 (large, small); A. Nichol, P. Dhariwal, "Improved DDPM", arXiv:2102.09672
(learned); F. Bao et al., "Analytic-DPM", arXiv:2201.06503 (optimal)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from sfumato.gaussian import expand, posterior_coefficients, posterior_log_variance, transition_coefficients
from sfumato.schedules import Schedule


class Predicted(Protocol):
    """What a variance may look at: the parts of a Prediction that say how sure it is."""

    @property
    def variance_mix(self) -> Tensor | None: ...
    @property
    def x0_variance(self) -> Tensor | None: ...


def _large(schedule: Schedule, t: Tensor, s: Tensor, prediction: Predicted) -> Tensor:
    return transition_coefficients(schedule, s, t)[1].log()


def _small(schedule: Schedule, t: Tensor, s: Tensor, prediction: Predicted) -> Tensor:
    return posterior_log_variance(schedule, t, s)


def _learned(schedule: Schedule, t: Tensor, s: Tensor, prediction: Predicted) -> Tensor:
    mix = prediction.variance_mix
    if mix is None:
        raise ValueError("variance 'learned' needs a network that predicts it; take 'small' or 'large'")
    high, low = _large(schedule, t, s, prediction), _small(schedule, t, s, prediction)
    return expand(low, mix) + mix * expand(high - low, mix)


def _optimal(schedule: Schedule, t: Tensor, s: Tensor, prediction: Predicted) -> Tensor:
    spread = prediction.x0_variance
    if spread is None:
        raise ValueError("variance 'optimal' needs a denoiser that knows Var[x_0 | x_t], as the testbed's do")
    _, c_0, u_ts = posterior_coefficients(schedule, t, s)
    return (expand(u_ts, spread) + expand(c_0.square(), spread) * spread).log()


def _model(schedule: Schedule, t: Tensor, s: Tensor, prediction: Predicted) -> Tensor:
    return (_small if prediction.variance_mix is None else _learned)(schedule, t, s, prediction)


# log variance of p(x_s | x_t), (B,) or (B, ...); "model" is what the network learned, or small if it learned none
VARIANCES: dict[str, Callable[[Schedule, Tensor, Tensor, Predicted], Tensor]] = {
    "model": _model,
    "large": _large,
    "small": _small,
    "learned": _learned,
    "optimal": _optimal,
}
