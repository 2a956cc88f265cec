"""A Denoiser maps (x_t, t, cond) to a Prediction of x_0 and eps.

It is all that samplers, guidance, losses and likelihoods know of a model.  A trained network is one (`NetworkDenoiser`
turns y into x_0 and eps by `parameterization`), an exact posterior mean is one (`testbed`), every guidance wraps one.
cond maps names to tensors with leading dimension B, so that rows of different requests can be joined blindly.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sfumato import parameterization
from sfumato.options import unknown
from sfumato.schedules import Discrete, Schedule

Cond = Mapping[str, Tensor]


@dataclass(frozen=True)
class Prediction:
    """What is believed of x_t = alpha x0 + sigma eps; x0 and eps are (B, ...) like x_t.

    variance_mix: m of the learned variance, (B, ...).  x0_variance: Var[x_0 | x_t], (B, ...), where it is known.
    tilt: what the mean of a reverse step is moved by, per unit of its variance, (B, ...).
    """

    x0: Tensor
    eps: Tensor
    variance_mix: Tensor | None = None
    x0_variance: Tensor | None = None
    tilt: Tensor | None = None


class Denoiser(abc.ABC):
    """Abstract: ``denoiser(x_t, t, cond)`` for x_t (B, ...), t (B,) in (0, 1]; null_cond is what "no condition" is."""

    schedule: Schedule
    null_cond: Cond = {}  # noqa: RUF012 - a Mapping, never written; rows of shape (1, ...)

    @abc.abstractmethod
    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction: ...


def from_x0(schedule: Schedule, x_t: Tensor, t: Tensor, x0: Tensor) -> Prediction:
    """The Prediction whose x_0 is given: eps = (x_t - alpha x0)/sigma."""
    return Prediction(x0, parameterization.from_target("x0", schedule, t, x_t, x0)[1])


def _index(schedule: Schedule, t: Tensor) -> Tensor:
    if not isinstance(schedule, Discrete):
        raise ValueError(
            f"time 'index' needs a T-step schedule, {schedule.spec['name']!r} is continuous; take 'unit' or 'logsnr'"
        )
    return schedule.position(t) - 1


# what the network is told of t: index is i - 1 on the T-step grid (as diffusers counts), unit is t itself, c_noise is
# EDM's log(sigma/alpha)/4, none is nothing
TIMES: dict[str, Callable[[Schedule, Tensor], Tensor]] = {
    "index": _index,
    "unit": lambda schedule, t: t,
    "logsnr": lambda schedule, t: schedule.path.logsnr(t).clamp(-30, 30),
    "c_noise": lambda schedule, t: (-0.125 * schedule.path.logsnr(t)).clamp(-4, 4),
    "none": lambda schedule, t: torch.zeros_like(t),
}


@final
class NetworkDenoiser(Denoiser):
    """Any ``net(x, t, cond) -> y`` as a Denoiser: an nn.Module, or a function around a foreign one.

    target: a row of parameterization.TARGETS.  learned_variance: y has 2C channels, and the second half o says
    m = (o + 1)/2.  time: a row of TIMES.  autocast: the precision inside the network; what leaves it has x_t's dtype.
    """

    def __init__(
        self,
        net: Callable[[Tensor, Tensor, Cond | None], Any],
        schedule: Schedule,
        *,
        target: str = "eps",
        learned_variance: bool = False,
        time: str = "index",
        null_cond: Cond | None = None,
        autocast: torch.dtype | None = None,
    ):
        parameterization.check(target, schedule)
        if time not in TIMES:
            raise unknown("time", time, TIMES)
        TIMES[time](schedule, torch.ones(1, dtype=torch.float64))
        self.net, self.schedule, self.target, self.time = net, schedule, target, time
        self.learned_variance, self.autocast, self.null_cond = learned_variance, autocast, null_cond or {}

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        y = self._ask(parameterization.scaled_input(self.target, self.schedule, t, x_t), t, cond)
        mix = None
        if self.learned_variance:
            y, mix = y.chunk(2, dim=1)
            mix = (mix + 1) / 2
        if y.shape != x_t.shape:
            raise ValueError(f"the network answered {tuple(y.shape)} for x_t of {tuple(x_t.shape)}; they must be alike")
        x0, eps = parameterization.from_target(self.target, self.schedule, t, x_t, y)
        return Prediction(x0, eps, mix)

    def _ask(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        weight = next(self.net.parameters(), x) if isinstance(self.net, torch.nn.Module) else x
        told = TIMES[self.time](self.schedule, t).to(x.device, torch.promote_types(weight.dtype, torch.float32))
        if self.autocast is None:
            return self.net(x.to(weight.dtype), told, cond).to(x.dtype, copy=x.is_cuda)  # CUDA graphs write there again
        with torch.autocast(x.device.type, self.autocast):
            return self.net(x.to(weight.dtype), told, cond).to(x.dtype, copy=x.is_cuda)
