"""Chains of states: the forward chain walked step by step, and frames kept of a walk.

x_t = a_ts x_s + sqrt(v_ts) eps_k     up a grid 0 = t_0 < t_1 < ... < t_S = 1      (`gaussian` (2))
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sfumato import gaussian
from sfumato.denoiser import Prediction
from sfumato.noise import EPS, normal
from sfumato.schedules import Schedule

INDEX_STEPS = 1000  # times of a continuous schedule are told as t 1000


@dataclass(frozen=True)
class Film:
    """Frames of a chain: t (K,), the states x (K, B, ...) and, of a reverse chain, the predicted x0 (K, B, ...)."""

    t: Tensor
    x: Tensor
    x0: Tensor | None = None


def index(schedule: Schedule, t: float) -> int:
    """The step i that a time is."""
    return round(t * (schedule.steps or INDEX_STEPS))


def frame_numbers(steps: int, frames: int) -> list[int]:
    """At most frames + 1 of the numbers 0..steps, evenly spread, both ends among them."""
    return sorted({round(k) for k in np.linspace(0, steps, min(frames, steps) + 1)})


def forward(schedule: Schedule, x_0: Tensor, times: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(t, x_t) at every time of an ascending grid that begins at 0; x_0 is (B, ...), step k's noise of (seed, k)."""
    x = x_0
    yield times[0], x
    for k, (s, t) in enumerate(pairwise(times), start=1):
        mean, std = gaussian.transition(schedule, x, s[None], t[None])
        x = mean + std * normal([seed], x.shape, EPS, k)[0].to(x)
        yield t, x


def keep_forward(chain: Iterable[tuple[Tensor, Tensor]], steps: int, frames: int) -> Film:
    """Frames of a forward chain of `steps` steps."""
    wanted = set(frame_numbers(steps, frames))
    kept = [(t, x) for k, (t, x) in enumerate(chain) if k in wanted]
    return Film(torch.stack([t for t, _ in kept]), torch.stack([x for _, x in kept]))


def keep_reverse(walk: Iterable[tuple[Tensor, Tensor, Prediction | None]], steps: int, frames: int) -> Film:
    """Frames of a sampler's walk of `steps` steps; at its end, t = 0, the predicted x_0 is the state itself."""
    wanted = {steps - k for k in frame_numbers(steps, frames)}
    kept = [(t, x.cpu(), x.cpu() if p is None else p.x0.cpu()) for k, (t, x, p) in enumerate(walk) if k in wanted]
    t, x, x0 = (torch.stack([row[j] for row in kept]) for j in range(3))
    return Film(t, x, x0)


def nearest_frames(film: Film, wanted: Iterable[float]) -> list[int]:
    """The frame nearest to each wanted time."""
    return [int((film.t - t).abs().argmin()) for t in wanted]
