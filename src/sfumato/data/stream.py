"""Pictures that stream from tar shards (WebDataset's layout) or from the hub, through the `datasets` library.

A stream can only be read from its beginning.  Rows are shuffled in blocks: BLOCK consecutive rows of this part, in an
order drawn from philox(seed, ROWS, number of the block).  (Shards should be written in a shuffled order, as is usual.)
The k-th batch thus stays a pure function of (seed, k); to start at k the stream is read up to there without decoding.

In a shard, the files of one row share a stem: a picture (.png, .jpg, ...), its class (.cls, an integer) or caption (.txt), or
.json with "label", "text" or "caption".  On the hub: the first image column; `label`; `text` or `caption`.  Names of the
classes come from the hub's features or from `label_names.txt`, one a line, beside the shards; else the classes are 0 to
the largest label among the rows that were read to find the held-out part.  With `skip_broken`, a picture that cannot be read gives
way to the next one of its block.
"""

from __future__ import annotations

import glob
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np

from sfumato import noise
from sfumato.data.pictures import View, decode, in_threads
from sfumato.data.rows import Batch, Rows, TableRows, augmentation, collate
from sfumato.data.source import Data, Info, Splits

BLOCK = 1024  # rows that are shuffled together
HELD_OUT_ROWS = 256  # a stream has no end, so its held-out part is that many rows at most
HUB = "hf://"


class Raw(NamedTuple):
    """A row as it comes: its name, the file of its picture, undecoded, label and caption."""

    name: str
    picture: bytes
    label: int | None
    caption: str | None


@dataclass(frozen=True)
class Reading:
    """How the rows of a stream are read, and what all of them must have."""

    channels: int
    size: int | None
    skip_broken: bool = False
    shape: tuple[int, ...] | None = None
    label_names: tuple[str, ...] | None = None
    captioned: bool = False

    def decode(self, raw: Raw) -> np.ndarray | None:
        """(C, H, W) uint8, its shorter side `size`; None for a broken picture to skip; ValueError names the row."""
        if self.label_names is not None and (raw.label is None or not 0 <= raw.label < len(self.label_names)):
            allowed = f"allowed is 0 to {len(self.label_names) - 1}; name all classes, one a line, in label_names.txt beside the shards"
            raise ValueError(f"{raw.name}: label {raw.label} came, {allowed}")
        if self.captioned and raw.caption is None:
            raise ValueError(f"{raw.name}: no caption came, and other rows have one; add it")
        try:
            picture = decode(io.BytesIO(raw.picture), self.channels, self.size)
        except ValueError as error:
            if self.skip_broken:
                return None
            raise ValueError(f"{raw.name}: {error}; mend or remove it, or set skip_broken") from None
        if self.size is None and self.shape is not None and picture.shape != self.shape:
            came, before = (f"{shape[2]}x{shape[1]}" for shape in (picture.shape, self.shape))
            raise ValueError(f"{raw.name}: a picture of {came} came after {before}; set size, e.g. --data.size 64")
        return picture

    def first_good(self, rows: Sequence[Numbered], place: int) -> tuple[Numbered, np.ndarray]:
        """The row at `place`, or the next one (in a circle) whose picture can be read; and its picture."""
        for row in itertools.chain(rows[place:], rows[:place]):
            picture = self.decode(row.raw)
            if picture is not None:
                return row, picture
        raise ValueError(f"{rows[place].raw.name}: this and {len(rows) - 1} rows around it are all broken; mend the stream")

    def batch(self, wanted: Iterable[tuple[Sequence[Numbered], int]], view: View, draws: np.ndarray | None) -> Batch:
        """The dict of a batch from (rows, place in them) of each of its rows."""
        found = list(in_threads(lambda pair: self.first_good(*pair), wanted))
        index = np.array([row.index for row, _ in found], dtype=np.int64)
        labels = None if self.label_names is None else [row.raw.label or 0 for row, _ in found]
        captions = [row.raw.caption or "" for row, _ in found] if self.captioned else None
        return collate(view([picture for _, picture in found], draws), index, labels, captions)


@final
class StreamRows(Rows):
    """The part of a stream to train on; `source()` reads its rows anew from the beginning."""

    def __init__(self, source: Callable[[], Iterator[Raw]], reading: Reading, view: View):
        self.source, self.reading, self.view = source, reading, view
        self.count = None

    def take(self, indices: np.ndarray) -> Batch:
        wanted = [int(i) for i in np.asarray(indices).reshape(-1)]
        if min(wanted, default=0) < 0:
            raise ValueError(f"row {min(wanted)} of a stream came, allowed is 0 and above: its end is unknown")
        numbers, rows = set(wanted), []
        for index, raw in enumerate(itertools.islice(self.source(), max(wanted, default=-1) + 1)):
            if index in numbers:
                rows.append(Numbered(index, raw))
        if len(rows) < len(numbers):
            raise ValueError(f"row {max(wanted)} came, and the stream ends before it; ask for earlier rows")
        places = {row.index: place for place, row in enumerate(rows)}
        return self.reading.batch(((rows, places[i]) for i in wanted), self.view, None)

    def _walk(self, seed: int, batch: int, start: int, mine: slice, augment: bool) -> Iterator[Batch]:
        places = self._places(seed, start * batch)
        for k in itertools.count(start):
            wanted = list(itertools.islice(places, batch))
            draws = augmentation(seed, k, batch)[mine] if augment else None
            yield self.reading.batch(wanted[mine], self.view, draws)

    def _places(self, seed: int, first: int) -> Iterator[tuple[list[Numbered], int]]:
        """The places first, first + 1, ... of the endless sequence, each as (shuffled block, place in it)."""
        for number, begin, rows in self._blocks(first):
            order = noise.philox(seed, noise.ROWS, number).permutation(len(rows))
            shuffled = [rows[i] for i in order]
            yield from ((shuffled, place) for place in range(max(0, first - begin), len(shuffled)))

    def _blocks(self, first: int) -> Iterator[tuple[int, int, list[Numbered]]]:
        """(number, place of its first row, rows) of each block, from the one that holds the place `first`."""
        number = place = 0
        while True:
            numbered = itertools.starmap(Numbered, enumerate(self.source()))
            blocks = length = 0
            while rows := list(itertools.islice(numbered, BLOCK)):
                if place + length + len(rows) > first:
                    yield number + blocks, place + length, rows
                blocks, length = blocks + 1, length + len(rows)
            if length == 0:
                raise ValueError("the stream has no row to train on; check that its shards are still there")
            epochs = max(1, (first - place) // length)  # this one, and those that end before `first`
            number, place = number + epochs * blocks, place + epochs * length


def stream(data: Data) -> Splits:
    """The tar shards or the hub's data set of `data.path`; its first rows are read at the start."""
    source, names = open_stream(data)
    held_out, largest = [], -1
    head = list(itertools.islice(source(), 1))
    if not head:
        raise ValueError(f"{data.path}: the stream has no row; give shards that hold pictures")
    for index, raw in enumerate(itertools.islice(source(), data.held_out * HELD_OUT_ROWS)):
        largest = max(largest, -1 if raw.label is None else raw.label)
        if data.is_held_out(index):
            held_out.append(raw)
    if not held_out:
        raise ValueError(f"{data.path}: too few rows to hold out {data.rule}; add some, or lower held_out (2 or more)")
    if head[0].label is None:
        names = None
    elif names is None:
        names = tuple(str(label) for label in range(largest + 1))

    def trained_on() -> Iterator[Raw]:
        return (raw for index, raw in enumerate(source()) if not data.is_held_out(index))

    plain = Reading(data.channels or 3, data.size, data.skip_broken, None, names, head[0].caption is not None)
    decoded = [(raw, picture) for raw, picture in zip(held_out, in_threads(plain.decode, held_out)) if picture is not None]
    view = View(data.size, data.crop, data.flip)
    if not decoded:
        raise ValueError(f"{data.path}: all of the first {len(held_out)} held-out rows are broken; mend the shards")
    reading = replace(plain, shape=decoded[0][1].shape)
    rows = [reading.decode(raw) for raw, _ in decoded]
    return None
