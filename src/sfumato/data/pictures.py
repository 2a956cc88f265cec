"""Pictures as uint8 arrays (C, H, W): decoding any mode, resizing, cropping, mirroring.

A decoded picture is upright (EXIF orientation), transparent parts lie on white, 16-bit values v become
round(v / 257).  Resizing is PIL's antialiased bicubic: the shorter side becomes `size`; a square of `size` is cropped
from the result when the row is read, so that a random crop is new in each epoch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeVar

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class View:
    """How rows are looked at: a square crop of `size` (None: no crop), and perhaps mirrored."""

    size: int | None = None
    crop: Literal["center", "random"] = "center"
    flip: bool = False

    def __call__(self, rows: Sequence[np.ndarray] | np.ndarray, draws: np.ndarray | None = None) -> np.ndarray:
        """(B, ...) from B rows; `draws` (B, 3) in [0, 1) are flip, top and left; None: center, not mirrored."""
        if self.size is not None:
            places = [None] * len(rows) if draws is None or self.crop == "center" else draws[:, 1:]
            rows = [square(row, self.size, place) for row, place in zip(rows, places, strict=True)]
        x = np.stack(rows) if isinstance(rows, list) else np.asarray(rows)
        if self.flip and draws is not None:
            mirrored = draws[:, 0] < 0.5
            x[mirrored] = x[mirrored][..., ::-1]
        return x


def square(picture: np.ndarray, size: int, place: np.ndarray | None) -> np.ndarray:
    """The (C, size, size) part of (C, H, W), its corner at the fractions `place` (2,) in [0, 1); None: the center."""
    freedom = np.array(picture.shape[-2:]) - size
    y, x = freedom // 2 if place is None else (place * (freedom + 1)).astype(int)
    return picture[:, y : y + size, x : x + size]


def decode(file: Path | BinaryIO, channels: int, size: int | None) -> np.ndarray:
    """The picture in a file, (channels, H, W) uint8, resized if `size`; ValueError says in few words what is wrong."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image)  # a copy, so all of the file is read here
    except UnidentifiedImageError:
        raise ValueError("not a picture") from None
    except Exception as error:  # each format fails in its own way: OSError, SyntaxError, struct.error, zlib.error, ...
        raise ValueError(f"broken: {' '.join(str(error).split())}") from None
    if 1 in upright.size:
        raise ValueError(f"one pixel: {upright.width}x{upright.height}")
    return to_array(resized(flat(upright, channels), size))


def flat(image: Image, channels: int) -> Image:
    """An image of any PIL mode as "L" (channels 1) or "RGB" (channels 3), transparent parts on white."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        image = eight_bit(image)
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode == "LAB":
        image = image.convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def eight_bit(image: Image) -> Image:
    """Grey images of 16-bit integers (0..65535) or floats (0..1, or 0..255) as 8-bit."""
    from PIL import Image

    values = np.asarray(image, dtype=np.float64)
    low, high = values.min(), values.max()
    top = 65535 if image.mode != "F" else 1 if high <= 1 else 255
    if not (low >= 0 and high <= top):
        raise ValueError(f"values from {low:g} to {high:g}, allowed are 0 to {top}")
    return Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8))


def resized(image: Image, size: int | None) -> Image:
    """The image with its shorter side made `size`, the other in proportion."""
    from PIL import Image

    short = min(image.size)
    if size is None or short == size:
        return image
    width, height = (max(size, round(side * size / short)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def to_array(image: Image) -> np.ndarray:
    """ "L" or "RGB" to (C, H, W) uint8."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def resize_array(picture: np.ndarray, size: int, levels: int) -> np.ndarray:
    """A (C, H, W) uint8 picture with its shorter side made `size`; values stay below `levels` (bicubic overshoots)."""
    from PIL import Image

    image = Image.fromarray(picture[0] if len(picture) == 1 else np.ascontiguousarray(picture.transpose(1, 2, 0)))
    return np.minimum(to_array(resized(image, size)), levels - 1)


def recolour(pictures: np.ndarray, channels: int | None) -> np.ndarray:
    """(N, C, H, W) uint8 with 1 or 3 channels; grey is PIL's luma, (19595 R + 38470 G + 7471 B) / 2^16, rounded."""
    if channels is None or channels == pictures.shape[1]:
        return pictures
    if channels == 3:
        return np.repeat(pictures, 3, axis=1)
    red, green, blue = (pictures[:, c].astype(np.uint32) for c in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16).astype(np.uint8)[:, None]


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="sfumato-decode")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """map(function, items) in order, in threads (decoding releases Python's lock)."""
    return _pool().map(function, items)
