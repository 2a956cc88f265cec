"""Convolutions in bfloat16 by oneDNN's own operations, and attention, against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sfumato.nn import half
from sfumato.nn.blocks import seen
from sfumato.nn.compiled import Kept


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def off(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm())


@given(
    rows=st.integers(1, 9),
    channels=st.sampled_from([3, 16, 48]),
    out=st.sampled_from([5, 16, 64]),
    size=st.integers(3, 17),
    stride=st.sampled_from([1, 2]),
    side=st.sampled_from([1, 3]),
    added=st.booleans(),
)
@pytest.mark.parametrize("has", [True, False])
def test_a_convolution(
    has: bool, rows: int, channels: int, out: int, size: int, stride: int, side: int, added: bool
) -> None:
    weight, bias, h = (
        drawn(0, out, channels, side, side),
        drawn(1, out),
        drawn(2, rows, channels, size, size).bfloat16(),
    )
    padding = side // 2 * (2 - stride)
    truth = F.conv2d(h.double(), weight.bfloat16().double(), bias.double(), stride, padding)
    plus = drawn(3, *truth.shape).bfloat16() if added else None
    truth = truth if plus is None else truth + plus.double()
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(half, "HAS", has and half.HAS)
        kept = Kept()
        assert half.asked_in(h)
        first = half.convolution(h, kept, weight, bias, stride, None if plus is None else plus.clone())
        again = half.convolution(h, kept, weight, bias, stride, plus)
        anew = half.convolution(h, kept, weight.requires_grad_(), bias, stride, plus)  # which is not kept
    assert first.dtype == torch.bfloat16
    assert off(first, truth) < 5e-3
    assert torch.equal(first, again)
    assert torch.equal(first, anew)


def test_only_bfloat16_that_nobody_differentiates_is_asked_in() -> None:
    h = torch.zeros(1, dtype=torch.bfloat16)
    assert not half.asked_in(h)
    with torch.no_grad():
        assert half.asked_in(h)
        assert not half.asked_in(h.float())


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("positions", [7, 1100])
def test_attention(masked: bool, positions: int) -> None:
    q, k, v = (drawn(seed, 2, 3, positions, 16).bfloat16() for seed in range(3))
    mask = drawn(4, 2, 1, 1, positions) > 0 if masked else None
    if mask is not None:
        mask[..., 0] = True
    truth = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask)
    found = seen(q, k, v, mask)
    assert found.dtype == torch.bfloat16
    assert off(found, truth) < 1e-2
