"""Products and convolutions in bfloat16 on a processor that multiplies it faster, for networks that are only asked.

Within autocast each call would round every weight anew, and lay it out anew for the processor, which at small batches
takes as long as the products.  Here the rounded weights are kept as they are laid out, and another picture is added
to a convolution's answer before that is rounded.

What is called are the operations of oneDNN that torch.compile calls, where this PyTorch has them; else its usual ones.
Sums are float32 inside; what is written is rounded to bfloat16 once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.nn.compiled import Kept, differentiating

OPERATIONS: Any = torch.ops.mkldnn
HAS = all(hasattr(OPERATIONS, name) for name in ("_convolution_pointwise", "_reorder_convolution_weight"))


def asked_in(h: Tensor) -> bool:
    """Whether h is a picture or tokens in bfloat16 on a processor, and no derivative is wanted."""
    return h.dtype == torch.bfloat16 and h.device.type == "cpu" and not differentiating()


def rounded(weight: Tensor) -> Tensor:
    return weight.to(torch.bfloat16)


def kept_or_made(kept: Kept, way: Callable[[Tensor], Tensor], weight: Tensor) -> Tensor:
    """way(weight), kept if the weight stays as it is."""
    return kept(way, weight) if kept.may(weight) else way(weight)


def _laid_out(weight: Tensor) -> Tensor:
    return rounded(weight).contiguous(memory_format=torch.channels_last)


@functools.cache
def _packing(stride: int, height: int, width: int) -> Callable[[Tensor], Tensor]:
    """What lays weights out for pictures of this size: which order is best depends on it, on the batch hardly."""

    def packed(weight: Tensor) -> Tensor:
        padding, size = [weight.shape[2] // 2 * (2 - stride)] * 2, [8, weight.shape[1], height, width]
        order: Tensor = OPERATIONS._reorder_convolution_weight(
            _laid_out(weight), padding, [stride] * 2, [1, 1], 1, size
        )
        return order

    return packed


def convolution(
    h: Tensor, kept: Kept, weight: Tensor, bias: Tensor | None, stride: int = 1, plus: Tensor | None = None
) -> Tensor:
    """The convolution of h (B, C, H, W) by weight (K, C, s, s), s odd, that keeps its size; with stride 2 unpadded.

    plus: (B, K, H, W) that is added.  All is bfloat16 but weight and bias, which are rounded here.
    """
    padding = weight.shape[2] // 2 * (2 - stride)
    bias = None if bias is None else rounded(bias)
    if not HAS:
        y = F.conv2d(h, kept_or_made(kept, _laid_out, weight), bias, stride, padding)
        return y if plus is None else y.add_(plus)
    packed = kept_or_made(kept, _packing(stride, h.shape[2], h.shape[3]), weight)
    h = h.contiguous(memory_format=torch.channels_last)
    told = (packed, bias, [padding] * 2, [stride] * 2, [1, 1], 1)
    if plus is None:
        y = OPERATIONS._convolution_pointwise(h, *told, "none", [], "")
    else:
        plus = plus.contiguous(memory_format=torch.channels_last)
        y = OPERATIONS._convolution_pointwise(h, plus, *told, "add", 1.0, None, [], None)
    return y
