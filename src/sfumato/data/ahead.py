"""The next batch made while the training works on this one.

A batch is a function of (seed, k), so it does not matter who makes it, nor when.  Where pictures are decoded or come
from a stream, a thread decodes them meanwhile; for a GPU they wait in pinned memory, from which copying is faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from sfumato.data.rows import Batch


def ahead(batches: Iterator[Batch], pinned: bool = False) -> Iterator[Batch]:
    """The same batches, each asked for when the one before it is taken; what fails is raised in its turn."""

    def following() -> Batch | None:
        batch = next(batches, None)
        if batch is None or not pinned:
            return batch
        return {name: x.pin_memory() if isinstance(x, Tensor) else x for name, x in batch.items()}

    with ThreadPoolExecutor(1, "data") as thread:
        coming = thread.submit(following)
        while (batch := coming.result()) is not None:
            coming = thread.submit(following)
            yield batch
