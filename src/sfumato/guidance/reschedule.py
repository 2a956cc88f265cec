"""Another schedule after training, as a Denoiser: a network is asked at the same signal-to-noise ratio.

    logsnr'(t') = logsnr(t),   x_t' = (r'/r) x_t,   r = sqrt(alpha^2 + sigma^2)                            (1)

with primes for the schedule of the training.  x_0 and eps are the same on both; a gradient by x_t', which
`Prediction.tilt` is, becomes one by x_t if multiplied by r'/r.  Where t lies outside the ratios that the network was
trained on, t' is the nearest end: a straight path begins at logsnr = -inf and most schedules do not.

T. Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv:2206.00364, app. B.3
N. Shaul et al., "Bespoke Solvers for Generative Flow Models", arXiv:2310.19075, prop. 2.1
"""

from __future__ import annotations

from dataclasses import replace
from typing import final

from torch import Tensor

from sfumato.denoiser import Cond, Denoiser, Prediction, from_x0
from sfumato.gaussian import expand
from sfumato.guidance.classifier import Logits
from sfumato.schedules import Schedule


@final
class Rescheduled(Denoiser):
    """`inner`, trained on its own schedule, as a denoiser of another (1)."""

    def __init__(self, inner: Denoiser, schedule: Schedule):
        self.inner, self.schedule, self.null_cond = inner, schedule, inner.null_cond

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        there, scale = _moved(self.schedule, t, self.inner.schedule)
        p = self.inner(expand(scale, x_t) * x_t, there, cond)
        tilt = None if p.tilt is None else expand(scale, p.tilt) * p.tilt
        return replace(p, eps=from_x0(self.schedule, x_t, t, p.x0).eps, tilt=tilt)


def rescheduled_classifier(classifier: Logits, trained: Schedule, schedule: Schedule) -> Logits:
    """A classifier of noisy x_t, trained on one schedule, as one of another (1)."""

    def moved(x_t: Tensor, t: Tensor) -> Tensor:
        there, scale = _moved(schedule, t, trained)
        return classifier(expand(scale, x_t) * x_t, there)

    return moved


def _moved(schedule: Schedule, t: Tensor, trained: Schedule) -> tuple[Tensor, Tensor]:
    """t' of (1), in the dtype of t, and r'/r: both (B,)."""
    there = trained.time_of_logsnr(schedule.logsnr(t)).clamp(min=1 / trained.steps if trained.steps else 0)
    return there.to(t), _size(trained, there) / _size(schedule, t)


def _size(schedule: Schedule, t: Tensor) -> Tensor:
    return (schedule.alpha(t).square() + schedule.sigma(t).square()).sqrt()
