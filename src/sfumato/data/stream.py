"""Pictures that stream from tar shards (WebDataset's layout) or from the hub, through the `datasets` library.

A stream can only be read from its beginning.  Rows are shuffled in blocks: BLOCK consecutive rows of this part, in an
order drawn from philox(seed, ROWS, number of the block).  (Shards should be written in a shuffled order, as is usual.)
The k-th batch thus stays a pure function of (seed, k); to start at k the stream is read up to there without decoding.

In a shard, the files of one row share a stem: a picture (.png, .jpg, ...), its class (.cls, an integer), its caption
(.txt), or both in .json ("label", "text" or "caption").  On the hub: the first image column; `label`; `text` or
`caption`.  The classes' names come from the hub's features, or from `label_names.txt`, one a line, beside the shards;
else the classes are 0 to the largest label among the rows that are read at the start to find the held-out part.
With `skip_broken`, a picture that cannot be read gives way to the next one of its block.
"""

from __future__ import annotations

import glob
import io
import itertools
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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


class Numbered(NamedTuple):
    """A row with its number in its part of the stream."""

    number: int
    raw: Raw


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
            allowed = f"allowed is 0 to {len(self.label_names) - 1}"
            mend = "mend it, or name all classes, one a line, in label_names.txt beside the shards"
            raise ValueError(f"{raw.name}: label {raw.label} came, {allowed}; {mend}")
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
        raise ValueError(
            f"{rows[place].raw.name}: this and {len(rows) - 1} rows around it are all broken; mend the stream"
        )

    def batch(self, wanted: Iterable[tuple[Sequence[Numbered], int]], view: View, draws: np.ndarray | None) -> Batch:
        """The dict of a batch from (rows, place in them) of each of its rows."""
        found = list(in_threads(lambda pair: self.first_good(*pair), wanted))
        index = np.array([row.number for row, _ in found], dtype=np.int64)
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
        places = {row.number: place for place, row in enumerate(rows)}
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
    first, held_out, largest = None, [], -1
    for index, raw in enumerate(itertools.islice(source(), data.held_out * HELD_OUT_ROWS)):
        first = first or raw
        largest = max(largest, -1 if raw.label is None else raw.label)
        if data.is_held_out(index):
            held_out.append(raw)
    if first is None or not held_out:
        raise ValueError(f"{data.path}: too few rows to hold out {data.rule}; add some, or lower held_out (2 or more)")
    if first.label is None:
        names = None
    elif names is None:
        names = tuple(str(label) for label in range(largest + 1))

    reading = Reading(data.channels or 3, data.size, data.skip_broken, None, names, first.caption is not None)
    shape = next((picture.shape for picture in map(reading.decode, held_out) if picture is not None), None)
    if shape is None:
        raise ValueError(f"{data.path}: all of the first {len(held_out)} held-out rows are broken; mend the shards")
    reading = replace(reading, shape=shape)
    view = View(data.size, data.crop, data.flip)
    test = kept_rows(held_out, reading, view)
    rule = f"{data.rule} of the stream's order, of which the first {len(test)} are used; none of them is trained on"
    size = shape if data.size is None else (shape[0], data.size, data.size)
    info = Info(size, "picture", 256, names or (), f"the stream {data.path}", rule)

    def trained_on() -> Iterator[Raw]:
        return (raw for index, raw in enumerate(source()) if not data.is_held_out(index))

    return Splits(StreamRows(trained_on, reading, view), test, info)


def kept_rows(raws: list[Raw], reading: Reading, view: View) -> TableRows:
    """A few rows of a stream, decoded and kept in memory."""
    good = [
        (raw, picture)
        for raw, picture in zip(raws, in_threads(reading.decode, raws), strict=True)
        if picture is not None
    ]
    pictures = [picture for _, picture in good]
    labels = None if reading.label_names is None else np.array([raw.label for raw, _ in good])
    captions = np.array([raw.caption for raw, _ in good], dtype=object) if reading.captioned else None
    return TableRows(lambda numbers: [pictures[i] for i in numbers], np.arange(len(good)), view, labels, captions)


def open_stream(data: Data) -> tuple[Callable[[], Iterator[Raw]], tuple[str, ...] | None]:
    """A function that reads the stream's rows from the beginning, and the names of the classes where they are told."""
    assert data.path is not None
    names = None
    if data.path.startswith(HUB):
        dataset = _load(data.path, data.path.removeprefix(HUB), None)
    else:
        shards = sorted(glob.glob(data.path, recursive=True))
        if not shards:
            raise ValueError(
                f"{data.path}: no such file; give a pattern of tar shards, e.g. 'shards/*.tar', or hf://user/name"
            )
        listed = Path(shards[0]).parent / "label_names.txt"
        if listed.is_file():
            names = tuple(line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip())
        dataset = _load(data.path, "webdataset", shards)
    return rows_of(dataset, data.path, names)


def _load(path: str, name: str, shards: list[str] | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, data_files=shards, split="train", streaming=True)
    except Exception as error:  # the hub fails in many ways: offline, unknown, gated, without a train split
        mend = "check the shards (one stem a row)" if shards else "check the name and the network, or use local shards"
        raise ValueError(f"{path}: cannot be opened ({' '.join(str(error).split())}); {mend}") from error


def rows_of(
    dataset: Any, path: str, names: tuple[str, ...] | None
) -> tuple[Callable[[], Iterator[Raw]], tuple[str, ...] | None]:
    """`open_stream` for an opened set of the `datasets` library: finds its columns, leaves pictures undecoded."""
    import datasets

    features = dataset.features or {}
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if not images:
        raise ValueError(
            f"{path}: holds {', '.join(features) or 'nothing'}, but no pictures; allowed are rows with an image"
        )
    for name in images:
        dataset = dataset.cast_column(name, datasets.Image(decode=False))
    if isinstance(features.get("label"), datasets.ClassLabel):
        names = tuple(features["label"].names)

    def source() -> Iterator[Raw]:
        number = 0
        try:
            for number, row in enumerate(dataset, start=1):
                yield raw_row(row, images, f"{path}, row {row.get('__key__', number - 1)}")
        except (OSError, EOFError, tarfile.TarError) as error:
            raise ValueError(
                f"{path}: breaks off after {number} rows ({error}); mend the shard or the network"
            ) from error

    return source, names


def raw_row(row: dict[str, Any], images: list[str], name: str) -> Raw:
    """A row of the `datasets` library as a `Raw`."""
    told = {**(row.get("json") or {}), **{key: given for key, given in row.items() if given is not None}}
    picture = next((row[image] for image in images if row[image] is not None), None)
    if picture is None:
        raise ValueError(f"{name}: no picture in it; add one, e.g. as .png, or remove the row")
    label = told.get("cls", told.get("label"))
    if label is not None and not isinstance(label, int):
        raise ValueError(f"{name}: label {label!r} came, allowed are integers 0, 1, ...")
    caption = next((told[key] for key in ("txt", "text", "caption") if isinstance(told.get(key), str)), None)
    return Raw(name, _content(picture), label, caption)


def _content(picture: dict[str, Any]) -> bytes:
    """The bytes of an undecoded picture, which the library gives as bytes or as a path, local or remote."""
    if picture["bytes"] is not None:
        return picture["bytes"]
    import fsspec  # type: ignore[import-untyped]

    with fsspec.open(picture["path"]) as file:
        return file.read()
