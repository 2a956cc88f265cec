"""Generate: samples of a model together with everything that says how they were made.

Several processes (accelerate launch, torchrun) share the rows: process r of R makes r, r + R, r + 2R, ..., and all get
all of them back in order.  A row is drawn from its own seed, so they are the pictures that one process makes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.guidance import Guide
from sfumato.model import Model
from sfumato.options import split, whole
from sfumato.samplers import SAMPLERS


@dataclass(frozen=True)
class Share:
    """Which of `world` processes this one is."""

    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0


ALONE = Share()


def launched() -> Share:
    """The place of this process among those that accelerate or torchrun started; ALONE if they did not."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ALONE
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return Share(state.process_index, state.num_processes)


def joined(mine: Tensor, n: int, share: Share) -> Tensor:
    """All n rows, in every process, from the rows rank::world (M, ...) of each, M no more than n / world rounded up."""
    from accelerate.utils import gather

    most = -(-n // share.world)
    padded = torch.cat([mine, mine.new_zeros(most - len(mine), *mine.shape[1:])])
    everyone = gather(padded.to("cuda" if torch.cuda.is_available() else "cpu")).cpu()
    return everyone.unflatten(0, (share.world, most)).transpose(0, 1).flatten(0, 1)[:n]


def spread(x: np.ndarray, levels: int) -> np.ndarray:
    """Pictures (N, C, H, W) of so many levels as uint8 (N, H, W, C) over 0..255."""
    return np.rint(x.astype(np.float32) * (255 / (levels - 1))).astype(np.uint8).transpose(0, 2, 3, 1)


@dataclass(frozen=True)
class Samples:
    """x: data units, (N, C, ...); labels (N,) or None; settings: sampler, steps, seed, guidance, ...; seconds."""

    x: np.ndarray
    labels: np.ndarray | None
    settings: dict[str, Any]
    seconds: float
    kind: str
    levels: int | None
    guide: Guide = field(default_factory=Guide)
    label_names: tuple[str, ...] = ()

    def images(self) -> np.ndarray:
        """Pictures as uint8 (N, H, W, C) with all levels spread over 0..255."""
        if self.kind != "picture" or self.levels is None:
            raise ValueError(f"these samples are {self.kind}s, not pictures; write them to an .npz or a .png plot")
        return spread(self.x, self.levels)


def generate(
    model: Model,
    n: int = 64,
    *,
    sampler: str | None = None,
    steps: int | None = None,
    grid: str | None = None,
    seed: int = 0,
    label: int | str | Sequence[int] | None = None,
    guidance: float | Guide | None = None,
    schedule: str | None = None,
    batch: int = 256,
    share: Share = ALONE,
) -> Samples:
    """n samples; what is None is as the model's config says.  Errors as `Model.sample`.

    share: the place of this process, where several are asked for the same samples and each shall make its part.
    """
    asked = model.labels(n, label)
    start = time.perf_counter()
    way: dict[str, Any] = {"sampler": sampler, "steps": steps, "grid": grid, "guidance": guidance, "schedule": schedule}
    if share.world > 1:
        mine = range(share.rank, n, share.world)
        parts = [model.codec.decode(torch.zeros(0, *model.config.shape)).cpu()]
        for first in range(0, len(mine), whole("batch", batch)):
            *_, (_, x_0, _) = model.trajectory(mine[first : first + batch], asked, seed, **way)
            parts.append(model.codec.decode(x_0).cpu())
        x = joined(torch.cat(parts), n, share).numpy()
    else:
        x = model.sample(n, seed=seed, label=label, batch=batch, **way).numpy()
    seconds = time.perf_counter() - start
    usual, guide = model.config.sampling, model.guide(guidance)
    name = split(sampler or usual.sampler)[0] if isinstance(sampler or usual.sampler, str) else ""
    walked = model.guided(schedule=schedule).schedule
    adaptive = name in SAMPLERS and SAMPLERS[name].calls is None  # it takes steps of its own
    settings = {
        "sampler": sampler or usual.sampler,
        "steps": None if adaptive else model.usual_steps_on(walked) if steps is None else steps,
        "grid": None if adaptive else grid or usual.grid,
        "seed": seed,
        "guidance": guide.scale if guide == Guide(guide.scale) else guide.document(),
        "n": n,
        **({} if schedule is None else {"schedule": schedule}),
    }
    levels = model.config.codec.get("levels")
    labels, names = None if asked is None else asked.numpy(), model.config.label_names
    return Samples(x, labels, settings, seconds, model.config.kind, levels, guide, names)
