"""What the steps of a training are fed with: this process's rows, and their noise or a bridge's other rows.

All of it is a function of (seed, k), so a thread may make it ahead (`data.ahead`), and N processes draw an Nth each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from sfumato import data
from sfumato.data import Batch
from sfumato.data.ahead import ahead
from sfumato.noise import training_noise

if TYPE_CHECKING:
    from sfumato.train.trainer import Training

OTHER_SEED = 2**32  # added to the seed for the order of a bridge's other rows


def feed(training: Training) -> Iterator[tuple[Batch, Batch | None]]:
    """Rows and a bridge's other rows, or rows with their noise as "eps" and None, of the next step and on."""
    run, share, first = training.run, training.share, training.step
    pinned = training.accelerator.device.type == "cuda"

    def batches_of(rows: data.Rows, seed: int) -> Iterator[Batch]:
        return rows.batches(seed, run.batch, start=first, rank=share.rank, world=share.world)

    batches = batches_of(training.splits.train, run.seed)
    if training.source is None:
        for rows in ahead(_noised(training, batches, first + 1), pinned):
            yield rows, None
    else:
        others = batches_of(training.source.train, run.seed + OTHER_SEED)
        yield from zip(ahead(batches, pinned), ahead(others, pinned), strict=False)


def _noised(training: Training, batches: Iterator[Batch], first: int) -> Iterator[Batch]:
    run, share = training.run, training.share
    mine = range(share.rank, run.batch, share.world)
    for k, rows in enumerate(batches, first):
        yield {**rows, "eps": training_noise(run.seed, k, run.batch, mine, training.config.shape)}


def eps_of(training: Training, rows: Batch, other: Batch | None) -> Tensor:
    """What x_0 is mixed with, on the device."""
    if other is not None:
        return training.encode(other)[0]
    eps = rows["eps"]
    assert isinstance(eps, Tensor)
    return eps.to(training.accelerator.device, non_blocking=True)
