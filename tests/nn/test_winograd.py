"""Minimal filtering against plain convolutions in float64, both sets of maps, all gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sfumato.nn import winograd
from sfumato.nn.compiled import use
from sfumato.nn.filters import COMPILED, F2, F4, Filter, Maps, compiled, matrices, room
from sfumato.nn.winograd import Conv3x3, Filtered, filtered

sizes = st.integers(1, 15)
channels = st.sampled_from([16, 32, 48])


def needed(dtype: torch.dtype = torch.float32) -> Maps:
    maps = compiled(dtype)
    if maps is None:
        pytest.skip("no C compiler here, so there are no compiled maps")
    return maps


def off(found: Tensor, truth: Tensor) -> float:
    """Root of the mean square of the difference, over that of the truth."""
    found, truth = found.detach().double(), truth.detach().double()
    return float((found - truth).square().mean().sqrt() / truth.square().mean().sqrt().clamp(min=1e-12))


def drawn(seed: int, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def by_tiles(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return Filtered.apply(x.permute(0, 2, 3, 1), weight, bias, None).permute(0, 3, 1, 2)


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1)


@given(rows=st.integers(1, 3), height=sizes, width=sizes, c=st.integers(1, 5), k=st.integers(1, 5))
def test_it_is_the_convolution(rows: int, height: int, width: int, c: int, k: int) -> None:
    x, weight, bias = drawn(0, (rows, c, height, width), (k, c, 3, 3), (k,))
    torch.testing.assert_close(by_tiles(x, weight, bias), plain(x, weight, bias), rtol=0, atol=1e-12)


@pytest.mark.parametrize("f", [F2, F4], ids=["2x2", "4x4"])
@given(rows=st.integers(1, 3), height=sizes, width=sizes, c=st.integers(1, 5), k=st.integers(1, 5))
def test_so_it_is_by_tiles_of_either_size(f: Filter, rows: int, height: int, width: int, c: int, k: int) -> None:
    x, weight, bias, plus = drawn(0, (rows, height, width, c), (k, c, 3, 3), (k,), (rows, height, width, k))
    maps = matrices(f)
    found = filtered(maps, x, maps.weigh(weight, False), bias, plus)
    truth = plain(x.permute(0, 3, 1, 2), weight, bias).permute(0, 2, 3, 1) + plus
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", COMPILED)
@given(rows=st.integers(1, 3), height=sizes, width=sizes, c=channels, k=channels)
def test_the_compiled_maps_are_the_matrices(
    dtype: torch.dtype, rows: int, height: int, width: int, c: int, k: int
) -> None:
    maps, truths, f = needed(dtype), matrices(COMPILED[dtype]), COMPILED[dtype]
    picture = (rows, height, width)
    n, twice = (rows * f.tiles(i * height) * f.tiles(i * width) for i in (1, 2))
    shapes = ((*picture, c), (*picture, k), (f.places, room(n), k), (f.places, c, k), (*picture, k))
    x, y, m, u, plus = (each.to(dtype) for each in drawn(1, *shapes))
    weight, bias = drawn(2, (k, c, 3, 3), (k,), dtype=torch.float32)
    pairs = [
        (maps.cut(x, 0)[:, :n].clone(), truths.cut(x.double(), 0)[:, :n]),
        (maps.cut(x, 1)[:, :twice].clone(), truths.cut(x.double(), 1)[:, :twice]),
        (maps.spread(y)[:, :n], truths.spread(y.double())[:, :n]),
        (maps.unweigh(u), truths.unweigh(u.double())),
    ]
    pairs += [(maps.weigh(weight, back).clone(), truths.weigh(weight.double(), back)) for back in (False, True)]
    for other in (None, plus):
        joined = [torch.full_like(y, math.nan), torch.full_like(y, math.nan).double()]
        maps.join(m, bias, other, joined[0])
        truths.join(m.double(), bias.double(), None if other is None else other.double(), joined[1])
        pairs.append((joined[0], joined[1]))
    for found, truth in pairs:
        assert found.shape == truth.shape
        assert off(found, truth) < (1e-6 if found.dtype == torch.float32 else 2.5e-3)  # 2^-8 / sqrt(12) is 1.1e-3


def test_what_is_written_in_bfloat16_is_rounded_as_pytorch_does() -> None:
    """A tile of zeros and a bias: every float32 there is, in steps, with those that are no numbers."""
    maps = needed(torch.bfloat16)
    bits = torch.arange(-(2**31), 2**31, 65_521, dtype=torch.int64).to(torch.int32)
    edges = torch.tensor([0x7F800000, 0x7F7FFFFF, 0x7FC00000, 0x00008000, 0x00018000, 1, 0], dtype=torch.int32)
    bias = torch.cat([edges, bits])
    bias = bias[: len(bias) // 16 * 16].view(torch.float32)
    y = torch.empty(1, 2, 2, len(bias), dtype=torch.bfloat16)
    maps.join(torch.zeros(F2.places, 1, len(bias), dtype=torch.bfloat16), bias, None, y)
    for place in y.flatten(0, 2):
        assert torch.equal(place.nan_to_num(nan=1.5), bias.bfloat16().nan_to_num(nan=1.5))
        assert torch.equal(place.isnan(), bias.isnan())


@pytest.mark.parametrize(
    ("rows", "c", "k", "height", "width"), [(2, 96, 112, 11, 10), (5, 128, 96, 8, 8), (3, 96, 96, 2, 4)]
)
def test_in_bfloat16(rows: int, c: int, k: int, height: int, width: int) -> None:
    """Forth and back, with another picture added, and with repeated places."""
    needed(torch.bfloat16)
    torch.manual_seed(0)
    layer = Conv3x3(c, k)
    layer.fast = True
    x, other, weights = (a.bfloat16() for a in drawn(15, *((rows, n, height, width) for n in (c, k, k))))
    asked = [x.clone().requires_grad_(), layer.weight, layer.bias, other.clone().requires_grad_()]
    exact = [a.detach().double().requires_grad_() for a in asked]
    truth = plain(*exact[:3]) + exact[3]
    with torch.autocast("cpu", torch.bfloat16):  # which few tiles are left to
        found = layer(asked[0], asked[3])
    assert found.dtype == torch.bfloat16
    assert off(found, truth) < 6e-3
    right_all = torch.autograd.grad(truth, exact, weights.double())
    for mine, right in zip(torch.autograd.grad(found, asked, weights), right_all, strict=True):
        assert off(mine, right) < 8e-3
    truth = plain(exact[0].repeat_interleave(2, 2).repeat_interleave(2, 3), *exact[1:3])
    with torch.no_grad():
        assert off(layer.doubled(x), truth) < 6e-3
        assert off(layer(x, other), found) < 3e-3


def test_weights_may_lie_in_any_order() -> None:
    """As after net.to(memory_format=torch.channels_last): kept weights, those of a training, and repeated places."""
    needed()
    torch.manual_seed(0)
    conv = Conv3x3(32, 48)
    use(conv, True)
    x = torch.randn(2, 32, 9, 6)
    before = conv(x).detach()
    conv.to(memory_format=torch.channels_last)
    assert not conv.weight.is_contiguous()
    assert off(conv(x), before) < 1e-6
    conv.requires_grad_(False)
    with torch.no_grad():
        assert off(conv(x), before) < 1e-6
        assert (
            off(
                conv.doubled(x),
                F.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), conv.weight, conv.bias, padding=1),
            )
            < 5e-6
        )


@pytest.mark.parametrize(("dtype", "c", "k", "most"), [(torch.float64, 3, 2, 1e-13), (torch.float32, 32, 48, 5e-6)])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (14, 14), (7, 5), (1, 3)])
@pytest.mark.parametrize("chunk", [1, 2**21])
def test_gradients_both_ways(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    c: int,
    k: int,
    most: float,
    height: int,
    width: int,
    chunk: int,
) -> None:
    monkeypatch.setattr(winograd, "CHUNK", chunk)
    shapes = ((3, c, height, width), (k, c, 3, 3), (k,))
    asked = [x.requires_grad_() for x in drawn(3, *shapes, dtype=dtype)]
    exact = [x.detach().double().requires_grad_() for x in asked]
    y, truth = by_tiles(*asked), plain(*exact)
    (weights,) = drawn(4, tuple(y.shape), dtype=dtype)
    for found, right in zip(
        torch.autograd.grad(y, asked, weights), torch.autograd.grad(truth, exact, weights.double()), strict=True
    ):
        assert off(found, right) < most
    tangents = drawn(5, *shapes, dtype=dtype)
    _, moved = torch.func.jvp(by_tiles, tuple(asked), tuple(tangents))
    _, right = torch.func.jvp(plain, tuple(exact), tuple(t.double() for t in tangents))
    assert off(moved, right) < most


def test_finite_differences() -> None:
    x, weight, bias, plus = (each.requires_grad_() for each in drawn(6, (1, 5, 6, 2), (2, 2, 3, 3), (2,), (1, 5, 6, 2)))
    assert torch.autograd.gradcheck(Filtered.apply, (x, weight, bias, plus), check_forward_ad=True)


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("fast", [True, False])
def test_another_picture_is_added(learns: bool, fast: bool) -> None:
    torch.manual_seed(0)
    layer = Conv3x3(32, 48).requires_grad_(learns)
    layer.fast = fast
    x, other = drawn(12, (3, 32, 11, 9), (3, 48, 11, 9), dtype=torch.float32)
    assert off(layer(x, other), plain(x, layer.weight, layer.bias) + other) < 5e-6
    other.requires_grad_()
    (found,) = torch.autograd.grad(layer(x, other).square().sum(), other)
    assert off(found, 2 * (plain(x, layer.weight, layer.bias) + other)) < 5e-6
    (bias,) = drawn(13, (48,), dtype=torch.float32)
    truth = plain(x, layer.weight, layer.bias) + other + bias[:, None, None]
    assert off(layer(x, other, bias), truth) < 5e-6


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 5), (4, 12)])
def test_repeated_places(learns: bool, fast: bool, height: int, width: int) -> None:
    torch.manual_seed(0)
    layer = Conv3x3(32, 48).requires_grad_(learns)
    layer.fast = fast
    (x,) = drawn(14, (5, 32, height, width), dtype=torch.float32)
    truth = plain(x.repeat_interleave(2, 2).repeat_interleave(2, 3), layer.weight, layer.bias)
    assert off(layer.doubled(x), truth) < 5e-6
    with torch.no_grad():
        assert off(layer.doubled(x), truth) < 5e-6


def test_rounding_is_a_few_millionths() -> None:
    x, weight, bias = drawn(7, (4, 128, 16, 16), (128, 128, 3, 3), (128,))
    single = by_tiles(x.float(), weight.float(), bias.float())
    assert off(single, plain(x, weight, bias)) < 5e-6


def test_zeros_in_a_neighbour_do_not_leak() -> None:
    """A place that is not a number spoils what sees it, its tile's outputs, and nothing of other rows."""
    x, weight, bias = drawn(8, (2, 3, 8, 8), (2, 3, 3, 3), (2,))
    x[0, 0, 0, 0] = math.nan
    assert by_tiles(x, weight, bias)[1].isfinite().all()


def test_a_layer_is_the_layer_it_replaces() -> None:
    torch.manual_seed(0)
    layer = Conv3x3(96, 112)
    torch.manual_seed(0)
    usual = nn.Conv2d(96, 112, 3, padding=1)
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), usual.parameters(), strict=True))
    (x,) = drawn(9, (3, 96, 9, 9), dtype=torch.float32)
    assert torch.equal(layer(x), usual(x))
    use(layer, True)
    assert off(layer(x), usual(x)) < 5e-6
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


def test_weights_that_change_are_transformed_again() -> None:
    torch.manual_seed(0)
    layer = Conv3x3(96, 96).requires_grad_(False)
    layer.fast = True
    (x,) = drawn(10, (6, 96, 8, 8), dtype=torch.float32)
    layer(x)
    layer.weight.mul_(2)
    assert off(layer(x), plain(x, layer.weight, layer.bias)) < 5e-6
    layer.load_state_dict({"weight": -layer.weight, "bias": layer.bias})
    assert off(layer(x), plain(x, layer.weight, layer.bias)) < 5e-6
    layer.weight = nn.Parameter(layer.weight + 1, requires_grad=False)
    assert off(layer(x), plain(x, layer.weight, layer.bias)) < 5e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_in_other_precisions_are_left_to_pytorch(dtype: torch.dtype) -> None:
    layer = Conv3x3(96, 96).to(dtype)
    (x,) = drawn(11, (1, 96, 8, 8))
    before = layer(x.to(dtype))
    use(layer, True)
    assert torch.equal(layer(x.to(dtype)), before)
