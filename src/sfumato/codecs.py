"""Codecs: between the data's own units and the x_0 a denoiser sees.

    pixels      k in 0..L-1  <->  2k/(L-1) - 1 in [-1, 1], bins of width 2/(L-1)
    standard    x  <->  (x - mean)/std, for each value of a vector, for each channel of a signal or volume
    dct         pixels, and then their orthonormal DCT (`degradations` (2)): the units of blurring diffusion

A codec owns its scale: it is stored with the model, so decode gives back data units without being told anything.
A network works on pixels even where x is their DCT: `around` puts it between the two transforms.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from sfumato.degradations import dct, idct
from sfumato.options import unknown


class Codec(abc.ABC):
    """Abstract.  bin_width: the width of one data level in x_0's units, None where data have no levels.

    limits: the interval x_0 cannot leave, None if it is unbounded; a sampler may clip its predicted x_0 there.
    """

    bin_width: float | None = None
    limits: tuple[float, float] | None = None

    @property
    @abc.abstractmethod
    def spec(self) -> dict[str, Any]:
        """What `from_spec` reads back: {"name": a row of CODECS, ...}."""

    @abc.abstractmethod
    def encode(self, x: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def decode(self, x_0: Tensor) -> Tensor: ...

    def around(self, net: nn.Module) -> nn.Module:
        """A network net(x, t, cond) of the units it works in, as one of this codec's units: for most they are one."""
        return net


@dataclass(frozen=True)
class PixelCodec(Codec):
    """Whole numbers 0..levels-1, as uint8 (B, C, H, W)."""

    levels: int = 256
    limits = (-1.0, 1.0)

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= 256:
            raise ValueError(f"a picture has 2 to 256 levels; got {self.levels}")

    @property
    def bin_width(self) -> float:  # type: ignore[override]
        return 2 / (self.levels - 1)

    @property
    def spec(self) -> dict[str, Any]:
        return {"name": "pixels", "levels": self.levels}

    def encode(self, x: Tensor) -> Tensor:
        if x.is_floating_point() or x.is_complex():
            raise ValueError(
                f"pixels must be whole numbers 0..{self.levels - 1}; got {x.dtype}; convert to uint8 first"
            )
        if x.numel() and (int(x.min()) < 0 or int(x.max()) >= self.levels):
            raise ValueError(
                f"pixels must be whole numbers 0..{self.levels - 1}; got {int(x.min())} to {int(x.max())}; "
                "rescale them, or take a codec of more levels"
            )
        return x.float() * self.bin_width - 1

    def decode(self, x_0: Tensor) -> Tensor:
        if not bool(x_0.isfinite().all()):
            raise ValueError("x_0 holds NaN or infinity, which is no picture; the sampler or the model went astray")
        return ((x_0.float() + 1) / self.bin_width).round().clamp(0, self.levels - 1).to(torch.uint8)


@dataclass(frozen=True)
class StandardCodec(Codec):
    """Numbers of any scale, float32; mean and std have one value a number of a vector, or one a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ValueError(f"means and positive stds must come in pairs; got {len(self.mean)} and {self.std[:8]}")

    @classmethod
    def fit(cls, x: Tensor) -> StandardCodec:
        """Mean and standard deviation over rows and positions of x (N, D) or (N, C, ...); a constant has std 1."""
        columns = x.double().transpose(0, 1).flatten(1)
        std = columns.std(1, correction=0)
        varies = std > 1e-7 * columns.abs().amax(1)  # less than that is float32's own rounding of a constant
        return cls(tuple(columns.mean(1).tolist()), tuple(torch.where(varies, std, 1.0).tolist()))

    @property
    def spec(self) -> dict[str, Any]:
        return {"name": "standard", "mean": list(self.mean), "std": list(self.std)}

    def _columns(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        if like.shape[1] != len(values):
            raise ValueError(f"this codec was fitted to {len(values)} channels; got {tuple(like.shape)}")
        return torch.tensor(values, device=like.device).reshape(-1, *[1] * (like.ndim - 2))

    def encode(self, x: Tensor) -> Tensor:
        return (x.float() - self._columns(self.mean, x)) / self._columns(self.std, x)

    def decode(self, x_0: Tensor) -> Tensor:
        return x_0.float() * self._columns(self.std, x_0) + self._columns(self.mean, x_0)


@final
class InPixels(nn.Module):
    """A network of pixels, shown and answering DCT coefficients; each of its output channels is transformed."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        return dct(self.net(idct(x), t, cond).to(x.dtype))


@dataclass(frozen=True)
class DCTCodec(Codec):
    """Whole numbers 0..levels-1, as uint8 (B, C, H, W), as the orthonormal DCT of what PixelCodec makes of them.

    It has no bin_width: the bins are boxes in pixels, and turned against the axes here.  A density is the same in both
    units, so a likelihood spreads pixels uniformly over their bins before it encodes them.  Nor has it limits.
    """

    levels: int = 256

    @property
    def pixels(self) -> PixelCodec:
        return PixelCodec(self.levels)

    def __post_init__(self) -> None:
        PixelCodec(self.levels)  # which refuses what is no number of levels

    @property
    def spec(self) -> dict[str, Any]:
        return {"name": "dct", "levels": self.levels}

    def encode(self, x: Tensor) -> Tensor:
        return dct(self.pixels.encode(x))

    def decode(self, x_0: Tensor) -> Tensor:
        return self.pixels.decode(idct(x_0.float()))

    def around(self, net: nn.Module) -> nn.Module:
        return InPixels(net)


def _standard(mean: list[float], std: list[float]) -> StandardCodec:
    return StandardCodec(tuple(mean), tuple(std))


CODECS: dict[str, Callable[..., Codec]] = {"pixels": PixelCodec, "standard": _standard, "dct": DCTCodec}


def from_spec(spec: Mapping[str, Any]) -> Codec:
    """A codec from the ``spec`` another one gave."""
    options = dict(spec)
    name = options.pop("name")
    if name not in CODECS:
        raise unknown("codec", name, CODECS)
    return CODECS[name](**options)
