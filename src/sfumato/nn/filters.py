"""The linear maps of minimal filtering, F(4x4, 3x3) and F(2x2, 3x3): what `winograd` puts around its products.

    V = cut(x) = (B^T x B^T) D      (places, n, C),   n tiles of `out` x `out`, places = (out + 2)^2
    U = weigh(W) = (G x G) W        (places, C, K)
    y = join(M) + bias + plus,  join = (A^T x A^T)

and the adjoints of join and weigh, ``spread`` and ``unweigh``.  F(4x4) takes a quarter of the multiplications,
F(2x2) four ninths; but the maps of F(4x4) scale by up to 24, and those of F(2x2) add and halve alone.  So numbers of
24 bits take F(4x4), and those of 8, whose rounding is not to grow, F(2x2).

The five maps exist twice: as products with matrices (``matrices``: any precision and device), and in C (winograd.c),
F(4x4) for float32 and F(2x2) for bfloat16, on a processor.  Weights, biases and their gradients are float32 there.
"""

from __future__ import annotations

import ctypes
import functools
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.nn.compiled import HALF, LANES, library

SOURCE = Path(__file__).with_name("winograd.c")
KEPT = 2**24  # numbers of a space that is kept; more are of a large picture

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Filter:
    """F(out x out, 3x3): the matrices B^T (in, in), G (in, 3) and A^T (out, in) of one axis."""

    b_t: Matrix
    g: Matrix
    a_t: Matrix

    @property
    def out(self) -> int:
        """A tile's side in the output."""
        return len(self.a_t)

    @property
    def inside(self) -> int:
        """A tile's side in the input."""
        return len(self.b_t)

    @property
    def places(self) -> int:
        """Products a tile and pair of channels."""
        return self.inside**2

    def tiles(self, n: int) -> int:
        """Tiles along an axis of n places."""
        return -(-n // self.out)


F4 = Filter(
    (
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
    (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
    ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
)
F2 = Filter(
    ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    ((1, 1, 1, 0), (0, 1, -1, -1)),
)


def room(n: int) -> int:
    """Tiles that are laid out for n: an odd number, or the planes would compete for the same lines of the caches."""
    return n | 1


def both(matrix: Matrix, like: Tensor) -> Tensor:
    """The matrix along rows and along columns at once: its Kronecker product with itself."""
    once = torch.tensor(matrix, dtype=like.dtype, device=like.device)
    return torch.kron(once, once)


@dataclass(frozen=True)
class Maps:
    """The linear maps around the products; pictures are (B, H, W, C), and all tensors contiguous."""

    filter: Filter
    cut: Callable[[Tensor, int], Tensor]
    """x (B, H, W, C) -> (places, room(n), C), in space that the next cut may write to; with 1, of x with every place
    repeated twice down and across."""
    join: Callable[[Tensor, Tensor, Tensor | None, Tensor], None]
    """Tiles (places, room(n), K), bias (K,), plus (B, H, W, K) or None -> into y (B, H, W, K)."""
    spread: Callable[[Tensor], Tensor]
    """y (B, H, W, K) -> (places, room(n), K), in space that the next spread may write to."""
    weigh: Callable[[Tensor, bool], Tensor]
    """W (K, C, 3, 3) -> (places, C, K); if True that of W turned round, whose inputs are outputs: (places, K, C).

    In space that the next weigh may write to."""
    unweigh: Callable[[Tensor], Tensor]
    """(places, C, K) -> (K, C, 3, 3)."""


def matrices(f: Filter) -> Maps:
    """The maps as products with the filter's matrices."""

    def cut(x: Tensor, up: int) -> Tensor:
        if up:
            x = x.repeat_interleave(2, 1).repeat_interleave(2, 2)
        rows, height, width, channels = x.shape
        down, across = f.tiles(height), f.tiles(width)
        x = F.pad(x, (0, 0, 1, 1 + across * f.out - width, 1, 1 + down * f.out - height))
        row, line, place, _ = x.stride()
        shape = (f.inside, f.inside, rows, down, across, channels)
        overlapping = x.as_strided(shape, (line, place, row, f.out * line, f.out * place, 1))
        return roomy((both(f.b_t, x) @ overlapping.reshape(f.places, -1)).view(f.places, -1, channels))

    def roomy(v: Tensor) -> Tensor:
        return F.pad(v, (0, 0, 0, room(v.shape[1]) - v.shape[1]))

    def join(m: Tensor, bias: Tensor, plus: Tensor | None, y: Tensor) -> None:
        rows, height, width, channels = y.shape
        m = m[:, : rows * f.tiles(height) * f.tiles(width)].reshape(f.places, -1)
        tiled = (both(f.a_t, m) @ m).view(f.out, f.out, rows, f.tiles(height), f.tiles(width), channels)
        whole = tiled.permute(2, 3, 0, 4, 1, 5).reshape(rows, f.tiles(height) * f.out, -1, channels)
        torch.add(whole[:, :height, :width], bias if plus is None else bias + plus, out=y)

    def spread(y: Tensor) -> Tensor:
        rows, height, width, channels = y.shape
        down, across = f.tiles(height), f.tiles(width)
        y = F.pad(y, (0, 0, 0, across * f.out - width, 0, down * f.out - height))
        tiled = y.view(rows, down, f.out, across, f.out, channels).permute(2, 4, 0, 1, 3, 5).reshape(f.out**2, -1)
        return roomy((both(f.a_t, y).T @ tiled).view(f.places, -1, channels))

    def weigh(weight: Tensor, back: bool) -> Tensor:
        if back:
            weight = weight.flip(2, 3).transpose(0, 1)
        out, channels = weight.shape[:2]
        return (both(f.g, weight) @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(f.places, channels, out)

    def unweigh(u: Tensor) -> Tensor:
        return (both(f.g, u).T @ u.view(f.places, -1)).view(3, 3, *u.shape[1:]).permute(3, 2, 0, 1).contiguous()

    return Maps(f, cut, join, spread, weigh, unweigh)


MATRICES = matrices(F4)

_kept_space = threading.local()


def space(name: str, dtype: torch.dtype, *shape: int) -> Tensor:
    """Room of this shape, its values whatever they are, the same memory for the same name again: fresh one is slow."""
    kept: dict[Any, Any] = _kept_space.__dict__
    whole, n = (name, dtype), math.prod(shape)
    if n > KEPT:
        return torch.empty(shape, dtype=dtype)
    if whole not in kept or kept[whole][0].numel() < n:
        with torch.inference_mode(False):
            kept[whole] = (torch.empty(n, dtype=dtype), {})
    memory, views = kept[whole]
    if shape not in views:
        with torch.inference_mode(False):
            views[shape] = memory[:n].view(shape)
    view: Tensor = views[shape]
    return view


COMPILED: dict[torch.dtype, Filter] = {torch.float32: F4, torch.bfloat16: F2}  # what winograd.c has for which pictures


@functools.cache
def compiled(dtype: torch.dtype) -> Maps | None:
    """The maps of winograd.c for pictures of a dtype; None where they cannot be had."""
    c: Any = library(SOURCE, *HALF[dtype])
    if c is None:
        return None
    f, pointer, number = COMPILED[dtype], ctypes.c_void_p, ctypes.c_int64
    for map_, pointers, numbers in (
        (c.cut, 2, 6),
        (c.join, 4, 5),
        (c.spread, 2, 5),
        (c.weigh, 2, 5),
        (c.unweigh, 2, 2),
    ):
        map_.argtypes, map_.restype = [pointer] * pointers + [number] * numbers, None

    def all_tiles(rows: int, height: int, width: int) -> int:
        return room(rows * f.tiles(height) * f.tiles(width))

    def cut(x: Tensor, up: int) -> Tensor:
        rows, height, width, channels = x.shape[0], x.shape[1] << up, x.shape[2] << up, x.shape[3]
        v = space("cut", dtype, f.places, all_tiles(rows, height, width), channels)
        c.cut(x.data_ptr(), v.data_ptr(), rows, height, width, channels, v.shape[1], up)
        return v

    def spread(y: Tensor) -> Tensor:
        v = space("spread", dtype, f.places, all_tiles(*y.shape[:3]), y.shape[3])
        c.spread(y.data_ptr(), v.data_ptr(), *y.shape, v.shape[1])
        return v

    def join(m: Tensor, bias: Tensor, plus: Tensor | None, y: Tensor) -> None:
        other = None if plus is None else plus.data_ptr()
        c.join(m.data_ptr(), bias.data_ptr(), other, y.data_ptr(), *y.shape, m.shape[1])

    def weigh(weight: Tensor, back: bool) -> Tensor:
        out, channels = weight.shape[:2]
        from_, to = (out, channels) if back else (channels, out)
        u = space("weights", dtype, f.places, from_, to)
        strides = (9 * channels, 9) if back else (9, 9 * channels)
        c.weigh(weight.data_ptr(), u.data_ptr(), from_, to, *strides, back)
        return u

    def unweigh(u: Tensor) -> Tensor:
        weight = torch.empty(u.shape[2], u.shape[1], 3, 3)
        c.unweigh(u.data_ptr(), weight.data_ptr(), *u.shape[1:])
        return weight

    return Maps(f, cut, join, spread, weigh, unweigh)


def fit(x: Tensor, weight: Tensor) -> bool:
    """Whether winograd.c knows pictures and weights such as these."""
    lanes = not any(n % LANES for n in weight.shape[:2])
    return lanes and x.device.type == "cpu" and x.dtype in COMPILED and weight.dtype == torch.float32


def maps_for(x: Tensor, weight: Tensor) -> Maps:
    """The compiled maps where they can be used."""
    return (compiled(x.dtype) if fit(x, weight) else None) or MATRICES
