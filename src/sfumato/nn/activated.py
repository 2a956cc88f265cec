"""Norm, what the embedding says, SiLU and dropout as one map, as every residual block begins its convolutions.

    xhat = (x + added - mean) rstd,   mean and rstd = 1 / sqrt(variance + eps) over the places and channels of a group
    y    = m silu(z) / (1 - p), or z itself (`normed`)
    z    = gain xhat + bias,   gain = (1 + scale) gamma,   bias = (1 + scale) beta + shift

with gamma, beta (C,) of the norm; scale, shift or added (B, C) told by the embedding; m the dropout mask.  Backwards,
with dz = dL/dz, P and Q its sums over the places of dz and of dz xhat, and <.> means over a group,

    dL/dx = rstd (gain dz - <gain dz> - xhat <gain dz xhat>)
    dL/dbias = P,   dL/dgain = Q,   dL/dadded = the sum of dL/dx over the places

It exists twice: by PyTorch's operations (`plain`), and for float32 and bfloat16 on a processor in C (activated.c),
which reads the picture twice and writes it once where PyTorch does so seven times.  Pictures in bfloat16 are rounded
as they are written; whatever is worked out in between is float32.

Y. Wu, K. He, "Group normalization" (arXiv 1803.08494); E. Perez et al., "FiLM" (arXiv 1709.07871).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn.compiled import HALF, LANES, differentiating, library
from sfumato.nn.dropout import Dropout, kept, threshold

SOURCE = Path(__file__).with_suffix(".c")


@dataclass(frozen=True)
class Told:
    """What the embedding says to a block, (B, C) each: scale and shift of what is normed, or what is added before."""

    scale: Tensor | None = None
    shift: Tensor | None = None
    added: Tensor | None = None


NOTHING = Told()


def _placed(told: Tensor, h: Tensor) -> Tensor:
    return told.view(*told.shape, *[1] * (h.ndim - 2))


def plain(h: Tensor, norm: nn.GroupNorm, told: Told = NOTHING, beside: Tensor | None = None) -> Tensor:
    """The map of the module's head without dropout, h (B, C, *spatial), by PyTorch's operations."""
    h = h if beside is None else torch.cat([h, beside], dim=1)
    r = norm(h if told.added is None else h + _placed(told.added, h))
    if told.scale is not None and told.shift is not None:
        r = torch.addcmul(_placed(told.shift, h), r, 1 + _placed(told.scale, h))
    return F.silu(r)


@functools.cache
def _compiled(dtype: torch.dtype) -> Any:
    """The compiled library for pictures of a dtype, with its types declared; None where there is none."""
    c = library(SOURCE, *HALF[dtype])
    if c is not None:
        pointer, number, single, word = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int32
        sizes: list[Any] = [number] * 4
        dropping: list[Any] = [pointer, number, word, single]
        picture: list[Any] = [pointer, pointer, number]
        c.activate.argtypes = [*picture, *[pointer] * 3, number, *[pointer] * 2, *sizes, single, number, *dropping]
        c.activate_back.argtypes = [*picture, *[pointer] * 2, number, *[pointer] * 4, *sizes, number, *dropping]
        c.activate.restype = c.activate_back.restype = None
    return c


def fits(h: Tensor) -> bool:
    """Whether the compiled map can take h (B, C, H, W)."""
    known = h.device.type == "cpu" and h.dtype in HALF and h.ndim == 4 and not h.shape[1] % LANES
    return known and h.is_contiguous(memory_format=torch.channels_last) and _compiled(h.dtype) is not None


def _is_whole(norm: nn.GroupNorm) -> bool:
    """Whether its weights are here: those that FSDP shards by themselves are so within the norm's own call alone."""
    return not hasattr(norm.weight, "full_tensor")


def _dropping(keys: Tensor | None, p: float) -> tuple[int | None, int, int, float]:
    if keys is None:
        return None, 0, 0, 1.0
    return keys.data_ptr(), keys.stride(0), threshold(1 - p), 1 / (1 - p)


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


class Activated(torch.autograd.Function):
    """x (B, H, W, C), added (B, C) or None, gain and bias (B, C), both told alike -> y, coefficients (4, B, C).

    x and y are alike, float32 or bfloat16; all else is float32.

    other: the last channels of x, where they lie apart from the first ones.
    """

    @staticmethod
    def forward(
        x: Tensor,
        other: Tensor | None,
        added: Tensor | None,
        gain: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        bare: bool,
        keys: Tensor | None,
        p: float,
    ) -> tuple[Tensor, Tensor]:
        rows, height, width, split = x.shape
        channels = split if other is None else split + other.shape[3]
        y, coefficients = x.new_empty(rows, height, width, channels), gain.new_empty(4, rows, channels)
        _compiled(x.dtype).activate(
            x.data_ptr(),
            _pointer(other),
            split,
            _pointer(added),
            gain.data_ptr(),
            bias.data_ptr(),
            gain.stride(0),
            coefficients.data_ptr(),
            y.data_ptr(),
            rows,
            height * width,
            channels,
            groups,
            eps,
            bare,
            *_dropping(keys, p),
        )
        return y, coefficients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, other, added, gain, bias, ctx.groups, ctx.eps, ctx.bare, ctx.keys, ctx.p = inputs
        ctx.told = added is not None
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, other, gain, output[1])
        ctx.save_for_forward(x, other, added, gain, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, other, gain, coefficients = ctx.saved_tensors
        grad = grad.contiguous()
        by_x, by_other = torch.empty_like(x), None if other is None else torch.empty_like(other)
        sums = gain.new_empty(3, len(x), grad.shape[3])
        _compiled(x.dtype).activate_back(
            x.data_ptr(),
            _pointer(other),
            x.shape[3],
            grad.data_ptr(),
            gain.data_ptr(),
            gain.stride(0),
            coefficients.data_ptr(),
            by_x.data_ptr(),
            _pointer(by_other),
            sums.data_ptr(),
            len(x),
            x.shape[1] * x.shape[2],
            grad.shape[3],
            ctx.groups,
            ctx.bare,
            *_dropping(ctx.keys, ctx.p),
        )
        by_bias, by_gain, by_added = sums.unbind(0)
        return by_x, by_other, by_added if ctx.told else None, by_gain, by_bias, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, x_t: Any, other_t: Any, added_t: Any, gain_t: Any, bias_t: Any, *_: Any) -> tuple[Tensor, None]:
        x, other, added, gain, bias = ctx.saved_tensors
        x_t = torch.zeros_like(x) if x_t is None else x_t
        if other is not None:
            x_t = torch.cat([x_t, torch.zeros_like(other) if other_t is None else other_t], dim=3)
            x = torch.cat([x, other], dim=3)
        moved = x_t if added_t is None else x_t + added_t[:, None, None]
        x = x if added is None else x + added[:, None, None]

        def mean(a: Tensor) -> Tensor:
            parts = a.unflatten(-1, (ctx.groups, -1)).mean((1, 2, 4), keepdim=True)
            return parts.expand(-1, -1, -1, -1, a.shape[-1] // ctx.groups).flatten(3)

        centred = x - mean(x)
        rstd = (mean(centred.square()) + ctx.eps).rsqrt()
        xhat = centred * rstd
        z = gain[:, None, None] * xhat + bias[:, None, None]
        z_t = gain[:, None, None] * rstd * (moved - mean(moved) - xhat * mean(xhat * moved))
        z_t = z_t if gain_t is None else z_t + xhat * gain_t[:, None, None]
        z_t = z_t if bias_t is None else z_t + bias_t[:, None, None]
        s = z.sigmoid()
        y_t = z_t if ctx.bare else z_t * s * (1 + z * (1 - s))
        if ctx.keys is not None:
            mask = kept(ctx.keys, x.permute(0, 3, 1, 2), 1 - ctx.p).permute(0, 2, 3, 1)
            y_t = torch.where(mask, y_t / (1 - ctx.p), 0.0)
        return y_t.to(x.dtype), None


def compiled(
    h: Tensor,
    norm: nn.GroupNorm,
    told: Told,
    keys: Tensor | None,
    p: float,
    beside: Tensor | None = None,
    bare: bool = False,
) -> Tensor:
    """The same by the compiled map; h and beside as `fits` asks.  bare: z itself."""
    gain, bias = norm.weight.float().expand(len(h), -1), norm.bias.float().expand(len(h), -1)
    if told.scale is not None and told.shift is not None:
        scale = 1 + told.scale.float()
        gain, bias = scale * gain, torch.addcmul(told.shift.float(), scale, bias)
    added = None if told.added is None else told.added.float().contiguous()
    other = None if beside is None else beside.permute(0, 2, 3, 1)
    way: Callable[..., tuple[Tensor, Tensor]] = Activated.apply if differentiating() else Activated.forward
    y, _ = way(h.permute(0, 2, 3, 1), other, added, gain, bias, norm.num_groups, norm.eps, bare, keys, p)
    return y.permute(0, 3, 1, 2)


def activated(
    h: Tensor, norm: nn.GroupNorm, told: Told, dropout: Dropout | None, fast: bool, beside: Tensor | None = None
) -> Tensor:
    """y (B, C, *spatial) of the module's head; ``fast``: by the compiled map where it can be.

    beside: further channels of h, as if they were concatenated.
    """
    alike = beside is None or (fits(beside) and beside.dtype == h.dtype)
    if not (fast and fits(h) and alike and _is_whole(norm)):
        y = plain(h, norm, told, beside)
        return y if dropout is None else dropout(y)
    drops = dropout is not None and dropout.training and dropout.p > 0
    if dropout is None or not drops or dropout.keys is None:
        y = compiled(h, norm, told, None, 0.0, beside)
        return y if dropout is None else dropout(y)
    assert dropout.keys.shape == (len(h), 2), f"{tuple(dropout.keys.shape)} keys of dropout for {len(h)} rows"
    assert dropout.keys.dtype == torch.int32
    return compiled(h, norm, told, dropout.keys, dropout.p, beside)


def normed(h: Tensor, norm: nn.GroupNorm, fast: bool) -> Tensor:
    """The norm alone, h (B, C, *spatial)."""
    return compiled(h, norm, NOTHING, None, 0.0, bare=True) if fast and fits(h) and _is_whole(norm) else norm(h)
