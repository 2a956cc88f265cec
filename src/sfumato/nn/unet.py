"""The UNet of DDPM and ADM, for 1-D signals, 2-D images and 3-D volumes.

    patches -> stem -> levels down, each: blocks x (residual [+ attention]), then half the size
         -> middle: residual, attention, residual
         -> levels up, each: (blocks + 1) x (residual over [h, skip] [+ attention]), then twice the size
         -> GroupNorm, silu, last convolution -> pixels

A patch of p pixels a side is one place of p^d C channels, as in "simple diffusion"; usually p = 1, and places are
pixels.  Every output of the way down is a skip that the way up concatenates.  Sizes need not be even: 28 -> 14 -> 7
-> 4, and the way up returns to each skip's size.  What the embedding of time and conditions says to the blocks (their
scale and shift) is made for all of them by one linear map.

``UNetConfig()`` is ADM's block; ``adaptive=False, residual_resampling=False, head_channels=0`` is DDPM's.

References: O. Ronneberger, P. Fischer, T. Brox, "U-Net" (arXiv 1505.04597); J. Ho, A. Jain, P. Abbeel, DDPM
(arXiv 2006.11239); P. Dhariwal, A. Nichol, ADM (arXiv 2105.05233); E. Hoogeboom, J. Heek, T. Salimans,
"simple diffusion" (arXiv 2301.11093) for patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn import half
from sfumato.nn.activated import NOTHING, activated
from sfumato.nn.blocks import (
    CONV,
    Attention,
    Resample,
    Residual,
    Stage,
    check_patch,
    fold,
    group_norm,
    halved,
    unfold,
    zeroed,
)
from sfumato.nn.compiled import Kept
from sfumato.nn.conditions import Conditions
from sfumato.nn.embedding import Embedding, check_input


@dataclass(frozen=True)
class UNetConfig:
    """What a user chooses of a UNet; all else follows from the data."""

    channels: int = 64
    """Channels at the first level; even. The time embedding has four times as many."""
    patch: int = 1
    """Pixels a side of the patches that the first level works on; with 2, 28x28 pixels are 14x14 places of four."""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """Channels of each level, as a multiple of `channels`; each further level halves the size."""
    blocks: int = 2
    """Residual blocks of each level on the way down; on the way up it is one more."""
    attention: tuple[int, ...] = ()
    """Levels with attention, 0 being full resolution. The middle always has it."""
    head_channels: int = 32
    """Channels of one attention head (at least); 0 is a single head."""
    dropout: float = 0.0
    """Dropout inside the residual blocks, while training."""
    adaptive: bool = True
    """The embedding scales and shifts the normalised features (ADM); else it is added to them (DDPM)."""
    residual_resampling: bool = True
    """Sizes change inside residual blocks (ADM); else by plain convolutions (DDPM)."""
    pad_both: bool = False
    """A size that a plain convolution halves is padded at both ends (diffusers' default), not at the last alone."""
    groups: int = 32
    """Groups of the group norms; where they do not divide the channels, the next smaller number that does."""
    norm_eps: float = 1e-6
    """Added to the variance in the group norms."""
    time_scale: float = 1.0
    """The network's time is multiplied by this before it is embedded."""
    freq_shift: float = 1.0
    """Spacing of the time embedding's frequencies: 1 ends at 1/10000 (DDPM), 0 one step before (ADM)."""

    def __post_init__(self) -> None:
        if self.channels < 4 or self.channels % 2:
            raise ValueError(f"unet: channels = {self.channels}; it must be even and at least 4")
        if self.patch < 1:
            raise ValueError(f"unet: patch = {self.patch}; it must be at least 1, which cuts nothing")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"unet: multipliers = {self.multipliers}; give one number >= 1 each level")
        if not all(0 <= level < len(self.multipliers) for level in self.attention):
            raise ValueError(f"unet: attention = {self.attention}; the levels are 0..{len(self.multipliers) - 1}")
        if self.blocks < 1 or self.groups < 1 or self.head_channels < 0:
            raise ValueError(
                f"unet: blocks = {self.blocks}, groups = {self.groups}, head_channels = {self.head_channels}; "
                "the first two are at least 1, the last at least 0"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"unet: dropout = {self.dropout}; it must be in [0, 1)")


def check_shape(config: UNetConfig, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless data of this shape (C, *spatial) can be cut into the config's patches."""
    if len(shape) not in (2, 3, 4) or min(shape) < 1:
        raise ValueError(f"unet: shape {tuple(shape)} is none of (C, L), (C, H, W), (C, D, H, W); for vectors use mlp")
    check_patch("unet", config.patch, shape)


@dataclass(frozen=True)
class Blocks:
    """What makes the blocks of a config, for data of `dims` spatial axes; context: the width of its tokens, or 0."""

    config: UNetConfig
    dims: int
    context: int = 0

    def residual(self, channels: int, out: int) -> Residual:
        c = self.config
        return Residual(
            channels, out, dims=self.dims, adaptive=c.adaptive, groups=c.groups, eps=c.norm_eps, dropout=c.dropout
        )

    def stage(self, channels: int, out: int, attend: bool) -> Stage:
        c, residual = self.config, self.residual(channels, out)
        if not attend:
            return Stage(residual, None)
        heads = {"head_channels": c.head_channels, "context": self.context, "groups": c.groups}
        return Stage(residual, Attention(out, **heads, eps=c.norm_eps))

    def resample(self, channels: int, down: bool) -> nn.Module:
        if self.config.residual_resampling:
            return self.residual(channels, channels)
        return Resample(channels, dims=self.dims, down=down, pad_both=self.config.pad_both)

    def down(self) -> tuple[nn.ModuleList, list[int]]:
        """The way down from the stem, and the channels of every skip: the stem's, then each unit's."""
        config, units, skips = self.config, nn.ModuleList(), [self.config.channels]
        for level, multiplier in enumerate(config.multipliers):
            for _ in range(config.blocks):
                units.append(self.stage(skips[-1], multiplier * config.channels, level in config.attention))
                skips.append(multiplier * config.channels)
            if level < len(config.multipliers) - 1:
                units.append(self.resample(skips[-1], down=True))
                skips.append(skips[-1])
        return units, skips

    def middle(self, width: int) -> nn.ModuleList:
        return nn.ModuleList([self.stage(width, width, True), self.stage(width, width, False)])


def each_told(film: Tensor, told: Sequence[int]) -> Iterator[Tensor]:
    """What each block in turn is told: (B, sum(told)) -> (B, told_k)."""
    return iter(film.split(list(told), dim=1))


def walk_down(units: nn.ModuleList, h: Tensor, film: Iterator[Tensor], context: Tensor | None = None) -> list[Tensor]:
    """The skips of a way down that begins with the stem's h."""
    skips = [h]
    for unit in units:
        h = unit(h, next(film), context) if isinstance(unit, Stage) else unit(h, next(film), halved(h.shape[2:]))
        skips.append(h)
    return skips


def walk_up(
    units: nn.ModuleList, h: Tensor, skips: list[Tensor], film: Iterator[Tensor], context: Tensor | None = None
) -> Tensor:
    """The end of a way up from h, which takes the skips from their last one on."""
    for unit in units:
        if isinstance(unit, Stage):
            h = unit(h, next(film), context, skips.pop())
        else:
            h = unit(h, next(film), skips[-1].shape[2:])
    return h


def laid_out(h: Tensor) -> Tensor:
    """Pictures with a place's channels side by side, as convolutions and norms are fastest; all else as it is."""
    return h.contiguous(memory_format=torch.channels_last) if h.ndim == 4 else h


class UNet(nn.Module):
    """A UNet for x of shape (B, *shape), ``shape = (C, *spatial)`` with one to three spatial axes.

    Its output is (B, out_channels, *spatial), in the dtype of x, and zero before training; ``out_channels`` is C
    unless said otherwise (2 C where the variance is learned).
    """

    def __init__(
        self,
        config: UNetConfig,
        shape: tuple[int, ...],
        conditions: Conditions = Conditions(),  # noqa: B008 (frozen)
        out_channels: int | None = None,
    ):
        super().__init__()
        check_shape(config, shape)
        self.config, self.shape, self.conditions = config, tuple(shape), conditions
        dims, volume = len(shape) - 1, config.patch ** (len(shape) - 1)
        blocks = Blocks(config, dims, conditions.context)
        self.stem = CONV[dims](volume * (shape[0] + conditions.concat), config.channels, 3, padding=1)
        self.down, skips = blocks.down()
        width = skips[-1]
        self.middle = blocks.middle(width)

        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(config.multipliers))):
            for _ in range(config.blocks + 1):
                out = multiplier * config.channels
                self.up.append(blocks.stage(width + skips.pop(), out, level in config.attention))
                width = out
            if level > 0:
                self.up.append(blocks.resample(width, down=False))

        self.norm = group_norm(width, config.groups, config.norm_eps)
        self.out = zeroed(CONV[dims](width, volume * (out_channels or shape[0]), 3, padding=1))

        self.embedding = Embedding(
            config.channels, 4 * config.channels, conditions, config.time_scale, config.freq_shift
        )
        units: list[Any] = [*self.down, *self.middle, *self.up]
        self.told = [unit.film for unit in units]  # how many numbers each block is told
        self.film = nn.Linear(4 * config.channels, sum(self.told))
        self.fast, self.kept = False, Kept()

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """x (B, *shape), t (B,), conditions as in ``Conditions`` -> (B, out_channels, *spatial)."""
        return self.answer(x, t, cond)[0]

    def answer(
        self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None, deep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same, and what the lower levels send up to the first one; ``deep`` is that of another call, for these."""
        check_input(x, t, self.shape)
        h = x.to(self.stem.weight.dtype)
        full = self.conditions.complete(cond, h)
        context = full.get("context")
        films = list(each_told(self._told(F.silu(self.embedding(t, full))), self.told))
        top = self.config.blocks  # units of the first level on the way down; on the way up it is one more

        h = torch.cat([h, full["image"]], dim=1) if "image" in full else h
        h = fold(h, self.config.patch)
        h = laid_out(self.stem(laid_out(h)))  # of one channel, the stem's answer may lie the other way
        skips = walk_down(self.down[:top], h, iter(films), context)
        if deep is None:
            film = iter(films[top:])
            lower = [*skips, *walk_down(self.down[top:], skips[-1], film, context)[1:]]
            deep = lower[-1]
            for unit in self.middle:
                deep = unit(deep, next(film), context)
            deep = walk_up(self.up[: -top - 1], deep, lower, film, context)
        h = walk_up(self.up[-top - 1 :], deep, skips, iter(films[-top - 1 :]), context)
        y = self.out(activated(h, self.norm, NOTHING, None, self.fast))
        return unfold(y, self.config.patch).to(x.dtype), deep

    def _told(self, e: Tensor) -> Tensor:
        """What the embedding e says to all blocks."""
        if not (self.fast and half.asked_in(e)):
            told: Tensor = self.film(e)
            return told
        return F.linear(e, half.kept_or_made(self.kept, half.rounded, self.film.weight), half.rounded(self.film.bias))
