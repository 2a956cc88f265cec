"""Decoded pictures in a file, for folders whose pixels are more than memory should hold: `--data.cache DIR`.

    DIR/FOLDER-KEY.pixels   uint8, one picture (C, H, W) after the other
    DIR/FOLDER-KEY.json     their names and shapes, and what was wrong with the files that are not among them

KEY is made of the names, sizes and times of change of all files, and of how they are decoded: what changed is decoded
anew, beside the old file, which may be deleted.  Pixels are mapped, not read, so that processes of one machine share
what of them is in memory.  The JSON is written last, so what has none, or another length than it says, is not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Shape = tuple[int, ...]
Keep = Callable[[str, np.ndarray], None]
Complaints = list[tuple[str, str]]  # (file, what is wrong with it)


@dataclass(frozen=True)
class Decoded:
    """Pictures by number, uint8 (C, H, W) each."""

    names: list[str]
    shapes: list[Shape]
    complaints: Complaints
    pixels: np.ndarray
    ends: np.ndarray

    def __getitem__(self, number: int) -> np.ndarray:
        shape, end = self.shapes[number], self.ends[number]
        found: np.ndarray = self.pixels[end - int(np.prod(shape)) : end].reshape(shape)
        return found


def place(cache: str, root: Path, listed: Sequence[str], channels: int, size: int | None) -> Path:
    """DIR/FOLDER-KEY of these files as they are now."""

    def now(name: str) -> list[int]:
        try:
            about = (root / name).stat()
        except OSError:
            return []
        return [about.st_size, about.st_mtime_ns]

    told = json.dumps([channels, size, str(root.resolve()), [[name, *now(name)] for name in listed]])
    return Path(cache) / f"{root.resolve().name}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def _beside(at: Path, what: str) -> Path:
    return at.with_name(f"{at.name}.{what}")


def read(at: Path) -> Decoded | None:
    """What lies there, whole; None if nothing does."""
    try:
        about = json.loads(_beside(at, "json").read_text())
        shapes = [tuple(shape) for shape in about["shapes"]]
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes], dtype=np.int64)
        pixels = np.memmap(_beside(at, "pixels"), dtype=np.uint8, mode="r") if shapes else np.empty(0, np.uint8)
        if len(about["names"]) != len(shapes) or len(pixels) != (ends[-1] if len(ends) else 0):
            return None
        return Decoded(about["names"], shapes, [(name, wrong) for name, wrong in about["complaints"]], pixels, ends)
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def writing(at: Path, complaints: Complaints) -> Iterator[Keep]:
    """Within, pictures are kept one by one, by name; at the end they are there, with what `complaints` came to be.

    ValueError if there is no room or no right to write.
    """
    names: list[str] = []
    shapes: list[Shape] = []
    fresh = {what: _beside(at, f"{what}.{os.getpid()}.writing") for what in ("pixels", "json")}
    before = len(complaints)
    try:
        at.parent.mkdir(parents=True, exist_ok=True)
        with fresh["pixels"].open("wb") as file:

            def keep(name: str, picture: np.ndarray) -> None:
                file.write(np.ascontiguousarray(picture).data)
                names.append(name)
                shapes.append(picture.shape)

            yield keep
        about = {"names": names, "shapes": shapes, "complaints": complaints[before:]}
        fresh["json"].write_text(json.dumps(about))
        for what, path in fresh.items():
            path.replace(_beside(at, what))
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(
            f"cannot keep decoded pictures in {at.parent}: {reason}; give another --data.cache or none"
        ) from error
    finally:
        for path in fresh.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
