"""3x3 convolutions by minimal filtering: F(4x4, 3x3), a quarter of the multiplications.

A tile of 4x4 outputs sees 6x6 inputs.  With D one channel of such a tile, W the 3x3 weights, and polynomials
evaluated at 0, 1, -1, 2, -2 and infinity,

    Y = A^T [ (G W G^T) * (B^T D B) ] A,

where * is element by element: 36 products instead of 144.  Summed over the channels, each of the 36 places is a
product of matrices, nearly all of the work:

    V = cut(x) = (B^T x B^T) D      (36, n, C),   n tiles
    U = weigh(W) = (G x G) W        (36, C, K)
    M_p = V_p U_p                   (36, n, K)
    y = join(M) + bias + plus,  join = (A^T x A^T)

with plus another picture or none: a residual block's other branch, which costs nothing on the way.  A picture
whose places are to be repeated, on the way up, is cut as it would be then (`Conv3x3.doubled`).

Everything is linear in the picture and in the weights.  With ``spread`` the adjoint of join and ``unweigh`` that of
weigh, the gradients of L cost as little:

    dL/dx = the same convolution of dL/dy by the weights turned round,    dL/dU_p = V_p^T spread(dL/dy)_p,
    dL/dW = unweigh(dL/dU),                                               dL/dbias = sum of dL/dy.

The five maps exist twice: as products with matrices (``MATRICES``: any precision and device), and for float32 on a
processor in C (winograd.c).  Rounding errors in float32 are about 2e-6 of the output's size; a plain convolution has
2e-7.

S. Winograd, "Arithmetic complexity of computations", SIAM 1980; A. Lavin, S. Gray, "Fast algorithms for convolutional
neural networks" (arXiv 1509.09308), whose matrices these are.
"""

from __future__ import annotations

import ctypes
import functools
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn.compiled import LANES, Kept, differentiating, library

SOURCE = Path(__file__).with_suffix(".c")
FEWEST = {True: 32, False: 96}  # channels from which it pays, with the compiled maps and without
FEWEST_TILES = 8  # from which it pays: 36 places of weights are read for them, where a plain convolution reads 9
CHUNK = 2**22  # numbers in V or M at a time: what the caches hold
OUT, IN, PLACES = 4, 6, 36  # a tile's side in the output and in the input; products a tile

B_T = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
A_T = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def tiles(n: int) -> int:
    """Tiles along an axis of n places."""
    return -(-n // OUT)


def room(n: int) -> int:
    """Tiles that are laid out for n: an odd number, or the 36 planes would compete for the same lines of the caches."""
    return n | 1


def both(matrix: tuple[tuple[float, ...], ...], like: Tensor) -> Tensor:
    """The matrix along rows and along columns at once: its Kronecker product with itself."""
    once = torch.tensor(matrix, dtype=like.dtype, device=like.device)
    return torch.kron(once, once)


@dataclass(frozen=True)
class Maps:
    """The linear maps around the products; pictures are (B, H, W, C), and all tensors contiguous."""

    cut: Callable[[Tensor, int], Tensor]
    """x (B, H, W, C) -> (36, room(n), C), in space that the next cut may write to; with 1, of x with every place
    repeated twice down and across."""
    join: Callable[[Tensor, Tensor, Tensor | None, Tensor], None]
    """Tiles (36, room(n), K), bias (K,), plus (B, H, W, K) or None -> into y (B, H, W, K)."""
    spread: Callable[[Tensor], Tensor]
    """y (B, H, W, K) -> (36, room(n), K), in space that the next spread may write to."""
    weigh: Callable[[Tensor, bool], Tensor]
    """W (K, C, 3, 3) -> (36, C, K); if True that of W turned round, whose inputs are outputs: (36, K, C).

    In space that the next weigh may write to."""
    unweigh: Callable[[Tensor], Tensor]
    """(36, C, K) -> (K, C, 3, 3)."""


def _cut(x: Tensor, up: int) -> Tensor:
    if up:
        x = x.repeat_interleave(2, 1).repeat_interleave(2, 2)
    rows, height, width, channels = x.shape
    down, across = tiles(height), tiles(width)
    x = F.pad(x, (0, 0, 1, 1 + across * OUT - width, 1, 1 + down * OUT - height))
    row, line, place, _ = x.stride()
    shape = (IN, IN, rows, down, across, channels)
    overlapping = x.as_strided(shape, (line, place, row, OUT * line, OUT * place, 1))
    return _roomy((both(B_T, x) @ overlapping.reshape(PLACES, -1)).view(PLACES, -1, channels))


def _roomy(v: Tensor) -> Tensor:
    return F.pad(v, (0, 0, 0, room(v.shape[1]) - v.shape[1]))


def _join(m: Tensor, bias: Tensor, plus: Tensor | None, y: Tensor) -> None:
    rows, height, width, channels = y.shape
    m = m[:, : rows * tiles(height) * tiles(width)].reshape(PLACES, -1)
    tiled = (both(A_T, m) @ m).view(OUT, OUT, rows, tiles(height), tiles(width), channels)
    whole = tiled.permute(2, 3, 0, 4, 1, 5).reshape(rows, tiles(height) * OUT, -1, channels)
    torch.add(whole[:, :height, :width], bias if plus is None else bias + plus, out=y)


def _spread(y: Tensor) -> Tensor:
    rows, height, width, channels = y.shape
    down, across = tiles(height), tiles(width)
    y = F.pad(y, (0, 0, 0, across * OUT - width, 0, down * OUT - height))
    tiled = y.view(rows, down, OUT, across, OUT, channels).permute(2, 4, 0, 1, 3, 5).reshape(OUT * OUT, -1)
    return _roomy((both(A_T, y).T @ tiled).view(PLACES, -1, channels))


def _weigh(weight: Tensor, back: bool) -> Tensor:
    if back:
        weight = weight.flip(2, 3).transpose(0, 1)
    out, channels = weight.shape[:2]
    return (both(G, weight) @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(PLACES, channels, out)


def _unweigh(u: Tensor) -> Tensor:
    return (both(G, u).T @ u.view(PLACES, -1)).view(3, 3, *u.shape[1:]).permute(3, 2, 0, 1).contiguous()


MATRICES = Maps(_cut, _join, _spread, _weigh, _unweigh)


def _compiled(c: Any) -> Maps:
    """The same maps by the compiled library."""
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    for map_, pointers, numbers in (
        (c.cut, 2, 6),
        (c.join, 4, 5),
        (c.spread, 2, 5),
        (c.weigh, 2, 5),
        (c.unweigh, 2, 2),
    ):
        map_.argtypes, map_.restype = [pointer] * pointers + [number] * numbers, None

    def cut(x: Tensor, up: int) -> Tensor:
        rows, height, width, channels = x.shape[0], x.shape[1] << up, x.shape[2] << up, x.shape[3]
        v = space("cut", x, PLACES, room(rows * tiles(height) * tiles(width)), channels)
        c.cut(x.data_ptr(), v.data_ptr(), rows, height, width, channels, v.shape[1], up)
        return v

    def spread(y: Tensor) -> Tensor:
        rows, height, width, channels = y.shape
        v = space("spread", y, PLACES, room(rows * tiles(height) * tiles(width)), channels)
        c.spread(y.data_ptr(), v.data_ptr(), *y.shape, v.shape[1])
        return v

    def join(m: Tensor, bias: Tensor, plus: Tensor | None, y: Tensor) -> None:
        other = None if plus is None else plus.data_ptr()
        c.join(m.data_ptr(), bias.data_ptr(), other, y.data_ptr(), *y.shape, m.shape[1])

    def weigh(weight: Tensor, back: bool) -> Tensor:
        out, channels = weight.shape[:2]
        from_, to = (out, channels) if back else (channels, out)
        u = space("weights", weight, PLACES, from_, to)
        strides = (9 * channels, 9) if back else (9, 9 * channels)
        c.weigh(weight.data_ptr(), u.data_ptr(), from_, to, *strides, back)
        return u

    def unweigh(u: Tensor) -> Tensor:
        weight = u.new_empty(u.shape[2], u.shape[1], 3, 3)
        c.unweigh(u.data_ptr(), weight.data_ptr(), *u.shape[1:])
        return weight

    return Maps(cut, join, spread, weigh, unweigh)


@functools.cache
def compiled() -> Maps | None:
    """The compiled maps; None where they cannot be had."""
    found = library(SOURCE)
    return None if found is None else _compiled(found)


def maps_for(x: Tensor, weight: Tensor) -> Maps:
    """The compiled maps where they can be used."""
    fits = x.device.type == "cpu" and x.dtype == torch.float32 and not any(n % LANES for n in weight.shape[:2])
    return (compiled() if fits else None) or MATRICES


def chunks(x: Tensor, channels: int) -> Iterator[slice]:
    """Slices of the rows of x (B, H, W, C), alike in size, of no more rows than the caches hold tiles of."""
    most = max(1, CHUNK // (PLACES * tiles(x.shape[1]) * tiles(x.shape[2]) * channels))
    at_once = -(-len(x) // -(-len(x) // most))
    return (slice(start, start + at_once) for start in range(0, len(x), at_once))


_kept_space = threading.local()


def space(name: str, like: Tensor, *shape: int) -> Tensor:
    """Room of this shape, its values whatever they are, the same memory for the same name again: fresh one is slow."""
    kept: dict[Any, Any] = _kept_space.__dict__
    whole, n = (name, like.dtype), math.prod(shape)
    if n > 4 * CHUNK:
        return like.new_empty(shape)  # of a large picture; too much to keep
    if whole not in kept or kept[whole][0].numel() < n:
        with torch.inference_mode(False):
            kept[whole] = (torch.empty(n, dtype=like.dtype), {})
    memory, views = kept[whole]
    if shape not in views:
        with torch.inference_mode(False):
            views[shape] = memory[:n].view(shape)
    view: Tensor = views[shape]
    return view


def filtered(maps: Maps, x: Tensor, u: Tensor, bias: Tensor, plus: Tensor | None = None, up: int = 0) -> Tensor:
    """x (B, H, W, C) by transformed weights u (36, C, K), plus (B, H, W, K) -> (B, H, W, K); up as in `Maps.cut`."""
    y = x.new_empty(len(x), x.shape[1] << up, x.shape[2] << up, u.shape[2])

    def part(x: Tensor, plus: Tensor | None, y: Tensor) -> None:
        v = maps.cut(x, up)
        m = torch.bmm(v, u, out=space("products", v, PLACES, v.shape[1], u.shape[2]))
        maps.join(m, bias, plus, y)

    every = list(chunks(y, max(u.shape[1:])))
    if len(every) == 1:
        part(x, plus, y)
    else:
        for rows in every:
            part(x[rows], None if plus is None else plus[rows], y[rows])
    return y


@final
class Filtered(torch.autograd.Function):
    """x (B, H, W, C), weight (K, C, 3, 3), bias (K,), plus -> (B, H, W, K), with gradients forwards and backwards.

    u: the transformed weights, where they are at hand.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, plus: Tensor | None, u: Tensor | None = None) -> Tensor:
        maps = maps_for(x, weight)
        plus = None if plus is None else plus.contiguous()
        return filtered(maps, x.contiguous(), maps.weigh(weight.contiguous(), False) if u is None else u, bias, plus)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def jvp(ctx: Any, x_t: Any, weight_t: Any, bias_t: Any, plus_t: Any, _: Any = None) -> Tensor:
        x, weight = ctx.saved_tensors
        zero = weight.new_zeros(len(weight))
        bias_t = zero if bias_t is None else bias_t
        by_x = Filtered.apply(torch.zeros_like(x) if x_t is None else x_t, weight, bias_t, plus_t)
        return by_x if weight_t is None else by_x + Filtered.apply(x, weight_t, zero, None)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        x, weight, grad, maps = x.contiguous(), weight.contiguous(), grad.contiguous(), maps_for(x, weight)
        by_x = by_weight = None
        if ctx.needs_input_grad[0]:
            by_x = filtered(maps, grad, maps.weigh(weight, True), weight.new_zeros(weight.shape[1]))
        if ctx.needs_input_grad[1]:
            u = space("gradient", weight, PLACES, weight.shape[1], weight.shape[0])
            for part, rows in enumerate(chunks(x, max(weight.shape[:2]))):
                n = len(x[rows]) * tiles(x.shape[1]) * tiles(x.shape[2])
                v, m = maps.cut(x[rows], 0)[:, :n], maps.spread(grad[rows])[:, :n]
                torch.baddbmm(u, v.transpose(1, 2), m, beta=1.0 if part else 0.0, out=u)
            by_weight = maps.unweigh(u)
        by_bias = grad.sum((0, 1, 2)) if ctx.needs_input_grad[2] else None
        by_all = (by_x, by_weight, by_bias, grad if ctx.needs_input_grad[3] else None, None)
        return by_all[: len(ctx.needs_input_grad)]


@final
class Conv3x3(nn.Module):
    """A 3x3 convolution, (B, channels, H, W) -> (B, out, H, W); with stride 2, (B, out, H/2 - 1, W/2 - 1) unpadded.

    ``fast``: by minimal filtering where that pays; else, as at first, as PyTorch does it.
    """

    def __init__(self, channels: int, out: int, stride: int = 1):
        super().__init__()
        plain = nn.Conv2d(channels, out, 3)
        assert plain.bias is not None
        self.weight, self.bias, self.stride, self.fast = plain.weight, plain.bias, stride, False
        self.kept = Kept()

    def forward(self, h: Tensor, plus: Tensor | None = None, plus_bias: Tensor | None = None) -> Tensor:
        """The convolution of h, plus (B, out, H, W) and plus_bias (out,) if there are any."""
        bias = self.bias if plus_bias is None else self.bias + plus_bias
        if not self._pays(h, plus):
            keeps = self.fast and self.kept.may(self.weight)
            weight = self.kept(_channels_last, self.weight) if keeps else self.weight
            y = F.conv2d(h, weight, bias, self.stride, padding=2 - self.stride)
            return y if plus is None else plus + y
        x, plus = h.permute(0, 2, 3, 1), None if plus is None else plus.permute(0, 2, 3, 1)
        way: Callable[..., Tensor] = Filtered.apply if differentiating() else Filtered.forward
        return way(x, self.weight, bias, plus, self._weighed(x)).permute(0, 3, 1, 2)

    def doubled(self, h: Tensor) -> Tensor:
        """The convolution of h with every place repeated twice down and across, (B, out, 2 H, 2 W)."""
        if differentiating() or not self._pays(h, None):
            return self(F.interpolate(h, scale_factor=2, mode="nearest"))
        x = h.permute(0, 2, 3, 1).contiguous()
        maps, u = maps_for(x, self.weight), self._weighed(x)
        u = maps.weigh(self.weight.contiguous(), False) if u is None else u
        return filtered(maps, x, u, self.bias, up=1).permute(0, 3, 1, 2)

    def _weighed(self, x: Tensor) -> Tensor | None:
        """The transformed weights, if they are kept."""
        if not self.kept.may(self.weight):
            return None
        return self.kept(_by_matrices if maps_for(x, self.weight) is MATRICES else _by_compiled, self.weight)

    def _pays(self, h: Tensor, plus: Tensor | None) -> bool:
        fits = self.fast and self.stride == 1 and h.device.type == "cpu" and h.dtype == torch.float32
        if not fits or (plus is not None and plus.dtype != h.dtype):
            return False
        few = min(self.weight.shape[:2]) < FEWEST[maps_for(h, self.weight) is not MATRICES]
        return not few and len(h) * tiles(h.shape[2]) * tiles(h.shape[3]) >= FEWEST_TILES


def _channels_last(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


def _by_matrices(weight: Tensor) -> Tensor:
    return MATRICES.weigh(weight, False)


def _by_compiled(weight: Tensor) -> Tensor:
    maps = compiled()
    assert maps is not None
    return maps.weigh(weight.contiguous(), False).clone()
