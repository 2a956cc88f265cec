"""Decoding: every PIL mode, transparency on white, orientation, 16 bits; resizing and colours."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.data.pictures import decode, flat, recolour, resize_array, resized, square, to_array

BYTES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"]
MODES = [*BYTES, "I", "F", "I;16", "I;16B", "I;16L", "I;16N"]


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode(mode: str, channels: int) -> None:
    x = to_array(flat(Image.new(mode, (5, 4)), channels))
    assert (x.shape, x.dtype) == ((channels, 4, 5), np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 257, 300], [32768, 65278, 65535]], dtype=np.uint16)
    x = decode(saved(Image.fromarray(values), kind), 1, None)
    assert x[0].tolist() == [[0, 1, 1], [128, 254, 255]]


def test_big_endian_sixteen_bits() -> None:
    values = np.array([[0, 257], [32768, 65535]], dtype=">u2")
    assert to_array(flat(Image.frombytes("I;16B", (2, 2), values.tobytes()), 1))[0].tolist() == [[0, 1], [128, 255]]


@pytest.mark.parametrize(("top", "expected"), [(1.0, [0, 128, 255]), (255.0, [0, 128, 255])])
def test_floats(top: float, expected: list[int]) -> None:
    values = np.array([[0, 0.501, 1.0]], dtype=np.float32) * top
    assert decode(saved(Image.fromarray(values.repeat(2, 0)), "TIFF"), 1, None)[0, 0].tolist() == expected


@pytest.mark.parametrize("values", [[-1.0, 2.0], [0.0, 300.0], [0.0, np.nan]])
def test_floats_of_unknown_range_are_refused(values: list[float]) -> None:
    image = Image.fromarray(np.array([values, values], dtype=np.float32))
    with pytest.raises(ValueError, match=r"values from .*, allowed are 0 to"):
        decode(saved(image, "TIFF"), 3, None)


def test_transparent_parts_lie_on_white() -> None:
    pixels = np.array([[[200, 100, 0, 0], [200, 100, 0, 255]], [[0, 0, 0, 128], [0, 0, 0, 51]]], dtype=np.uint8)
    x = decode(saved(Image.fromarray(pixels)), 3, None).transpose(1, 2, 0).astype(int)
    alpha = pixels[..., 3:] / 255
    assert np.abs(x - (alpha * pixels[..., :3] + (1 - alpha) * 255)).max() <= 1
    grey = decode(saved(Image.fromarray(pixels).convert("LA")), 1, None)
    assert grey[0, 0, 0] == 255
    assert grey[0, 1, 0] in (127, 128)


def test_a_transparent_colour_of_a_palette_and_of_rgb() -> None:
    palette = Image.new("P", (2, 2))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((0, 0), 1)
    for file in (saved(palette, transparency=0), saved(palette, "GIF", transparency=0)):
        x = decode(file, 3, None)
        assert x[:, 0, 0].tolist() == [40, 50, 60]
        assert x[:, 1, 1].tolist() == [255, 255, 255]
    rgb = Image.new("RGB", (2, 2), (1, 2, 3))
    assert (decode(saved(rgb, transparency=(1, 2, 3)), 3, None) == 255).all()
    assert decode(saved(rgb), 3, None)[:, 0, 0].tolist() == [1, 2, 3]


def test_cmyk_jpeg() -> None:
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(decode(saved(red, "JPEG", quality=100), 3, None)[:, 4, 4].astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int) -> None:
    """EXIF says how the stored picture is turned; independent of PIL's own transposition, by numpy."""
    upright = np.arange(2 * 3, dtype=np.uint8).reshape(2, 3) * 40
    turns = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.T,
        6: lambda a: np.rot90(a, 1),  # stored turned counter-clockwise: to be turned clockwise when shown
        7: lambda a: a[::-1, ::-1].T,
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turns[orientation](upright)))
    assert decode(saved(stored, exif=exif), 1, None)[0].tolist() == upright.tolist()


@pytest.mark.parametrize(
    ("size", "shape"), [((10, 20), (8, 16)), ((20, 10), (16, 8)), ((5, 7), (11, 8)), ((8, 9), (9, 8))]
)
def test_the_shorter_side_becomes_size(size: tuple[int, int], shape: tuple[int, int]) -> None:
    """`size` is (width, height), the array's shape (height, width)."""
    x = to_array(resized(Image.new("RGB", size), 8))
    assert min(x.shape[1:]) == 8
    assert abs(x.shape[1] / x.shape[2] - size[1] / size[0]) < 0.13


def test_resizing_averages_instead_of_picking() -> None:
    """A fine checkerboard becomes its mean; picking every eighth pixel would give 0 or 255."""
    board = ((np.add.outer(np.arange(64), np.arange(64)) % 2) * 255).astype(np.uint8)
    assert np.abs(resize_array(board[None], 8, 256).astype(int) - 127.5).max() < 3


def test_resizing_keeps_the_levels() -> None:
    digit = np.zeros((1, 8, 8), dtype=np.uint8)
    digit[:, 2:6, 3:5] = 16
    assert resize_array(digit, 32, 256).max() > 16  # bicubic overshoots
    assert resize_array(digit, 32, 17).max() == 16


def test_colours_are_pils() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (20, 3, 9, 9), dtype=np.uint8)
    expected = np.stack([to_array(Image.fromarray(row.transpose(1, 2, 0)).convert("L")) for row in rgb])
    assert np.array_equal(recolour(rgb, 1), expected)
    assert np.array_equal(recolour(expected, 3), expected.repeat(3, axis=1))
    assert recolour(rgb, None) is rgb


def test_square_reaches_both_edges() -> None:
    picture = np.arange(3 * 7).reshape(1, 3, 7)
    assert square(picture, 3, np.array([0.99, 0.0])).tolist() == picture[:, :, :3].tolist()
    assert square(picture, 3, np.array([0.0, 0.999])).tolist() == picture[:, :, 4:].tolist()
    assert square(picture, 3, None).tolist() == picture[:, :, 2:5].tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a picture"),
        (b"hello", "not a picture"),
        (saved(Image.new("RGB", (64, 64), "red")).getvalue()[:60], "broken"),
        (saved(Image.effect_noise((64, 64), 50), "JPEG").getvalue()[:900], "broken"),
        (saved(Image.new("RGB", (1, 9))).getvalue(), "one pixel: 1x9"),
    ],
)
def test_unusable_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message) as caught:
        decode(path, 3, None)
    assert "\n" not in str(caught.value)
