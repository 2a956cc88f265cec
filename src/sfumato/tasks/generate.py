"""Generate: samples of a model together with everything that says how they were made.

A `Draw` says what is asked for; its blocks are made one after the other, so that what is written to disk as it comes
(`to_disk.stream`) takes no more memory for a million samples than for one batch.  `generate` keeps them all.

Several processes (accelerate launch, torchrun) share the rows of every block, and all get all of them back in order
(`processes`).  A row is drawn from its own seed, so they are the pictures that one process makes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato import processes
from sfumato.guidance import Guide
from sfumato.model import Model
from sfumato.options import split, whole
from sfumato.processes import ALONE, Share
from sfumato.samplers import SAMPLERS


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


@dataclass(frozen=True)
class Draw:
    """n samples as they are asked of a model; what is None is as its config says.

    share: the place of this process, where several are asked for the same samples and each shall make its part.
    """

    model: Model
    n: int = 64
    sampler: str | None = None
    steps: int | None = None
    grid: str | None = None
    seed: int = 0
    label: int | str | Sequence[int] | None = None
    guidance: float | Guide | None = None
    schedule: str | None = None
    reuse: int = 1
    batch: int = 256
    share: Share = ALONE

    def __post_init__(self) -> None:
        whole("n", self.n)
        whole("batch", self.batch)
        if not isinstance(self.seed, int):
            raise ValueError(f"seed must be a whole number; got {self.seed!r}")
        if not isinstance(self.label, int | str | None):
            self.model.labels(self.n, self.label)

    def rows(self) -> Iterator[range]:
        """The rows of each block: a batch for every process."""
        size = self.batch * self.share.world
        return (range(first, min(first + size, self.n)) for first in range(0, self.n, size))

    def labels(self, rows: range) -> Tensor | None:
        """The classes of these rows, (len(rows),); None if the model knows none."""
        classes, label = self.model.config.conditions.classes, self.label
        if label is None and classes:
            label = [i % classes for i in rows]
        elif not isinstance(label, int | str | None):
            label = label[rows.start : rows.stop]
        return self.model.labels(len(rows), label)

    def blocks(self) -> Iterator[np.ndarray]:
        """x of the rows of each block in turn, (len(rows), C, ...), data units."""
        for rows in self.rows():
            mine = self._made(rows)
            with processes.one_line(self.share, lambda: "give the same command again"):
                every = processes.joined(mine, len(rows), self.share)
            yield every.numpy()

    def _made(self, rows: range) -> Tensor:
        """This process's part of a block: row i of seed k is row 0 of seed k + i."""
        model, mine = self.model, range(self.share.rank, len(rows), self.share.world)
        x_0 = torch.zeros(0, *model.config.shape)
        if mine:
            way = self.sampler, self.steps, self.grid, self.guidance, self.schedule, self.reuse
            for _, x, _ in model.trajectory(mine, self.labels(rows), self.seed + rows.start, *way):
                x_0 = x  # the last one stays, and none before it
        return model.codec.decode(x_0).cpu()

    def samples(self) -> Samples:
        """All of them in memory, in every process."""
        start = time.perf_counter()
        x = np.concatenate(list(self.blocks()))
        seconds = time.perf_counter() - start
        labels, config = self.labels(range(self.n)), self.model.config
        told, guide = None if labels is None else labels.numpy(), self.model.guide(self.guidance)
        levels, names = config.codec.get("levels"), config.label_names
        return Samples(x, told, self.settings(), seconds, config.kind, levels, guide, names)

    def settings(self) -> dict[str, Any]:
        """What is stored beside the samples."""
        model, usual, guide = self.model, self.model.config.sampling, self.model.guide(self.guidance)
        sampler = self.sampler or usual.sampler
        name = split(sampler)[0] if isinstance(sampler, str) else ""
        walked = model.guided(schedule=self.schedule).schedule
        adaptive = name in SAMPLERS and SAMPLERS[name].calls is None  # it takes steps of its own
        return {
            "sampler": sampler,
            "steps": None if adaptive else model.usual_steps_on(walked) if self.steps is None else self.steps,
            "grid": None if adaptive else self.grid or usual.grid,
            "seed": self.seed,
            "guidance": guide.scale if guide == Guide(guide.scale) else guide.document(),
            "n": self.n,
            **({} if self.schedule is None else {"schedule": self.schedule}),
            **({} if self.reuse == 1 else {"reuse": self.reuse}),
        }


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
    reuse: int = 1,
    batch: int = 256,
    share: Share = ALONE,
) -> Samples:
    """The n samples of a `Draw`, all of them in memory.  Errors as `Model.sample`."""
    return Draw(model, n, sampler, steps, grid, seed, label, guidance, schedule, reuse, batch, share).samples()
