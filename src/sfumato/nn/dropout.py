"""Dropout whose masks belong to rows: the same whether a batch is whole, in parts, or dealt to processes.

    y_i = m_i x_i / (1 - p),   m_i = 1 with probability 1 - p, else 0                                    (1)

The mask of the i-th value of a row is a hash of i and of the row's two keys (k, k') for this layer, 32 bits each:

    u = i xor k,   v = a (u xor u >> 16) + k',   w = b (v xor v >> 15),   m_i = [w < (1 - p) 2^32]   modulo 2^32   (2)

(2) has no state, so a forward pass that is made again has the masks it had; it is the same on every device; and it is
plain tensor arithmetic for all rows at once, which a compiler can fuse and which is no slower than torch's own dropout.
(2) is lowbias32 without its last shift, which only stirs low bits; the keys are drawn by whoever trains.

J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011) for numbers by counter; C. Wellons,
"Prospecting for hash functions" (nullprogram.com, 2018) for a, b and the shifts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

A, B = 0x7FEB352D, 0x846CA68B - 2**32  # as int32, whose arithmetic is modulo 2^32


def threshold(keep: float) -> int:
    """The bound of w in (2) as int32, for a share `keep` < 1."""
    return round(keep * 2**32) - 2**31


def kept(keys: Tensor, x: Tensor, keep: float) -> Tensor:
    """Which values of x (B, ...) are kept, bool (B, ...), by (2); keys (B, 2) int32, a share `keep` < 1 of them."""
    place = torch.arange(x[:1].numel(), dtype=torch.int32, device=x.device).view(1, *x.shape[1:])
    place = torch.empty_like(x[:1], dtype=torch.int32).copy_(place)  # laid out in memory as x is
    first, second = (key.view(-1, *[1] * (x.ndim - 1)) for key in keys.unbind(1))
    u = place ^ first
    v = (u ^ ((u >> 16) & 0xFFFF)).mul_(A).add_(second)  # & takes the copies of the sign away
    w = v.bitwise_xor_((v >> 15) & 0x1FFFF).mul_(B)
    return w < threshold(keep)


@final
class Dropout(nn.Module):
    """(1) in training, with the masks of `rows_of`, or torch's own outside of it; the identity in eval mode."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p
        self.keys: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        if self.keys is None:
            return F.dropout(x, self.p)
        return torch.where(kept(self.keys, x, 1 - self.p), x / (1 - self.p), 0.0)


def layers(net: nn.Module) -> list[Dropout]:
    """The layers of a network that drop anything, in its own order."""
    return [module for module in net.modules() if isinstance(module, Dropout) and module.p]


def draw_keys(net: nn.Module, generator: np.random.Generator, batch: int) -> Tensor:
    """Keys (batch, layers, 2) int32 for `rows_of`; those of row j are the same in a larger batch."""
    shape = (batch, len(layers(net)), 2)
    return torch.from_numpy(generator.integers(-(2**31), 2**31, shape, dtype=np.int32))


@contextlib.contextmanager
def rows_of(net: nn.Module, keys: Tensor) -> Iterator[None]:
    """Within, row j of a batch is dropped by keys[j]; keys (B, layers, 2), on the network's device."""
    dropping = layers(net)
    assert keys.shape[1:] == (len(dropping), 2), keys.shape
    for layer, key in zip(dropping, keys.unbind(1), strict=True):
        layer.keys = key
    try:
        yield
    finally:
        for layer in dropping:
            layer.keys = None
