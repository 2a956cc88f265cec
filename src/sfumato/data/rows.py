"""Rows of data, and the order in which a training sees them.

The k-th global batch is a pure function of (seed, k).  Its row j has the place p = k * batch + j in an endless
sequence; with N rows, epoch e = p // N and

    index(p) = perm_e[p % N],     perm_e drawn from philox(seed, ROWS, e),

so a batch may straddle epochs, each epoch has every row once, and a training that resumes at step k goes on with the
batch it would have seen.  Row j's crop and flip are row j of U ~ uniform (batch, 3), drawn from
philox(seed, AUGMENT, k).  Process `rank` of `world` gets the rows rank, rank + world, ... of the same global batch.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import final

import numpy as np
import torch
from torch import Tensor

from sfumato import noise
from sfumato.data.pictures import View

Batch = dict[str, "Tensor | list[str]"]


@lru_cache(maxsize=4)
def permutation(seed: int, n: int, epoch: int) -> np.ndarray:
    """perm_e, the order of an epoch's n rows: (n,) int64, not to be written to."""
    order = noise.philox(seed, noise.ROWS, epoch).permutation(n)
    order.flags.writeable = False
    return order


def order(seed: int, n: int, places: np.ndarray) -> np.ndarray:
    """index(p) of the places p (B,) in the endless sequence: (B,) int64 below n."""
    epochs, inner = np.divmod(places, n)
    index = np.empty(len(places), dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        index[here] = permutation(seed, n, int(epoch))[inner[here]]
    return index


def augmentation(seed: int, step: int, batch: int) -> np.ndarray:
    """U (batch, 3) of a step: a row's flip, its crop's place from the top and from the left."""
    return noise.philox(seed, noise.AUGMENT, step).random((batch, 3))


def collate(x: np.ndarray, index: np.ndarray, labels: Sequence[int] | None, captions: Sequence[str] | None) -> Batch:
    """The dict of a batch: "x", "index", and "label" and "caption" where there are any."""
    batch: Batch = {"x": torch.from_numpy(x), "index": torch.from_numpy(index)}
    if labels is not None:
        batch["label"] = torch.from_numpy(np.array(labels, dtype=np.int64))
    if captions is not None:
        batch["caption"] = [str(caption) for caption in captions]
    return batch


class Rows(ABC):
    """One part of a data set.  `count` is how many rows it has, None for a stream, whose length nobody knows.

    A batch is a dict: "x" (B, ...), uint8 for pictures and float32 otherwise; "index" (B,) int64, the row's number in
    this part; "label" (B,) int64 if labelled; "caption", a list of B texts, if captioned.
    """

    count: int | None

    def __len__(self) -> int:
        if self.count is None:
            raise ValueError("a stream has no known length: use rows.batches(...), or rows.take(...) of its first rows")
        return self.count

    @abstractmethod
    def take(self, indices: np.ndarray) -> Batch:
        """The rows of these numbers (n,), cropped at the center and never mirrored."""

    def batches(
        self, seed: int, batch: int, *, start: int = 0, rank: int = 0, world: int = 1, augment: bool = True
    ) -> Iterator[Batch]:
        """The global batches start, start + 1, ... without end; of each, the rows rank::world.

        ValueError if `batch` rows cannot be dealt to `world` processes.
        """
        if batch < 1 or batch < world:
            raise ValueError(f"batch is {batch}, allowed is at least one row for each of {world} processes")
        if not 0 <= rank < world:
            raise ValueError(f"rank is {rank}, allowed is 0 to {world - 1} (world is {world})")
        if start < 0:
            raise ValueError(f"start is {start}, allowed is 0 or more")
        return self._walk(seed, batch, start, slice(rank, None, world), augment)

    @abstractmethod
    def _walk(self, seed: int, batch: int, start: int, mine: slice, augment: bool) -> Iterator[Batch]:
        """`batches` after its checks; `mine` are this process's rows of a global batch."""


@final
class TableRows(Rows):
    """Rows that can be had by number: arrays in memory, or the pictures of a folder.

    `read(numbers)` gives rows of the whole set as they are before crop and flip; `part` (N,) are the numbers in the
    whole set that make up this part; labels and captions are the whole set's.
    """

    def __init__(
        self,
        read: Callable[[np.ndarray], Sequence[np.ndarray] | np.ndarray],
        part: np.ndarray,
        view: View,
        labels: np.ndarray | None = None,
        captions: np.ndarray | None = None,
    ):
        self.read, self.part, self.view = read, part, view
        self.labels, self.captions = labels, captions
        self.count = len(part)

    def take(self, indices: np.ndarray) -> Batch:
        return self._rows(np.asarray(indices, dtype=np.int64).reshape(-1), None)

    def _walk(self, seed: int, batch: int, start: int, mine: slice, augment: bool) -> Iterator[Batch]:
        for k in itertools.count(start):
            places = np.arange(k * batch, (k + 1) * batch)[mine]
            draws = augmentation(seed, k, batch)[mine] if augment else None
            yield self._rows(order(seed, len(self), places), draws)

    def _rows(self, index: np.ndarray, draws: np.ndarray | None) -> Batch:
        whole = self.part[index]
        labels = None if self.labels is None else self.labels[whole]
        captions = None if self.captions is None else self.captions[whole]
        return collate(self.view(self.read(whole), draws), index, labels, captions)
