"""What a run says of its data (`Data`), and what the data says of itself (`Info`, `Splits`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sfumato.data.rows import Rows

Kind = Literal["picture", "signal", "volume", "vector"]

FROM_PATH = ("folder", "file", "stream")  # the rows of DATASETS that read `Data.path`


@dataclass(frozen=True)
class Data:
    """Which data, and what is done to it.  Nothing is resized, cropped or mirrored unless it is said here."""

    name: str = "digits"
    """A data set by name, or NAME of $SFUMATO_DATA/NAME.npz; folder, file and stream read --data.path."""
    path: str | None = None
    """A folder of pictures, an .npz or .npy file, a pattern of tar shards (shards/*.tar), or hf://user/name."""
    size: int | None = None
    """Resize the shorter side to this and crop a square; without it pictures keep their size."""
    crop: Literal["center", "random"] = "center"
    """Where training pictures are cropped to a square (held-out pictures: always the center)."""
    flip: bool = False
    """Mirror half of the training pictures, left to right."""
    channels: Literal[1, 3] | None = None
    """1 (grey) or 3 (RGB); by default RGB for folders and streams, as stored for files."""
    held_out: int = 10
    """Every so many rows, one is held out (index % N == N - 1), when the set has no test part of its own."""
    skip_broken: bool = False
    """Leave out files that are no usable pictures instead of stopping."""
    cache: str | None = None
    """Where to keep a folder's decoded pictures; else memory holds up to 1 GiB, and more is decoded each time."""

    @property
    def edits_pictures(self) -> bool:
        """Whether anything is asked for that has a meaning for pictures only."""
        return self.size is not None or self.flip or self.crop != "center" or self.channels is not None

    def is_held_out(self, index: int) -> bool:
        """The rule of the held-out part, for sets without a test part of their own."""
        return index % self.held_out == self.held_out - 1

    @property
    def rule(self) -> str:
        """The rule in words."""
        return f"rows with index % {self.held_out} == {self.held_out - 1}"


@dataclass(frozen=True)
class Info:
    """What the data says of itself."""

    shape: tuple[int, ...]
    """One row: (C, H, W) pictures, (C, L) signals, (C, D, H, W) volumes, (D,) vectors."""
    kind: Kind
    """What a row is."""
    levels: int | None
    """How many values a number can take: 256 for 8-bit pictures, 17 for digits, None for float data."""
    label_names: tuple[str, ...] = ()
    """The classes' names, one a class; () if unlabelled."""
    source: str = ""
    """Whose data it is and its licence, one line."""
    rule: str = ""
    """How the held-out part was chosen, one line."""


@dataclass(frozen=True)
class Splits:
    """The rows to train on, the rows never trained on, and what they are."""

    train: Rows
    held_out: Rows
    info: Info


def check(data: Data) -> None:
    """ValueError for settings that no data set can obey."""
    if data.name in FROM_PATH and not data.path:
        raise ValueError(f"data name {data.name!r} came without a path; give one, e.g. --data.path PATH")
    if data.name not in FROM_PATH and data.path is not None:
        ways = ", ".join(map(repr, FROM_PATH))
        raise ValueError(
            f"data {data.name!r} reads no path, but path {data.path!r} came; set the name to one of {ways}"
        )
    if data.cache is not None and data.name != "folder":
        raise ValueError(
            f"data {data.name!r} has no pictures to decode once, but cache {data.cache!r} came; leave it out"
        )
    if data.held_out < 2:
        raise ValueError(f"held_out is {data.held_out}, allowed is 2 or more: 10 holds out every tenth row")
    if data.size is not None and data.size < 2:
        raise ValueError(
            f"size is {data.size}, allowed is 2 or more pixels, or no size to keep the pictures as they are"
        )
    if data.crop not in ("center", "random"):
        raise ValueError(f"crop is {data.crop!r}, allowed are 'center' and 'random'")
    if data.channels not in (None, 1, 3):
        raise ValueError(f"channels is {data.channels!r}, allowed are 1 (grey), 3 (RGB) and None")
    if data.crop == "random" and data.size is None:
        raise ValueError(
            "crop 'random' came without a size, so there is nothing to crop to; set size, e.g. --data.size 64"
        )
