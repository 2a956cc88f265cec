"""Data: one function a data set, each giving what to train on, what to hold out, and what it is.

    splits = load(Data("digits", held_out=5))
    for batch in splits.train.batches(seed=0, batch=64):    # {"x": ..., "label": ..., "index": ...}

A row of DATASETS maps a name to its function; any other NAME means $SFUMATO_DATA/NAME.npz.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from torch import Tensor

from sfumato import options
from sfumato.data import arrays, folder, library, named, stream
from sfumato.data.rows import Batch, Rows, TableRows
from sfumato.data.source import Data, Info, Splits, check
from sfumato.data.stream import StreamRows

__all__ = ["DATASETS", "Batch", "Data", "Info", "Rows", "Splits", "StreamRows", "TableRows", "load", "picked"]

DATASETS: dict[str, Callable[[Data], Splits]] = {
    "digits": named.digits,
    "mnist": named.mnist,
    "fashion": named.fashion,
    "cifar10": named.cifar10,
    "emoji": named.emoji,
    "neuron": library.neuron,
    "brain": library.brain,
    "breast_cancer": library.breast_cancer,
    "folder": folder.folder,
    "file": arrays.file,
    "stream": stream.stream,
}


def load(data: Data) -> Splits:
    """The splits of `data`; ValueError says in one line what is wrong with the request or the data, and the way out."""
    check(data)
    if data.name in DATASETS:
        return DATASETS[data.name](data)
    path = named.stored(data.name)
    if path is None:
        known = options.unknown("data set", data.name, {*DATASETS, *named.stored_names()})
        raise ValueError(f"{known}; or {named.mend(data.name)}")
    return named.other(data, path)


@lru_cache(maxsize=2)
def _held_out(data: Data) -> Rows:
    return load(data).held_out


def picked(data: Data, seeds: Sequence[int], labels: Tensor | None = None) -> Tensor:
    """x (B, ...) of the held-out row that each seed means, where a walk begins that does not begin with noise.

    It is row seed modulo their number; with labels (B,), of the rows with that label.
    """
    rows = _held_out(data)
    every = rows.take(np.arange(len(rows)))
    index = [seed % len(rows) for seed in seeds]
    if labels is not None and "label" in every:
        where = [np.flatnonzero(np.asarray(every["label"]) == int(label)) for label in labels]
        index = [int(some[seed % len(some)]) for seed, some in zip(seeds, where, strict=True)]
    x = every["x"]
    assert isinstance(x, Tensor)
    return x[index]
