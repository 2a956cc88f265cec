"""The pieces against their formulas, written out with loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sfumato.nn.blocks import Attention, Resample, Residual, fold, halved, largest_divisor, resize, unfold
from sfumato.nn.unet import UNet, UNetConfig

from .perturbed import perturbed


def normalised(h: Tensor, groups: int, norm: torch.nn.GroupNorm) -> Tensor:
    """GroupNorm: mean 0 and variance 1 over each group's channels and positions, then the affine map."""
    out = torch.empty_like(h)
    for row, group in itertools.product(range(len(h)), torch.arange(h.shape[1]).chunk(groups)):
        part = h[row, group]
        out[row, group] = (part - part.mean()) / torch.sqrt(part.var(unbiased=False) + norm.eps)
    return out * norm.weight[:, None, None] + norm.bias[:, None, None]


@given(n=st.integers(1, 400), at_most=st.integers(0, 500))
def test_largest_divisor(n, at_most):
    divisors = [d for d in range(1, n + 1) if n % d == 0 and d <= max(at_most, 1)]
    assert largest_divisor(n, at_most) == max(divisors)


@pytest.mark.parametrize("adaptive", [True, False])
def test_residual_block_is_its_formula(adaptive):
    torch.manual_seed(0)
    block = perturbed(Residual(6, 8, dims=2, adaptive=adaptive, groups=2, eps=1e-3, dropout=0.0)).double()
    h, film = torch.randn(3, 6, 5, 4).double(), torch.randn(3, block.film).double()
    told = film[:, :, None, None]
    r = block.conv1(F.silu(normalised(h, 2, block.norm1)))
    if adaptive:
        scale, shift = told[:, :8], told[:, 8:]
        r = (1 + scale) * normalised(r, 2, block.norm2) + shift
    else:
        r = normalised(r + told, 2, block.norm2)
    kernel = block.skip.weight[:, :, 0, 0]
    skip = torch.einsum("oc,bchw->bohw", kernel, h) + block.skip.bias[:, None, None]
    torch.testing.assert_close(block(h, film), skip + block.conv2(r * torch.sigmoid(r)), atol=1e-12, rtol=1e-10)


def test_a_new_block_is_the_identity():
    h = torch.randn(2, 8, 5, 4)
    residual = Residual(8, 8, dims=2, adaptive=True, groups=2, eps=1e-6, dropout=0.5)
    assert torch.equal(residual(h, torch.randn(2, 16)), h)
    attention = Attention(8, head_channels=4, context=3, groups=2, eps=1e-6)
    assert torch.equal(attention(h, torch.randn(2, 5, 3)), h)


def test_resizing_residual_block_resizes_both_branches():
    torch.manual_seed(1)
    block = perturbed(Residual(8, 8, dims=2, adaptive=True, groups=2, eps=1e-6, dropout=0.0))
    h, film = torch.randn(2, 8, 6, 4), torch.randn(2, 16)
    pooled = F.avg_pool2d(F.silu(block.norm1(h)), 2)
    scale, shift = film[:, :, None, None].chunk(2, dim=1)
    expected = F.avg_pool2d(h, 2) + block.conv2(F.silu(block.norm2(block.conv1(pooled)) * (1 + scale) + shift))
    torch.testing.assert_close(block(h, film, torch.Size((3, 2))), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("head_channels", "heads"), [(0, 1), (4, 3), (5, 2), (100, 1)])
@pytest.mark.parametrize("tokens", [0, 3])
def test_attention_is_a_softmax_over_positions_and_tokens(head_channels, heads, tokens):
    torch.manual_seed(2)
    block = perturbed(Attention(12, head_channels=head_channels, context=5, groups=3, eps=1e-6)).double()
    assert block.heads == heads
    h, context = torch.randn(2, 12, 3, 4).double(), torch.randn(2, 4, 5).double()
    context[:, tokens:] = 0  # padding: what is no token is not seen
    expected = h.clone()
    for row in range(2):
        positions = [(y, x) for y in range(3) for x in range(4)]
        inside = normalised(h, 3, block.norm)[row]
        projected = torch.stack([block.qkv.weight @ inside[:, y, x] + block.qkv.bias for y, x in positions])
        q, k, v = projected[:, :12], projected[:, 12:24], projected[:, 24:]
        told = block.context(context[row, :tokens])
        k, v = torch.cat([k, told[:, :12]]), torch.cat([v, told[:, 12:]])
        for i, (y, x) in enumerate(positions):
            seen = []
            for head in torch.arange(12).chunk(heads):
                score = torch.stack([(q[i, head] * k[j, head]).sum() for j in range(len(k))])
                weight = torch.exp(score / math.sqrt(len(head)))
                seen.append((weight[:, None] * v[:, head]).sum(0) / weight.sum())
            expected[row, :, y, x] += block.out.weight @ torch.cat(seen) + block.out.bias
    torch.testing.assert_close(block(h, context), expected, atol=1e-11, rtol=1e-9)
    if not tokens:
        torch.testing.assert_close(block(h), expected, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("spatial", [(5,), (4, 6), (17, 16), (3, 2, 4)])  # 272 positions are more than WHOLE
@pytest.mark.parametrize("learns", [True, False])
def test_joined_maps_of_one_head_are_the_four(spatial, learns):
    torch.manual_seed(4)
    block = perturbed(Attention(12, head_channels=0, context=0, groups=3, eps=1e-6)).double().requires_grad_(False)
    h = torch.randn(2, 12, *spatial).double().requires_grad_(learns)
    expected, weights = block(h), torch.randn(2, 12, *spatial).double()
    block.fast = True
    found = block(h)
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-9)
    if learns:
        (truth,), (grad,) = (torch.autograd.grad(y, h, weights) for y in (expected, found))
        torch.testing.assert_close(grad, truth, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("learns", [True, False])
def test_two_parts_are_what_they_are_side_by_side(learns):
    torch.manual_seed(5)
    block = perturbed(Residual(12, 6, dims=2, adaptive=False, groups=3, eps=1e-6, dropout=0.0)).requires_grad_(learns)
    h, film = torch.randn(2, 12, 6, 4), torch.randn(2, 6)
    expected = block(h, film)
    block.fast = True
    torch.testing.assert_close(block(h, film), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(block(h[:, :8], film, None, h[:, 8:]), expected, atol=1e-5, rtol=1e-5)


@given(spatial=st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_resize_is_the_mean_of_neighbours_and_their_repetition(spatial):
    h = torch.randn(2, 3, *spatial)
    small = halved(h.shape[2:])
    down = resize(h, small)
    assert down.shape[2:] == small == tuple(math.ceil(n / 2) for n in spatial)
    for place in itertools.product(*map(range, small)):
        neighbours = [range(2 * i, min(2 * i + 2, n)) for i, n in zip(place, spatial, strict=True)]
        mean = torch.stack([h[(..., *each)] for each in itertools.product(*neighbours)]).mean(0)
        torch.testing.assert_close(down[(..., *place)], mean)
    up = resize(down, h.shape[2:])
    for place in itertools.product(*map(range, spatial)):
        assert torch.equal(up[(..., *place)], down[(..., *[i // 2 for i in place])])


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_strided_convolution_pads_as_ddpm_did(n):
    """TensorFlow's "same": ceil(n/2) windows whose padding is shared out evenly, the odd one at the end."""
    block = perturbed(Resample(2, dims=1, down=True))
    h = torch.randn(3, 2, n)
    out = -(-n // 2)
    total = (out - 1) * 2 + 3 - n
    padded = torch.zeros(3, 2, n + total)
    padded[..., total // 2 : total // 2 + n] = h
    windows = torch.stack([padded[..., 2 * i : 2 * i + 3] for i in range(out)], dim=-1)
    expected = torch.einsum("ock,bcki->boi", block.conv.weight, windows) + block.conv.bias[:, None]
    torch.testing.assert_close(block(h, torch.empty(3, 0, 1), halved(h.shape[2:])), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spatial", [(6,), (4, 6), (2, 4, 2)])
def test_patches_become_channels_and_pixels_again(spatial):
    x = torch.randn(2, 3, *spatial)
    h = fold(x, 2)
    assert h.shape == (2, 3 * 2 ** len(spatial), *[n // 2 for n in spatial])
    assert torch.equal(unfold(h, 2), x)
    if len(spatial) == 2:  # torch's own keeps a channel's places together, ours a place's channels
        order = F.pixel_unshuffle(x, 2).unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2)
        assert torch.equal(h, order)


def test_a_unet_of_patches_sees_every_pixel_and_refuses_what_it_cannot_cut():
    net = perturbed(UNet(UNetConfig(channels=8, patch=2, multipliers=(1, 2), blocks=1), (1, 6, 6))).double()
    x = torch.randn(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    y = net(x, torch.ones(1, dtype=torch.float64))
    assert y.shape == x.shape
    assert all(torch.autograd.grad(y[0, 0, 3, 4], x)[0].flatten() != 0)
    with pytest.raises(ValueError, match="patch = 2 does not divide"):
        UNet(UNetConfig(channels=8, patch=2), (1, 5, 6))
