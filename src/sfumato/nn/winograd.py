"""3x3 convolutions by minimal filtering: a quarter of the multiplications in float32, four ninths in bfloat16.

A tile of 4x4 outputs sees 6x6 inputs.  With D one channel of such a tile, W the 3x3 weights, and polynomials
evaluated at 0, 1, -1, 2, -2 and infinity,

    Y = A^T [ (G W G^T) * (B^T D B) ] A,

where * is element by element: 36 products instead of 144; by tiles of 2x2 outputs, at 0, 1, -1 and infinity, 16
instead of 36.  Summed over the channels, each of the places is a product of matrices, nearly all of the work:

    V = cut(x) = (B^T x B^T) D      (places, n, C),   n tiles
    U = weigh(W) = (G x G) W        (places, C, K)
    M_p = V_p U_p                   (places, n, K)
    y = join(M) + bias + plus,  join = (A^T x A^T)

with plus another picture or none: a residual block's other branch, which costs nothing on the way.  A picture
whose places are to be repeated, on the way up, is cut as it would be then (`Conv3x3.doubled`).  The maps, and which
tiles are for which numbers, are in `filters`.

Everything is linear in the picture and in the weights.  With ``spread`` the adjoint of join and ``unweigh`` that of
weigh, the gradients of L cost as little:

    dL/dx = the same convolution of dL/dy by the weights turned round,    dL/dU_p = V_p^T spread(dL/dy)_p,
    dL/dW = unweigh(dL/dU),                                               dL/dbias = sum of dL/dy.

Rounding errors in float32 are about 2e-6 of the output's size, where a plain convolution has 2e-7; in bfloat16 5e-3
and 2e-3.

S. Winograd, "Arithmetic complexity of computations", SIAM 1980; A. Lavin, S. Gray, "Fast algorithms for convolutional
neural networks" (arXiv 1509.09308), whose matrices these are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn import half
from sfumato.nn.compiled import Kept, differentiating
from sfumato.nn.filters import COMPILED, MATRICES, Filter, Maps, compiled, maps_for, space

# from which it pays, by the inputs' dtype: channels, with the compiled maps and without; tiles, since 16 or 36 places
# of weights are read for them where a plain convolution reads 9, of a batch in float32, in bfloat16 of a picture, lest
# a row be rounded otherwise in another batch; and how much of the tiles a picture fills
FEWEST = {torch.float32: 32, torch.bfloat16: 96}
FEWEST_BY_MATRICES = 96
FEWEST_TILES = {torch.float32: 8, torch.bfloat16: 16}
FULL = {torch.float32: 0.0, torch.bfloat16: 0.8}
CHUNK = 2**22  # numbers in V or M at a time: what the caches hold


def chunks(f: Filter, x: Tensor, channels: int) -> Iterator[slice]:
    """Slices of the rows of x (B, H, W, C), alike in size, of no more rows than the caches hold tiles of."""
    most = max(1, CHUNK // (f.places * f.tiles(x.shape[1]) * f.tiles(x.shape[2]) * channels))
    at_once = -(-len(x) // -(-len(x) // most))
    return (slice(start, start + at_once) for start in range(0, len(x), at_once))


def filtered(maps: Maps, x: Tensor, u: Tensor, bias: Tensor, plus: Tensor | None = None, up: int = 0) -> Tensor:
    """x (B, H, W, C) by transformed weights u (places, C, K), plus (B, H, W, K) -> (B, H, W, K); up as for `cut`."""
    y = x.new_empty(len(x), x.shape[1] << up, x.shape[2] << up, u.shape[2])

    def part(x: Tensor, plus: Tensor | None, y: Tensor) -> None:
        v = maps.cut(x, up)
        m = torch.bmm(v, u, out=space("products", v.dtype, len(v), v.shape[1], u.shape[2]))
        maps.join(m, bias, plus, y)

    every = list(chunks(maps.filter, y, max(u.shape[1:])))
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
            by_weight = maps.unweigh(_by_weights(maps, x, grad, weight))
        by_bias = grad.sum((0, 1, 2), dtype=weight.dtype) if ctx.needs_input_grad[2] else None
        by_all = (by_x, by_weight, by_bias, grad if ctx.needs_input_grad[3] else None, None)
        return by_all[: len(ctx.needs_input_grad)]


def _by_weights(maps: Maps, x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """dL/dU of x (B, H, W, C) and grad = dL/dy (B, H, W, K): (places, C, K)."""
    f = maps.filter
    u = space("gradient", x.dtype, f.places, weight.shape[1], weight.shape[0])
    for part, rows in enumerate(chunks(f, x, max(weight.shape[:2]))):
        n = len(x[rows]) * f.tiles(x.shape[1]) * f.tiles(x.shape[2])
        v, m = maps.cut(x[rows], 0), maps.spread(grad[rows])
        v[:, n:], m[:, n:] = 0, 0  # whole, for oneDNN copies what is only a part of something
        torch.baddbmm(u, v.transpose(1, 2), m, beta=1.0 if part else 0.0, out=u)
    return u


@final
class Conv3x3(nn.Module):
    """A 3x3 convolution, (B, channels, H, W) -> (B, out, H, W); with stride 2, (B, out, H/2 - 1, W/2 - 1) unpadded.

    ``fast``: by minimal filtering where that pays, or in bfloat16 as `nn.half`; else, as at first, as PyTorch does it.
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
            if self.fast and half.asked_in(h):
                return half.convolution(h, self.kept, self.weight, bias, self.stride, plus)
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
        maps = maps_for(x, self.weight)
        return self.kept(_by_matrices if maps is MATRICES else WEIGHED[x.dtype], self.weight)

    def _pays(self, h: Tensor, plus: Tensor | None) -> bool:
        fits = self.fast and self.stride == 1 and h.device.type == "cpu" and h.dtype in WEIGHED
        if not fits or (plus is not None and plus.dtype != h.dtype):
            return False
        maps, least = maps_for(h, self.weight), min(self.weight.shape[:2])
        if maps is MATRICES and h.dtype != self.weight.dtype:
            return False
        f, (height, width) = maps.filter, h.shape[2:]
        tiles = f.tiles(height) * f.tiles(width)
        enough = tiles * (1 if h.dtype == torch.bfloat16 else len(h)) >= FEWEST_TILES[h.dtype]
        full = height * width >= FULL[h.dtype] * tiles * f.out**2
        return enough and full and least >= (FEWEST_BY_MATRICES if maps is MATRICES else FEWEST[h.dtype])


def _channels_last(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


def _by_matrices(weight: Tensor) -> Tensor:
    return MATRICES.weigh(weight, False)


def _by_compiled(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    def weighed(weight: Tensor) -> Tensor:
        maps = compiled(dtype)
        assert maps is not None
        return maps.weigh(weight.contiguous(), False).clone()

    return weighed


WEIGHED = {dtype: _by_compiled(dtype) for dtype in COMPILED}
