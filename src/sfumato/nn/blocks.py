"""The pieces that networks are made of, for 1-D signals, 2-D images and 3-D volumes alike.

A residual block is told the embedding e of time and conditions in one of two ways,

    adaptive (ADM):  r = (1 + scale(e)) GroupNorm(conv(silu(GroupNorm(h)))) + shift(e),
    added (DDPM):    r = GroupNorm(conv(silu(GroupNorm(h))) + shift(e)),

and returns ``skip(h) + conv(dropout(silu(r)))``, whose last convolution starts at zero, so that a new block is the
identity.  An attention block lets every position look at every other and at the context tokens, in one softmax.

References: J. Ho, A. Jain, P. Abbeel, DDPM (arXiv 2006.11239); P. Dhariwal, A. Nichol, ADM (arXiv 2105.05233);
E. Perez et al., "FiLM" (arXiv 1709.07871) for scale and shift; A. Nichol et al., "GLIDE" (arXiv 2112.10741) for the
context tokens beside the positions in one attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn import half
from sfumato.nn.activated import NOTHING, Told, activated, normed
from sfumato.nn.checkpointing import perhaps
from sfumato.nn.compiled import Kept, differentiating
from sfumato.nn.dropout import Dropout
from sfumato.nn.winograd import Conv3x3

CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
AVERAGE: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}

WHOLE = 256  # positions up to which a softmax over all of them at once is faster than one by parts
WHOLE_IN_HALF = 1024  # the same in bfloat16

Module = TypeVar("Module", bound=nn.Module)


def conv3(dims: int, channels: int, out: int, stride: int = 1) -> nn.Module:
    """A convolution of three places a side that keeps the size; with stride 2 of what was padded before."""
    return Conv3x3(channels, out, stride) if dims == 2 else CONV[dims](channels, out, 3, stride, padding=2 - stride)


def plus(conv: nn.Module, h: Tensor, other: Tensor) -> Tensor:
    """conv(h) + other, at once where the convolution can."""
    y: Tensor = conv(h, other) if isinstance(conv, Conv3x3) else other + conv(h)
    return y


class Conv1x1(nn.Conv2d):
    """A 1x1 convolution as what it is, a product of matrices."""

    def __init__(self, channels: int, out: int):
        super().__init__(channels, out, 1)
        self.kept = Kept()

    def forward(self, h: Tensor) -> Tensor:
        return F.linear(h.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)

    def product(self, h: Tensor, beside: Tensor | None) -> Tensor:
        """The same without the bias; beside: further channels of h, as if they were concatenated."""
        weight = half.kept_or_made(self.kept, half.rounded, self.weight) if half.asked_in(h) else self.weight
        weight, parts = weight.flatten(1), [h] if beside is None else [h, beside]
        rows = [part.permute(0, 2, 3, 1).flatten(0, 2) for part in parts]
        y = rows[0] @ weight[:, : h.shape[1]].T
        if beside is not None:
            add = torch.addmm if differentiating() else Tensor.addmm_
            y = add(y, rows[1], weight[:, h.shape[1] :].T)
        return y.view(len(h), *h.shape[2:], -1).permute(0, 3, 1, 2)


def conv1(dims: int, channels: int, out: int) -> nn.Module:
    """A convolution of one place."""
    return Conv1x1(channels, out) if dims == 2 else CONV[dims](channels, out, 1)


def zeroed(module: Module) -> Module:
    """The module with every parameter at zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def largest_divisor(n: int, at_most: int) -> int:
    """The largest divisor of n that is not above ``at_most`` (and at least 1)."""
    return next(d for d in range(max(1, min(n, at_most)), 0, -1) if n % d == 0)


def group_norm(channels: int, groups: int, eps: float) -> nn.GroupNorm:
    return nn.GroupNorm(largest_divisor(channels, groups), channels, eps=eps)


def modulate(h: Tensor, film: Tensor) -> Tensor:
    """``(1 + scale) h + shift``, where film (..., 2 C) is scale and shift side by side and h is (..., C)."""
    scale, shift = film.chunk(2, dim=-1)
    return torch.addcmul(shift, h, 1 + scale)


def adaptive_norm(h: Tensor, film: Tensor) -> Tensor:
    """``(1 + scale) LayerNorm(h) + shift`` over the last axis; the norm has no parameters of its own."""
    return modulate(F.layer_norm(h, h.shape[-1:], eps=1e-6), film)


def halved(size: torch.Size) -> torch.Size:
    """Spatial sizes one level down: half, rounded up."""
    return torch.Size((n + 1) // 2 for n in size)


def resize(h: Tensor, size: torch.Size) -> Tensor:
    """One level down by the mean of 2^d neighbours (at an odd end, of those that exist), or up by repeating each."""
    if h.shape[2:] == size:
        return h
    if h.shape[2:] > size:
        return AVERAGE[len(size)](h, [min(n, 2) for n in h.shape[2:]], ceil_mode=True)
    return F.interpolate(h, size=size, mode="nearest")


def patchify(x: Tensor, patch: int) -> Tensor:
    """(B, C, *spatial) -> (B, patches, patch^d C): patches, their places, then channels, all in reading order."""
    dims = x.ndim - 2
    for axis in range(dims):
        x = x.unflatten(2 + 2 * axis, (-1, patch))  # (B, C, n_1, patch, n_2, patch, ..)
    counts, insides = range(2, 2 + 2 * dims, 2), range(3, 3 + 2 * dims, 2)
    return x.permute(0, *counts, *insides, 1).flatten(1 + dims).flatten(1, dims)


def unpatchify(tokens: Tensor, patch: int, spatial: Sequence[int]) -> Tensor:
    """(B, patches, patch^d C) -> (B, C, *spatial), the inverse of `patchify`."""
    dims = len(spatial)
    x = tokens.unflatten(1, [n // patch for n in spatial]).unflatten(1 + dims, [*[patch] * dims, -1])
    pairs = [each for axis in range(1, 1 + dims) for each in (axis, axis + dims)]
    return x.permute(0, 1 + 2 * dims, *pairs).reshape(len(x), -1, *spatial)


def fold(x: Tensor, patch: int) -> Tensor:
    """Patches as channels: (B, C, *spatial) -> (B, patch^d C, *spatial/patch)."""
    return x if patch == 1 else unpatchify(patchify(x, patch), 1, [n // patch for n in x.shape[2:]])


def unfold(h: Tensor, patch: int) -> Tensor:
    """The inverse of `fold`."""
    return h if patch == 1 else unpatchify(patchify(h, 1), patch, [n * patch for n in h.shape[2:]])


def check_patch(network: str, patch: int, shape: Sequence[int]) -> None:
    """Raise ValueError unless data of this shape (C, *spatial) can be cut into patches."""
    if any(n % patch for n in shape[1:]):
        fits = [p for p in range(1, patch) if not any(n % p for n in shape[1:])]
        raise ValueError(
            f"{network}: patch = {patch} does not divide the sizes {tuple(shape[1:])}; "
            f"take patch {' or '.join(map(str, fits))}, or pad the data"
        )


class Residual(nn.Module):
    """A residual block, (B, channels, *a) -> (B, out, *b); with a new size both of its branches are resized (ADM)."""

    def __init__(self, channels: int, out: int, *, dims: int, adaptive: bool, groups: int, eps: float, dropout: float):
        super().__init__()
        self.adaptive, self.dropout, self.fast = adaptive, Dropout(dropout), False
        self.film = 2 * out if adaptive else out
        self.norm1 = group_norm(channels, groups, eps)
        self.conv1 = conv3(dims, channels, out)
        self.norm2 = group_norm(out, groups, eps)
        self.conv2 = zeroed(conv3(dims, out, out))
        self.skip = nn.Identity() if channels == out else conv1(dims, channels, out)

    def forward(self, h: Tensor, film: Tensor, size: torch.Size | None = None, beside: Tensor | None = None) -> Tensor:
        """``film`` (B, self.film) is what the embedding says to this block: scale and shift, or what is added.

        beside: further channels of h, as if they were concatenated.
        """
        skip = self.skip if self.fast and isinstance(self.skip, Conv1x1) else None
        if beside is not None and skip is None:
            h, beside = torch.cat([h, beside], dim=1), None
        r = activated(h, self.norm1, NOTHING, None, self.fast, beside)
        if size is not None:
            h, r = resize(h, size), resize(r, size)
        told = Told(*film.chunk(2, dim=1)) if self.adaptive else Told(added=film)
        r = activated(self.conv1(r), self.norm2, told, self.dropout, self.fast)
        if skip is not None:  # its bias with the convolution's: what is added to every place costs a pass over them
            y: Tensor = self.conv2(r, skip.product(h, beside), skip.bias)
            return y
        return plus(self.conv2, r, self.skip(h))


def context_map(context: int, channels: int) -> nn.Sequential | None:
    """What makes keys and values of the context tokens, (B, L, context) -> (B, L, 2 channels); None without context."""
    return nn.Sequential(nn.LayerNorm(context), nn.Linear(context, 2 * channels)) if context else None


def seen(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, (B, heads, N, d) each; mask says what is seen.

    In bfloat16 on a processor by two products and the whole of what is between them, since PyTorch's kernel, which
    never has the whole, takes two to ten times as long there, forth and back.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or k.shape[2] > WHOLE_IN_HALF:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    weights = q / q.shape[-1] ** 0.5 @ k.transpose(-1, -2)
    weights = weights if mask is None else weights.masked_fill(~mask, -torch.inf)
    return weights.softmax(dim=-1).to(v.dtype) @ v


def attend(qkv: Tensor, heads: int, tell: nn.Module | None = None, context: Tensor | None = None) -> Tensor:
    """Every position looks at every other and at the context tokens, in one softmax: (B, N, 3 C) -> (B, N, C).

    ``tell`` is a ``context_map``.  ``context`` is (B, L, width): a token of zeros is padding, which no position sees.
    """
    q, k, v = qkv.chunk(3, dim=2)
    mask = None
    if tell is not None and context is not None:
        told_k, told_v = tell(context).chunk(2, dim=2)
        k, v = torch.cat([k, told_k], dim=1), torch.cat([v, told_v], dim=1)
        mask = F.pad(context.any(dim=2), (q.shape[1], 0), value=True)[:, None, None]  # (B, 1, 1, N + L)
    q, k, v = (each.unflatten(2, (heads, -1)).transpose(1, 2) for each in (q, k, v))  # (B, heads, N, C/heads)
    return seen(q, k, v, mask).transpose(1, 2).flatten(2)


def joined_weight(qkv: Tensor, out: Tensor) -> Tensor:
    """The maps of single-headed attention as two, W_k^T W_q / sqrt(C) above W_o W_v, (2 C, C); `joined_bias` theirs.

    What a softmax of (W_q x_i + b_q) . (W_k x_j + b_k) over j sees is (W_k^T W_q x_i + W_k^T b_q) . x_j, for the rest
    is the same for all j, over sqrt(C); and since its weights p_j sum to 1, W_o (sum_j p_j (W_v x_j + b_v)) + b_o is
    sum_j p_j (W_o W_v x_j + W_o b_v + b_o).
    """
    q, k, v = qkv.double().chunk(3)
    return torch.cat([k.T @ q / len(q) ** 0.5, out.double() @ v]).to(qkv)


def joined_bias(qkv: Tensor, qkv_bias: Tensor, out: Tensor, out_bias: Tensor) -> Tensor:
    """W_k^T b_q / sqrt(C) and W_o b_v + b_o, (2 C,)."""
    (_, k, _), (q_bias, _, v_bias) = qkv.double().chunk(3), qkv_bias.double().chunk(3)
    return torch.cat([k.T @ q_bias / len(k) ** 0.5, out.double() @ v_bias + out_bias]).to(qkv)


def attend_joined(h: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """h + softmax((x A + a) x^T) (x O) + o, by the joined maps (A; O) and (a; o): h, x (B, N, C)."""
    asked, told = (x @ weight.T).chunk(2, dim=2)
    a, o = bias.to(x.dtype).chunk(2)
    if x.shape[1] > WHOLE:
        return h + o + F.scaled_dot_product_attention(asked + a, x, told, scale=1.0)
    weights = torch.bmm(asked + a, x.transpose(1, 2)).softmax(dim=2)
    add = torch.baddbmm if differentiating() else Tensor.baddbmm_
    return add(h + o, weights, told)


class Attention(nn.Module):
    """Attention of all positions to all positions and context tokens, (B, channels, *spatial) -> the same shape."""

    def __init__(self, channels: int, *, head_channels: int, context: int, groups: int, eps: float):
        super().__init__()
        self.heads = largest_divisor(channels, channels // head_channels) if head_channels else 1
        self.norm = group_norm(channels, groups, eps)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.context = context_map(context, channels)
        self.out = zeroed(nn.Linear(channels, channels))
        self.fast, self.kept = False, Kept()

    def forward(self, h: Tensor, context: Tensor | None = None) -> Tensor:
        """``context`` is (B, L, width), as in ``attend``."""
        tokens = normed(h, self.norm, self.fast).flatten(2).transpose(1, 2)  # (B, N, C)
        qkv, out = self.qkv, self.out
        weights = (qkv.weight, qkv.bias, out.weight, out.bias)
        if self.fast and self.heads == 1 and self.context is None and self.kept.may(*weights):
            weight, bias = self.kept(joined_weight, qkv.weight, out.weight), self.kept(joined_bias, *weights)
            rows = h.flatten(2).transpose(1, 2)
            with torch.autocast(h.device.type, enabled=False):  # all in the precision of h
                return attend_joined(rows, tokens, weight.to(h.dtype), bias).transpose(1, 2).view_as(h)
        answer = self.out(attend(self.qkv(tokens), self.heads, self.context, context))
        return h + answer.transpose(1, 2).reshape(h.shape)


class Stage(nn.Module):
    """A residual block and, at the levels that ask for it, an attention block."""

    def __init__(self, residual: Residual, attention: Attention | None):
        super().__init__()
        self.residual, self.attention, self.film, self.again = residual, attention, residual.film, False

    def forward(self, h: Tensor, film: Tensor, context: Tensor | None, beside: Tensor | None = None) -> Tensor:
        """beside: further channels of h, as if they were concatenated."""
        return perhaps(self.again, self._once, h, film, context, beside)

    def _once(self, h: Tensor, film: Tensor, context: Tensor | None, beside: Tensor | None) -> Tensor:
        h = self.residual(h, film, None, beside)
        return h if self.attention is None else self.attention(h, context)


class Resample(nn.Module):
    """One level down by a convolution of stride 2, or up by repeating and a convolution (DDPM); it is told nothing."""

    film = 0

    def __init__(self, channels: int, *, dims: int, down: bool, pad_both: bool = False):
        super().__init__()
        self.down, self.pad_both = down, pad_both
        self.conv = conv3(dims, channels, channels, stride=2) if down else conv3(dims, channels, channels)

    def forward(self, h: Tensor, film: Tensor, size: torch.Size) -> Tensor:
        if not self.down:
            if isinstance(self.conv, Conv3x3) and size == torch.Size(2 * n for n in h.shape[2:]):
                return self.conv.doubled(h)
            y: Tensor = self.conv(resize(h, size))
            return y
        ends = [end for n in reversed(h.shape[2:]) for end in (1 if self.pad_both else n % 2, 1)]
        return self.conv(F.pad(h, ends))
