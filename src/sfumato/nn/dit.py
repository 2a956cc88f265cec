"""The diffusion transformer: x is cut into patches, and every patch looks at every other.

    h_0     = W patches(x) + positions
    h       = h_l + gate_l(e)  attention((1 + scale_l(e)) LayerNorm(h_l) + shift_l(e))
    h_{l+1} = h   + gate'_l(e) MLP((1 + scale'_l(e)) LayerNorm(h) + shift'_l(e))               l = 0..depth-1
    y       = patches^-1(W_out ((1 + scale(e)) LayerNorm(h_depth) + shift(e)))

with e the embedding of time and conditions and MLP(h) = W_2 dropout(gelu(W_1 h)).  All gates, scales and shifts are one
linear map of silu(e), which starts at zero (adaLN-Zero): a new block is the identity.  W_out starts at zero too.
Positions are the sines and cosines of a patch's place along each axis, an equal share of the width each, the last axis
first.  Text stands beside the patches in the attention, and a picture (``image``) beside x.

Signals (C, L), images (C, H, W) and volumes (C, D, H, W) go the same way.

References: W. Peebles, S. Xie, "Scalable diffusion models with transformers" (arXiv 2212.09748); A. Dosovitskiy et
al., "An image is worth 16x16 words" (arXiv 2010.11929) for the patches; A. Nichol et al., "GLIDE" (arXiv 2112.10741)
for the context tokens beside the positions in one attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn.blocks import adaptive_norm, attend, check_patch, context_map, patchify, unpatchify, zeroed
from sfumato.nn.checkpointing import perhaps
from sfumato.nn.conditions import Conditions
from sfumato.nn.dropout import Dropout
from sfumato.nn.embedding import Embedding, check_input, time_features

FREQUENCIES = 256  # sines and cosines of the time, the paper's number


@dataclass(frozen=True)
class DiTConfig:
    """What a user chooses of a DiT; all else follows from the data."""

    patch: int = 2
    """Side of a patch; every axis of the data is a multiple of it."""
    width: int = 192
    """Channels of a patch's token; a multiple of `heads`, and of twice the number of axes."""
    depth: int = 6
    """Blocks, of one attention and two linear maps each."""
    heads: int = 6
    """Heads of each attention."""
    mlp_ratio: int = 4
    """Hidden layer of each block's MLP, as a multiple of `width`."""
    dropout: float = 0.0
    """Dropout inside the blocks' MLPs, while training."""
    time_scale: float = 1.0
    """The network's time is multiplied by this before it is embedded."""

    def __post_init__(self) -> None:
        for name in ("patch", "depth", "heads", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"dit: {name} = {getattr(self, name)}; it must be at least 1")
        if self.width < 4 or self.width % self.heads:
            raise ValueError(f"dit: width = {self.width}; it must be at least 4 and a multiple of heads = {self.heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dit: dropout = {self.dropout}; it must be in [0, 1)")


def grid_features(grid: Sequence[int], width: int) -> Tensor:
    """Sines and cosines of every place of a grid, in reading order: (prod(grid), width), the last axis first."""
    places = torch.meshgrid(*[torch.arange(n) for n in grid], indexing="ij")
    return torch.cat([time_features(each.flatten(), width // len(grid), 0.0) for each in reversed(places)], dim=1)


class Block(nn.Module):
    """Attention and MLP, each behind an adaptive norm and a gate: (B, N, width) -> the same shape."""

    def __init__(self, config: DiTConfig, context: int):
        super().__init__()
        width = config.width
        self.heads, self.dropout, self.again = config.heads, Dropout(config.dropout), False
        self.qkv = nn.Linear(width, 3 * width)
        self.context = context_map(context, width)
        self.seen = nn.Linear(width, width)
        self.inner = nn.Linear(width, config.mlp_ratio * width)
        self.outer = nn.Linear(config.mlp_ratio * width, width)

    def forward(self, h: Tensor, film: Tensor, context: Tensor | None) -> Tensor:
        """``film`` (B, 1, 6 width): scale, shift and gate of the attention, then of the MLP."""
        return perhaps(self.again, self._once, h, film, context)

    def _once(self, h: Tensor, film: Tensor, context: Tensor | None) -> Tensor:
        width = h.shape[2]
        attention, attention_gate, mlp, mlp_gate = film.split([2 * width, width] * 2, dim=2)
        seen = attend(self.qkv(adaptive_norm(h, attention)), self.heads, self.context, context)
        h = torch.addcmul(h, attention_gate, self.seen(seen))
        r = F.gelu(self.inner(adaptive_norm(h, mlp)), approximate="tanh")
        return torch.addcmul(h, mlp_gate, self.outer(self.dropout(r)))


class DiT(nn.Module):
    """A DiT for x of shape (B, *shape), ``shape = (C, *spatial)`` with one to three axes, each cut into patches.

    Its output is (B, out_channels, *spatial), in the dtype of x, and zero before training; ``out_channels`` is C
    unless said otherwise (2 C where the variance is learned).
    """

    positions: Tensor

    def __init__(
        self,
        config: DiTConfig,
        shape: tuple[int, ...],
        conditions: Conditions = Conditions(),  # noqa: B008 (frozen)
        out_channels: int | None = None,
    ):
        super().__init__()
        _check_shape(config, shape)
        self.config, self.shape, self.conditions = config, tuple(shape), conditions
        width, spatial = config.width, shape[1:]
        volume = config.patch ** len(spatial)
        self.embedding = Embedding(FREQUENCIES, width, conditions, config.time_scale)
        self.told = [*[6 * width] * config.depth, 2 * width]  # how many numbers each block is told, and the end
        self.film = zeroed(nn.Linear(width, sum(self.told)))
        self.stem = nn.Linear(volume * (shape[0] + conditions.concat), width)
        self.register_buffer("positions", grid_features([n // config.patch for n in spatial], width), persistent=False)
        self.blocks = nn.ModuleList(Block(config, conditions.context) for _ in range(config.depth))
        self.out = zeroed(nn.Linear(width, volume * (out_channels or shape[0])))

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """x (B, *shape), t (B,), conditions as in ``Conditions`` -> (B, out_channels, *spatial)."""
        check_input(x, t, self.shape)
        h = x.to(self.stem.weight.dtype)
        full = self.conditions.complete(cond, h)
        *films, last = self.film(F.silu(self.embedding(t, full)))[:, None].split(self.told, dim=2)
        h = torch.cat([h, full["image"]], dim=1) if "image" in full else h
        h = self.stem(patchify(h, self.config.patch)) + self.positions
        for block, film in zip(self.blocks, films, strict=True):
            h = block(h, film, full.get("context"))
        return unpatchify(self.out(adaptive_norm(h, last)), self.config.patch, self.shape[1:]).to(x.dtype)


def _check_shape(config: DiTConfig, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless data of this shape can be cut into patches and their places told."""
    dims = len(shape) - 1
    if dims not in (1, 2, 3) or min(shape) < 1:
        raise ValueError(f"dit: shape {tuple(shape)} is none of (C, L), (C, H, W), (C, D, H, W); for vectors use mlp")
    check_patch("dit", config.patch, shape)
    if config.width % (2 * dims):
        raise ValueError(
            f"dit: width = {config.width}; with {dims} axes it must be a multiple of {2 * dims}, "
            "a sine and a cosine for each axis"
        )
