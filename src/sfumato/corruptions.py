"""Forward processes that are not plain Gaussian noise: blurring and cold diffusion.

Blurring diffusion is a Schedule whose alpha differs from frequency to frequency.  x_0 is a picture's orthonormal DCT
(`degradations` (2), `codecs.DCTCodec`), lambda the squared frequency of each coefficient, and

    x_t = alpha(t) x_0 + sigma(t) eps,   alpha(t) = a(t) d(t),   a, sigma: the cosine path                  (1)
    d(t) = (1 - d_min) exp(-lambda tau(t)) + d_min,   tau = sigma_b(t)^2/2,   sigma_b = sigma_blur_max sin^2(pi t/2)

so that a picture is blurred by sigma_b as noise grows.  alpha and sigma are (B, 1, H, W), and all of `gaussian`,
`parameterization` and the samplers hold for each frequency by itself.  (alpha^2 + sigma^2 = 1 only at frequency 0.)
The paper's path ends at logsnr = -10; this one at a(1) = 0, so x_1 is exactly the prior N(0, I), the bound has no L_T,
and a network predicts v or x0: eps would tell nothing of x_0 at t = 1, and next to nothing of fine detail before.

Cold diffusion has no noise at all: x_t is x_0 under a row of `degradations.DEGRADATIONS`,

    x_t = D(x_0, t strength),   D(x_0, 0) = x_0                                                              (2)

A network says x0, `samplers.cold` walks back.  The straight path alpha = 1 - t, sigma = t stands in where a Denoiser
asks its Schedule; Prediction.eps is then (x_t - alpha x0)/sigma and means nothing.  x_1 is a degraded picture, of
which no prior is known: a walk starts from D of a picture.

E. Hoogeboom, T. Salimans, "Blurring Diffusion Models", arXiv:2209.05557 (sec. 4, app. A)
S. Rissanen, M. Heinonen, A. Solin, "Generative Modelling With Inverse Heat Dissipation", arXiv:2206.13397
A. Bansal et al., "Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise", arXiv:2208.09392
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sfumato import gaussian, schedules
from sfumato.degradations import DEGRADATIONS, frequencies
from sfumato.options import unknown, whole
from sfumato.schedules import SCHEDULES, Schedule, cosine_continuous, rectified


@final
@dataclass(frozen=True)
class Blurring(Schedule):
    """(1) on DCT coefficients (B, C, height, width).  d_min = 1 is the cosine path itself.

    For t of shape (B,) alpha, sigma and what follows from them are (B, 1, H, W); for one t, (1, 1, H, W).
    """

    name = "blurring"
    height: int = 32
    width: int = 32
    sigma_blur_max: float = 20.0
    d_min: float = 0.001
    s: float = 0.008

    def __post_init__(self) -> None:
        super().__post_init__()
        for side in (self.height, self.width):
            whole("a side of schedule blurring", side)
        if self.d_min > 1:
            raise ValueError(
                f"option d_min of schedule blurring is a share of the detail, at most 1; got {self.d_min!r}"
            )

    @property
    def path(self) -> Schedule:
        """a and sigma of (1): the schedule of frequency 0, one number a time."""
        return cosine_continuous(self.s)

    def dissipation(self, t: Tensor) -> Tensor:
        """tau(t), of t's shape, float64."""
        blurred = self.sigma_blur_max * torch.sin(torch.as_tensor(t, dtype=torch.float64) * (math.pi / 2)).square()
        return blurred.square() / 2

    def alpha(self, t: Tensor) -> Tensor:
        t = _spread(t)
        lost = torch.expm1(-frequencies(self.height, self.width).to(t.device) * self.dissipation(t))
        return self.path.alpha(t) * (1 + (1 - self.d_min) * lost)

    def sigma(self, t: Tensor) -> Tensor:
        """The same at every frequency; (B, 1, H, W) as alpha is, so that their combinations are alike in shape."""
        return self.path.sigma(_spread(t)).expand(-1, 1, self.height, self.width)


def _spread(t: Tensor) -> Tensor:
    """Times (B,) or 0-dimensional as (B or 1, 1, 1, 1)."""
    return torch.as_tensor(t).reshape(-1, 1, 1, 1)


@final
@dataclass(frozen=True)
class Cold(Schedule):
    """(2); degradation: a row of DEGRADATIONS.  strength: its strength at t = 1, None for the row's usual one."""

    name = "cold"
    degradation: str = "blur"
    strength: float | None = None

    def __post_init__(self) -> None:
        if self.degradation not in DEGRADATIONS:
            raise unknown("degradation", self.degradation, DEGRADATIONS)
        row = DEGRADATIONS[self.degradation]
        if self.strength is None:
            object.__setattr__(self, "strength", row.usual)  # in the spec, so that a trained model keeps it
        if isinstance(self.strength, bool) or not isinstance(self.strength, int | float) or self.strength == 0:
            raise ValueError(f"option strength of schedule cold is a number above 0; got {self.strength!r}")
        row.run(torch.zeros(1, 3, 8, 8), self.strength)  # which knows its limits

    def degrade(self, x_0: Tensor, t: Tensor) -> Tensor:
        """x_t of (2): (B, C, H, W); t is (B,) or 0-dimensional."""
        assert self.strength is not None  # since __post_init__
        return DEGRADATIONS[self.degradation].run(x_0, self.strength * t.double())

    @property
    def path(self) -> Schedule:
        """What stands in for alpha and sigma."""
        return rectified()

    def alpha(self, t: Tensor) -> Tensor:
        return self.path.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.path.sigma(t)


def perturb(schedule: Schedule, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """x_t of any forward process: (B, ...); eps is the noise of those that have any."""
    if isinstance(schedule, Cold):
        return schedule.degrade(x_0, t)
    return gaussian.perturb(schedule, x_0, t, eps)


PROCESSES: dict[str, Callable[..., Schedule]] = {**SCHEDULES, "blurring": Blurring, "cold": Cold}


def from_spec(spec: str | Mapping[str, Any]) -> Schedule:
    """A schedule of PROCESSES from its text ("cold:degradation=mask") or from the ``spec`` another one gave."""
    return schedules.from_spec(spec, PROCESSES)
