"""Codecs: every level comes back, numbers come back, and what is no data is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.fft
import torch

from sfumato import codecs
from sfumato.codecs import CODECS, DCTCodec, InPixels, PixelCodec, StandardCodec


@pytest.mark.parametrize("levels", [2, 3, 17, 255, 256])
def test_every_level_comes_back_and_is_where_the_formula_says(levels: int) -> None:
    codec = PixelCodec(levels)
    k = torch.arange(levels, dtype=torch.uint8).reshape(1, 1, 1, levels)
    x_0 = codec.encode(k)
    assert x_0.dtype == torch.float32
    expected = 2 * np.arange(levels, dtype=np.float64) / (levels - 1) - 1
    np.testing.assert_allclose(x_0.flatten().double(), expected, rtol=0, atol=2e-7)
    assert codec.bin_width == pytest.approx(2 / (levels - 1), rel=1e-15)
    assert torch.equal(codec.decode(x_0), k)
    inside = 0.49 * codec.bin_width  # anywhere in its bin a value is its level
    assert torch.equal(codec.decode(x_0 + inside), k)
    assert torch.equal(codec.decode(x_0 - inside), k)


def test_decode_holds_what_lies_outside() -> None:
    assert PixelCodec(17).decode(torch.tensor([[-1e9, -1.2, 1.2, 1e9]])).tolist() == [[0, 0, 16, 16]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_levels_outside_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"whole numbers 0\.\.16; got 0 to 17"):
        PixelCodec(17).encode(torch.tensor([[0, 17]], dtype=dtype))
    if dtype != torch.uint8:
        with pytest.raises(ValueError, match=r"0\.\.16; got -1 to 3"):
            PixelCodec(17).encode(torch.tensor([[-1, 3]], dtype=dtype))


@pytest.mark.parametrize("x", [torch.rand(2, 1, 2, 2), torch.full((1, 2), torch.nan), torch.empty(0, 2)])
def test_pixels_of_no_whole_numbers_are_refused(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"got torch\.float32; convert to uint8"):
        PixelCodec().encode(x)


def test_no_rows_are_no_mistake() -> None:
    assert PixelCodec().encode(torch.empty(0, 1, 2, 2, dtype=torch.uint8)).shape == (0, 1, 2, 2)


@pytest.mark.parametrize("levels", [-1, 0, 1, 257])
def test_number_of_levels(levels: int) -> None:
    with pytest.raises(ValueError, match=f"2 to 256 levels; got {levels}"):
        PixelCodec(levels)


@pytest.mark.parametrize("shape", [(400, 5), (60, 3, 11), (30, 2, 3, 4, 5)])
def test_standard_codec_standardises_each_column_and_comes_back(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    scale = np.arange(1, shape[1] + 1).reshape(-1, *[1] * (len(shape) - 2))
    x = (10 * scale + scale * rng.standard_normal(shape)).astype(np.float32)
    codec = StandardCodec.fit(torch.from_numpy(x))
    axes = (0, *range(2, len(shape)))
    np.testing.assert_allclose(codec.mean, x.astype(np.float64).mean(axes), rtol=1e-12)
    np.testing.assert_allclose(codec.std, x.astype(np.float64).std(axes), rtol=1e-12)
    x_0 = codec.encode(torch.from_numpy(x))
    np.testing.assert_allclose(x_0.numpy().mean(axes), 0, atol=1e-5)
    np.testing.assert_allclose(x_0.numpy().std(axes), 1, atol=1e-5)
    np.testing.assert_allclose(codec.decode(x_0).numpy(), x, rtol=1e-5)
    assert codec.bin_width is None
    assert codec.limits is None


def test_a_constant_column_has_std_one() -> None:
    x = torch.stack([torch.full((1000,), 0.1), torch.full((1000,), -1e6), torch.arange(1000.0), torch.zeros(1000)], 1)
    codec = StandardCodec.fit(x)
    assert codec.std == pytest.approx((1, 1, 288.675, 1), rel=1e-5)
    assert float(codec.encode(x)[:, [0, 1, 3]].abs().max()) <= 0.07
    torch.testing.assert_close(codec.decode(codec.encode(x)), x)


def test_standard_codec_refuses() -> None:
    with pytest.raises(ValueError, match="positive stds"):
        StandardCodec((0.0,), (0.0,))
    with pytest.raises(ValueError, match="in pairs"):
        StandardCodec((0.0, 1.0), (1.0,))
    with pytest.raises(ValueError, match=r"fitted to 2 channels; got \(4, 3\)"):
        StandardCodec((0.0, 1.0), (1.0, 1.0)).encode(torch.zeros(4, 3))


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dct_codec_is_the_cosines_of_pixels_and_every_level_comes_back(levels: int) -> None:
    codec = DCTCodec(levels)
    x = torch.randint(levels, (4, 3, 32, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x_0 = codec.encode(x)
    assert x_0.dtype == torch.float32
    pixels = 2 * x.double().numpy() / (levels - 1) - 1
    np.testing.assert_allclose(x_0, scipy.fft.dctn(pixels, norm="ortho", axes=(2, 3)), rtol=0, atol=2e-5)
    assert torch.equal(codec.decode(x_0), x)
    assert codec.bin_width is None
    assert codec.limits is None
    with pytest.raises(ValueError, match=f"whole numbers 0..{levels - 1}; got torch.float32"):
        codec.encode(x.float())
    with pytest.raises(ValueError, match="2 to 256 levels; got 1"):
        DCTCodec(1)


class Recorder(torch.nn.Module):
    """It keeps what it is shown and answers that, 1 above it and 1 below it, so with two channels for one."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: object) -> torch.Tensor:
        self.x, self.t, self.cond = x, t, cond
        return torch.cat([x + 1, x - 1], 1).bfloat16()


def test_a_network_is_put_in_the_units_it_works_in() -> None:
    net, t, cond = Recorder(), torch.tensor([0.5]), {"label": torch.tensor([3])}
    assert all(codec.around(net) is net for codec in (PixelCodec(17), StandardCodec((0.0,), (1.0,))))
    x = torch.randint(17, (1, 1, 4, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    wrapped = DCTCodec(17).around(net)
    assert isinstance(wrapped, InPixels)
    answer = wrapped(DCTCodec(17).encode(x), t, cond)
    torch.testing.assert_close(net.x, PixelCodec(17).encode(x), rtol=0, atol=1e-6)
    assert net.t is t
    assert net.cond is cond
    assert answer.dtype == torch.float32
    for c, offset in enumerate((1, -1)):
        truth = scipy.fft.dctn(PixelCodec(17).encode(x)[0, 0].numpy() + offset, norm="ortho")
        np.testing.assert_allclose(answer[0, c], truth, rtol=0, atol=0.05)  # the answer had 8 bits


@pytest.mark.parametrize("codec", [PixelCodec(17), StandardCodec((0.1, -1e30), (0.3, 1e-30)), DCTCodec(17)])
def test_spec_comes_back_through_json(codec: codecs.Codec) -> None:
    assert codecs.from_spec(json.loads(json.dumps(codec.spec))) == codec
    assert codec.spec["name"] in CODECS


def test_an_unknown_codec_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown codec 'pixel'; did you mean 'pixels'"):
        codecs.from_spec({"name": "pixel"})
