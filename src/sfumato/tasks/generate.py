"""Generate: samples of a model together with everything that says how they were made."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sfumato.model import Model
from sfumato.options import split
from sfumato.samplers import SAMPLERS


@dataclass(frozen=True)
class Samples:
    """x: data units, (N, C, ...); labels (N,) or None; settings: sampler, steps, seed, guidance, ...; seconds."""

    x: np.ndarray
    labels: np.ndarray | None
    settings: dict[str, Any]
    seconds: float
    kind: str
    levels: int | None

    def images(self) -> np.ndarray:
        """Pictures as uint8 (N, H, W, C) with all levels spread over 0..255."""
        if self.kind != "picture" or self.levels is None:
            raise ValueError(f"these samples are {self.kind}s, not pictures; write them to an .npz or a .png plot")
        scaled = np.rint(self.x.astype(np.float32) * (255 / (self.levels - 1))).astype(np.uint8)
        return scaled.transpose(0, 2, 3, 1)


def generate(
    model: Model,
    n: int = 64,
    *,
    sampler: str | None = None,
    steps: int | None = None,
    grid: str | None = None,
    seed: int = 0,
    label: int | str | Sequence[int] | None = None,
    guidance: float | None = None,
    schedule: str | None = None,
    batch: int = 256,
) -> Samples:
    """n samples; what is None is as the model's config says.  Errors as `Model.sample`."""
    start = time.perf_counter()
    x = model.sample(
        n,
        sampler=sampler,
        steps=steps,
        grid=grid,
        seed=seed,
        label=label,
        guidance=guidance,
        schedule=schedule,
        batch=batch,
    ).numpy()
    seconds = time.perf_counter() - start
    labels = model.labels(n, label)
    usual = model.config.sampling
    name = split(sampler or usual.sampler)[0] if isinstance(sampler or usual.sampler, str) else ""
    walked = model.guided(schedule=schedule).schedule
    adaptive = name in SAMPLERS and SAMPLERS[name].calls is None  # it takes steps of its own
    settings = {
        "sampler": sampler or usual.sampler,
        "steps": None if adaptive else model.usual_steps_on(walked) if steps is None else steps,
        "grid": None if adaptive else grid or usual.grid,
        "seed": seed,
        "guidance": usual.guidance if guidance is None else guidance,
        "n": n,
        **({} if schedule is None else {"schedule": schedule}),
    }
    levels = model.config.codec.get("levels")
    return Samples(x, None if labels is None else labels.numpy(), settings, seconds, model.config.kind, levels)
