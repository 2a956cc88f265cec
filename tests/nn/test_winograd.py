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
from sfumato.nn.winograd import MATRICES, PLACES, Conv3x3, Filtered, Maps, compiled

sizes = st.integers(1, 15)
channels = st.sampled_from([16, 32, 48])


def needed() -> Maps:
    maps = compiled()
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


@given(rows=st.integers(1, 3), height=sizes, width=sizes, c=channels, k=channels)
def test_the_compiled_maps_are_the_matrices(rows: int, height: int, width: int, c: int, k: int) -> None:
    maps = needed()
    picture = (rows, height, width)
    n, twice = (rows * winograd.tiles(f * height) * winograd.tiles(f * width) for f in (1, 2))
    x, y, m, weight, bias = drawn(
        1, (*picture, c), (*picture, k), (PLACES, winograd.room(n), k), (k, c, 3, 3), (k,), dtype=torch.float32
    )
    u = drawn(2, (PLACES, c, k), dtype=torch.float32)[0]
    pairs = [
        (maps.cut(x, 0)[:, :n].clone(), MATRICES.cut(x, 0)[:, :n]),
        (maps.cut(x, 1)[:, :twice].clone(), MATRICES.cut(x, 1)[:, :twice]),
        (maps.spread(y)[:, :n], MATRICES.spread(y)[:, :n]),
        (maps.unweigh(u), MATRICES.unweigh(u)),
    ]
    pairs += [(maps.weigh(weight, back).clone(), MATRICES.weigh(weight, back)) for back in (False, True)]
    joined = [torch.full_like(y, math.nan), torch.full_like(y, math.nan)]
    maps.join(m, bias, None, joined[0])
    MATRICES.join(m, bias, None, joined[1])
    for found, truth in [*pairs, (joined[0], joined[1])]:
        assert found.shape == truth.shape
        assert off(found, truth) < 1e-6


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
def test_other_precisions_are_left_to_pytorch(dtype: torch.dtype) -> None:
    layer = Conv3x3(96, 96).to(dtype)
    (x,) = drawn(11, (1, 96, 8, 8))
    before = layer(x.to(dtype))
    use(layer, True)
    assert torch.equal(layer(x.to(dtype)), before)
