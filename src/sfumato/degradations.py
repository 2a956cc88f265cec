"""Degradations: mask, crop, grey, blur, downsample, JPEG; what the image tasks undo.

Each is a function D(x, strength) of pictures x (B, C, H, W) in [-1, 1], and gives pictures of the same shape.  The
strength is a number, or (B,), one for each row; 0 changes nothing, to the last bit:

    D(x, 0) = x                                                                                            (1)

    mask        share of the area that is hidden (0, mid-grey) by a box in the middle: what inpainting undoes
    crop        share of the area that is hidden around a box in the middle: outpainting
    grey        how far colours have faded to the luma 0.299 R + 0.587 G + 0.114 B: colouring [1]
    blur        sigma of a Gaussian, in pixels: deblurring
    downsample  octaves: with k, every square of 2^k pixels is its mean; between k and k + 1 the two are mixed:
                super-resolution
    jpeg        100 - quality

All but jpeg are differentiable and linear in x.  Blur is heat that spreads until the time tau = sigma^2/2, with
reflecting edges; it is diagonal in the orthonormal DCT-II, u = V x [2]:

    V_H[n, i] = sqrt((1 + [n > 0])/H) cos(pi n (2 i + 1)/(2 H)),   u = V_H x V_W^T,   x = V_H^T u V_W         (2)
    u_nm(tau) = exp(-lambda_nm tau) u_nm(0),   lambda_nm = pi^2 (n^2/H^2 + m^2/W^2)                          (3)

[1] ITU-R recommendation BT.601
[2] S. Rissanen, M. Heinonen, A. Solin, "Generative Modelling With Inverse Heat Dissipation", arXiv:2206.13397
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

LUMA = (0.299, 0.587, 0.114)


@cache
def _cosines(n: int) -> np.ndarray:
    """V_n of (2), (n, n), float64; kept in numpy, since a tensor made in inference mode would stay one."""
    k = np.arange(n)
    waves = np.cos(math.pi / (2 * n) * np.outer(k, 2 * k + 1))
    return waves * np.sqrt(np.where(k > 0, 2, 1) / n)[:, None]


def _basis(x: Tensor) -> tuple[Tensor, Tensor]:
    """V_H and V_W for x (..., H, W), in its dtype and on its device."""
    if x.ndim < 2 or not x.is_floating_point():
        raise ValueError(f"the DCT takes floating-point pictures (..., H, W); got {x.dtype} of {tuple(x.shape)}")
    rows, columns = (torch.from_numpy(_cosines(n)).to(x.device, x.dtype) for n in x.shape[-2:])
    return rows, columns


def dct(x: Tensor) -> Tensor:
    """u = V_H x V_W^T (2), the orthonormal DCT-II of the last two axes: (..., H, W), of x's dtype even in autocast."""
    rows, columns = _basis(x)
    with torch.autocast(x.device.type, enabled=False):
        return rows @ x @ columns.mT


def idct(u: Tensor) -> Tensor:
    """x = V_H^T u V_W, the inverse of `dct`: (..., H, W)."""
    rows, columns = _basis(u)
    with torch.autocast(u.device.type, enabled=False):
        return rows.mT @ u @ columns


def frequencies(height: int, width: int) -> Tensor:
    """lambda_nm of (3), (H, W), float64."""
    n, m = torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64)
    return (math.pi * n / height).square()[:, None] + (math.pi * m / width).square()


def _strength(name: str, x: Tensor, strength: Tensor | float, most: float = math.inf) -> Tensor:
    """The strength as float64 (B or 1, 1, 1, 1) on x's device, once it and x are known to be right."""
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"{name} takes floating-point pictures (B, C, H, W); got {x.dtype} of {tuple(x.shape)}")
    rows = torch.as_tensor(strength, dtype=torch.float64, device=x.device)
    if rows.shape not in ((), (len(x),)):
        raise ValueError(f"the strength of {name} is a number, or one for each of {len(x)} rows; got {rows.shape}")
    if not bool(((rows >= 0) & (rows <= most) & rows.isfinite()).all()):
        allowed = f"from 0 to {most:g}" if math.isfinite(most) else ">= 0"
        raise ValueError(f"the strength of {name} must be {allowed}; got {rows.tolist()}")
    return rows.reshape(-1, 1, 1, 1)


def _box(share: Tensor, x: Tensor) -> Tensor:
    """How much of each pixel of x lies in the box in the middle that has this share of the area: (B or 1, 1, H, W)."""

    def covered(n: int) -> Tensor:
        left = torch.arange(n, dtype=torch.float64, device=x.device)
        half = share.sqrt() * (n / 2)
        return (torch.minimum(left + 1, n / 2 + half) - torch.maximum(left, n / 2 - half)).clamp(min=0)

    height, width = x.shape[-2:]
    return (covered(height).mT * covered(width)).to(x.dtype)


def mask(x: Tensor, strength: Tensor | float) -> Tensor:
    """x with a share of its area, from 0 to 1, hidden by a box in the middle."""
    return x * (1 - _box(_strength("mask", x, strength, 1), x))


def crop(x: Tensor, strength: Tensor | float) -> Tensor:
    """x with a share of its area, from 0 to 1, hidden around a box in the middle."""
    return x * _box(1 - _strength("crop", x, strength, 1), x)


def grey(x: Tensor, strength: Tensor | float) -> Tensor:
    """x (B, 3, H, W), red, green, blue, faded to its luma by a strength from 0 to 1."""
    faded = _strength("grey", x, strength, 1).to(x.dtype)
    if x.shape[1] != 3:
        raise ValueError(f"grey takes pictures of 3 channels, red, green, blue; got {x.shape[1]}")
    luma = (x * x.new_tensor(LUMA).reshape(3, 1, 1)).sum(1, keepdim=True)
    return torch.lerp(x, luma.expand_as(x), faded)


def blur(x: Tensor, strength: Tensor | float) -> Tensor:
    """(3) with sigma = strength; written as x plus its change, which is 0 where sigma = 0."""
    sigma = _strength("blur", x, strength)
    change = torch.expm1(-0.5 * sigma.square() * frequencies(*x.shape[-2:]).to(x.device))
    return x + idct(change.to(x.dtype) * dct(x))


def downsample(x: Tensor, strength: Tensor | float) -> Tensor:
    """x in squares of 2^strength pixels, each its mean; at the right and lower edge they may be smaller."""
    octaves = _strength("downsample", x, strength)
    one_square = math.ceil(math.log2(max(x.shape[-2:])))  # from here on nothing changes
    coarse = x
    for k in range(min(math.ceil(octaves.max().item()), one_square)):
        coarse = torch.lerp(coarse, _squares(x, 2 ** (k + 1)), (octaves - k).clamp(0, 1).to(x.dtype))
    return coarse


def _squares(x: Tensor, side: int) -> Tensor:
    """Every square of side x side pixels replaced by its mean, (B, C, H, W)."""
    height, width = x.shape[-2:]
    means = avg_pool2d(x, side, ceil_mode=True)
    return means.repeat_interleave(side, 2).repeat_interleave(side, 3)[..., :height, :width]


def jpeg(x: Tensor, strength: Tensor | float) -> Tensor:
    """x (B, 1 or 3, H, W) through 8 bits and JPEG of quality 100 - strength, a whole number from 1; no gradient."""
    lost = _strength("jpeg", x, strength, 99).flatten().expand(len(x))
    if x.shape[1] not in (1, 3):
        raise ValueError(f"jpeg takes pictures of 1 or 3 channels; got {x.shape[1]}")
    rows = [x[b] if s == 0 else _through_jpeg(x[b], 100 - round(s)) for b, s in enumerate(lost.tolist())]
    return torch.stack(rows) if rows else x


def _through_jpeg(x: Tensor, quality: int) -> Tensor:
    """One picture (C, H, W) as JPEG of a quality from 1 to 100, and back."""
    from PIL import Image

    pixels = ((x.detach() + 1) * 127.5).round().clamp(0, 255).to("cpu", torch.uint8).movedim(0, -1).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        decoded = torch.from_numpy(np.array(image)).reshape(pixels.shape).movedim(-1, 0)
    return decoded.to(x.device, x.dtype) / 127.5 - 1


@dataclass(frozen=True)
class Degradation:
    """A row of DEGRADATIONS: D of (1), and a strength that leaves something to guess but not nothing to go by."""

    run: Callable[[Tensor, Tensor | float], Tensor]
    usual: float
    summary: str


DEGRADATIONS: dict[str, Degradation] = {
    "mask": Degradation(mask, 0.5, "a box in the middle is hidden; strength is its share of the area"),
    "crop": Degradation(crop, 0.5, "all but a box in the middle is hidden; strength is the hidden share of the area"),
    "grey": Degradation(grey, 1.0, "colours fade; strength 1 is grey"),
    "blur": Degradation(blur, 4.0, "Gaussian blur with reflecting edges; strength is sigma in pixels"),
    "downsample": Degradation(downsample, 2.0, "squares of 2^strength pixels become their mean"),
    "jpeg": Degradation(jpeg, 90.0, "JPEG of quality 100 - strength"),
}
