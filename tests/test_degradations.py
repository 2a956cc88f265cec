"""Degradations against scipy, PIL, torchvision and closed forms; strength 0 changes nothing, and rows stand alone."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as vision

from sfumato import degradations
from sfumato.degradations import DEGRADATIONS, blur, crop, dct, downsample, frequencies, grey, idct, jpeg, mask

SMOOTH = sorted(set(DEGRADATIONS) - {"jpeg"})


def pictures(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype) * 2 - 1


def photographs(size: int = 24) -> Tensor:
    """Pictures with smooth colour and an edge, at whole levels of 8 bits: (2, 3, size, size) in [-1, 1], float64."""
    y, x = np.mgrid[:size, :size] / size
    one = np.stack([np.sin(3 * x + y), np.cos(2 * y * x), np.where(x + y > 1, 0.7, -0.6)])
    levels = np.rint((np.stack([one, -one[::-1, ::-1]]) + 1) * 127.5)
    return torch.from_numpy(levels / 127.5 - 1)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (8, 8), (7, 12)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_dct_is_scipys_orthonormal_one(height: int, width: int, dtype: torch.dtype, tolerance: float) -> None:
    x = pictures(2, 3, height, width, dtype=dtype)
    u = dct(x)
    assert u.dtype == dtype
    np.testing.assert_allclose(u, scipy.fft.dctn(x.numpy(), norm="ortho", axes=(2, 3)), rtol=0, atol=tolerance)
    np.testing.assert_allclose(idct(u), x, rtol=0, atol=tolerance)
    np.testing.assert_allclose(u.square().sum(), x.square().sum(), rtol=tolerance)


def test_dct_keeps_its_digits_in_autocast_and_works_after_inference_mode() -> None:
    x = pictures(1, 1, 9, 5, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(idct(dct(x)), idct(dct(x)).float())
        torch.testing.assert_close(idct(dct(x)), x)
    with torch.inference_mode():
        dct(torch.zeros(1, 1, 11, 13))
    y = torch.zeros(1, 1, 11, 13, requires_grad=True)
    dct(y).sum().backward()
    assert y.grad is not None
    for wrong in (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(3)):
        with pytest.raises(ValueError, match=r"the DCT takes floating-point pictures"):
            dct(wrong)


def test_frequencies_are_those_of_cosines() -> None:
    """-lambda is the second derivative of cos(pi n y/H) cos(pi m x/W) at the corner, where it is 1."""
    n, m, h = 3, 5, 1e-3
    wave = lambda y, x: math.cos(math.pi * n * y / 8) * math.cos(math.pi * m * x / 11)  # noqa: E731
    laplacian = (2 * wave(h, 0) + 2 * wave(0, h) - 4) / h**2
    assert frequencies(8, 11).shape == (8, 11)
    assert float(frequencies(8, 11)[n, m]) == pytest.approx(-laplacian, rel=1e-5)


@pytest.mark.parametrize(("sigma", "tolerance"), [(1.5, 1e-4), (2.0, 1e-7), (5.0, 1e-12)])
def test_blur_is_a_gaussian_with_reflecting_edges(sigma: float, tolerance: float) -> None:
    """Up to what scipy's kernel aliases, about 2 exp(-(pi sigma)^2/2) at the highest frequency."""
    x = pictures(2, 3, 16, 11)
    truth = scipy.ndimage.gaussian_filter(x.numpy(), sigma, mode="reflect", truncate=12, axes=(2, 3))
    np.testing.assert_allclose(blur(x, sigma), truth, rtol=0, atol=tolerance)


def test_blur_spreads_as_heat_does() -> None:
    x = pictures(1, 2, 9, 6)
    torch.testing.assert_close(blur(blur(x, 0.9), 1.2), blur(x, 1.5), rtol=0, atol=1e-14)
    torch.testing.assert_close(blur(x, 100.0), x.mean((2, 3), keepdim=True).expand_as(x), rtol=0, atol=1e-14)


@pytest.mark.parametrize("share", [0.0, 0.04, 0.3, 0.77, 1.0])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 12)])
def test_mask_and_crop_part_the_area_and_hide_a_box_in_the_middle(share: float, height: int, width: int) -> None:
    one = torch.ones(1, 2, height, width, dtype=torch.float64)
    hidden = 1 - mask(one, share)
    assert float(hidden.mean()) == pytest.approx(share, abs=1e-12)
    torch.testing.assert_close(crop(one, 1 - share), hidden)
    torch.testing.assert_close(hidden, hidden.flip(2, 3))
    inner_y, inner_x = (np.arange(n) - n / 2 for n in (height, width))  # left edges from the middle
    half_y, half_x = math.sqrt(share) * height / 2, math.sqrt(share) * width / 2
    inside = ((inner_y >= -half_y) & (inner_y + 1 <= half_y))[:, None] & (
        (inner_x >= -half_x) & (inner_x + 1 <= half_x)
    )
    outside = ((inner_y + 1 <= -half_y) | (inner_y >= half_y))[:, None] | (
        (inner_x + 1 <= -half_x) | (inner_x >= half_x)
    )
    assert bool((hidden[0, 0][torch.from_numpy(inside)] > 1 - 1e-12).all())
    assert bool((hidden[0, 0][torch.from_numpy(outside)] < 1e-12).all())


def test_grey_is_the_luma_of_pil_and_torchvision() -> None:
    x = photographs()
    made = grey(x, 1.0)
    assert torch.equal(made[:, :1].expand_as(made), made)
    np.testing.assert_allclose(made, vision.rgb_to_grayscale(x, 3), rtol=0, atol=3e-4)  # which has 0.2989
    for row, ours in zip(x, made, strict=True):
        picture = Image.fromarray(((row + 1) * 127.5).round().byte().movedim(0, -1).numpy())
        np.testing.assert_allclose((ours[0] + 1) * 127.5, np.asarray(picture.convert("L")), rtol=0, atol=0.51)
    torch.testing.assert_close(grey(x, 0.25), 0.75 * x + 0.25 * made)


@pytest.mark.parametrize("octaves", [1, 2, 3])
def test_downsample_is_pils_box_and_nearest(octaves: int) -> None:
    x = pictures(2, 1, 16, 24, dtype=torch.float32)
    made = downsample(x, octaves)
    for row, ours in zip(x, made, strict=True):
        small = Image.fromarray(row[0].numpy()).reduce(2**octaves)
        big = small.resize((24, 16), Image.Resampling.NEAREST)
        np.testing.assert_allclose(ours[0], np.asarray(big), rtol=0, atol=1e-6)
    torch.testing.assert_close(downsample(x, octaves - 0.25), torch.lerp(downsample(x, octaves - 1), made, 0.75))


def test_downsample_of_any_size_and_beyond_it() -> None:
    x = pictures(1, 1, 3, 7)
    torch.testing.assert_close(downsample(x, 50.0), x.mean().expand_as(x))
    two = downsample(x, 1.0)
    assert float(two[0, 0, 2, 6]) == pytest.approx(float(x[0, 0, 2, 6]))  # a square of one pixel in the corner
    assert float(two[0, 0, 0, 6]) == pytest.approx(float(x[0, 0, :2, 6].mean()))
    torch.testing.assert_close(downsample(pictures(1, 1, 1, 1), 3.0), pictures(1, 1, 1, 1))


# The luminance table of ITU-T T.81 (JPEG), annex K.1
QUANTISERS = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)


@pytest.mark.parametrize("quality", [1, 30, 75, 100])
def test_jpeg_rounds_the_cosines_of_squares_of_eight(quality: int) -> None:
    """The standard's own transform and table, scaled by quality as its makers do; the codec's is in whole numbers."""
    x = photographs()[:, :1]
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    table = np.clip(np.floor((QUANTISERS * scale + 50) / 100), 1, 255)
    squares = (x.numpy().reshape(2, 3, 8, 3, 8).swapaxes(2, 3) + 1) * 127.5 - 128
    rounded = np.rint(scipy.fft.dctn(squares, norm="ortho", axes=(3, 4)) / table) * table
    truth = np.clip(scipy.fft.idctn(rounded, norm="ortho", axes=(3, 4)) + 128, 0, 255).swapaxes(2, 3).reshape(x.shape)
    made = jpeg(x, 100 - quality) if quality < 100 else jpeg(x, 0.3)  # strength 0 is no JPEG at all
    np.testing.assert_allclose((made + 1) * 127.5, truth, rtol=0, atol=1.5)


def test_jpeg_keeps_colours_in_their_places() -> None:
    x = photographs()
    assert float((jpeg(x, 0.1) - x).abs().mean()) < 0.04
    assert float((jpeg(x, 0.1) - x.flip(1)).abs().mean()) > 0.3


def test_jpeg_rounds_as_pixels_do_and_loses_more_with_strength() -> None:
    x = photographs()
    torch.testing.assert_close(jpeg(x * 1.5, 10.0), jpeg((x * 1.5).clamp(-1, 1), 10.0))
    errors = [float((jpeg(x, s) - x).square().mean()) for s in (0.0, 10.0, 50.0, 90.0, 99.0)]
    assert errors[0] == 0
    assert errors == sorted(errors)
    with pytest.raises(ValueError, match="1 or 3 channels; got 2"):
        jpeg(x[:, :2], 10)


@pytest.mark.parametrize("name", sorted(DEGRADATIONS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_row_of_the_table(name: str, dtype: torch.dtype) -> None:
    """D(x, 0) = x to the bit, the usual strength changes something, rows have their own, and x stays as it was."""
    row = DEGRADATIONS[name]
    x = photographs().to(dtype)
    before = x.clone()
    assert torch.equal(row.run(x, 0.0), x)
    assert float((row.run(x, row.usual) - x).abs().max()) > 0.05
    strengths = torch.tensor([0.0, row.usual])
    both = row.run(x, strengths)
    assert both.dtype == dtype
    assert torch.equal(both[0], x[0])
    torch.testing.assert_close(both[1:], row.run(x[1:], row.usual), rtol=0, atol=1e-6)
    assert torch.equal(x, before)
    assert row.run(x[:0], row.usual).shape == (0, 3, 24, 24)


@pytest.mark.parametrize("name", SMOOTH)
def test_all_but_jpeg_are_linear_and_differentiable(name: str) -> None:
    run = partial(DEGRADATIONS[name].run, strength=0.6)
    x, y = pictures(2, 3, 5, 4), pictures(3, 3, 5, 4)[1:]
    torch.testing.assert_close(run(2 * x - 3 * y), 2 * run(x) - 3 * run(y))
    assert torch.autograd.gradcheck(run, x.requires_grad_())


@pytest.mark.parametrize("name", sorted(DEGRADATIONS))
def test_mistakes_are_answered(name: str) -> None:
    run, x = DEGRADATIONS[name].run, pictures(2, 3, 4, 4)
    for wrong in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"the strength of {name} must be .*0.*; got"):
            run(x, wrong)
    if name in ("mask", "crop", "grey"):
        with pytest.raises(ValueError, match=f"the strength of {name} must be from 0 to 1; got 1.5"):
            run(x, 1.5)
    with pytest.raises(ValueError, match=f"the strength of {name} is a number, or one for each of 2 rows"):
        run(x, torch.tensor([0.1, 0.2, 0.3]))
    with pytest.raises(ValueError, match=f"{name} takes floating-point pictures"):
        run(x[0], 0.5)
    with pytest.raises(ValueError, match=f"{name} takes floating-point pictures"):
        run(x.byte(), 0.5)
    with pytest.raises(ValueError, match=r"grey takes pictures of 3 channels.*; got 1"):
        degradations.grey(x[:, :1], 0.5)
