"""A residual MLP for vectors.

    h_0     = W x + b
    h_{l+1} = h_l + W' dropout(silu(W ((1 + scale_l(e)) LayerNorm(h_l) + shift_l(e))))        l = 0..depth-1
    y       = W_out ((1 + scale(e)) h_depth + shift(e))

with e the embedding of time and conditions.  The stream from x to y is linear at any one time, so what Gaussian data
ask for, a linear map with coefficients that move with t, is within easy reach; the blocks add what is not Gaussian.
W' and W_out start at zero.

Reference: W. Peebles, S. Xie, "Scalable diffusion models with transformers" (arXiv 2212.09748) for the adaptive
layer norm whose branch starts at zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn.blocks import adaptive_norm, modulate, zeroed
from sfumato.nn.conditions import Conditions
from sfumato.nn.dropout import Dropout
from sfumato.nn.embedding import Embedding, check_input


@dataclass(frozen=True)
class MLPConfig:
    """What a user chooses of an MLP; all else follows from the data."""

    width: int = 256
    """Width of the hidden layers; even."""
    depth: int = 4
    """Residual blocks, of two linear maps each."""
    dropout: float = 0.0
    """Dropout inside the residual blocks, while training."""
    time_scale: float = 1.0
    """The network's time is multiplied by this before it is embedded."""

    def __post_init__(self) -> None:
        if self.width < 4 or self.width % 2:
            raise ValueError(f"mlp: width = {self.width}; it must be even and at least 4")
        if self.depth < 1:
            raise ValueError(f"mlp: depth = {self.depth}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"mlp: dropout = {self.dropout}; it must be in [0, 1)")


class MLP(nn.Module):
    """An MLP for x of shape (B, D), ``shape = (D,)``; conditions label, vector and span.

    Its output is (B, out_channels), in the dtype of x, and zero before training; ``out_channels`` is D unless said
    otherwise (2 D where the variance is learned).
    """

    def __init__(
        self,
        config: MLPConfig,
        shape: tuple[int, ...],
        conditions: Conditions = Conditions(),  # noqa: B008 (frozen)
        out_channels: int | None = None,
    ):
        super().__init__()
        if len(shape) != 1 or shape[0] < 1:
            raise ValueError(f"mlp: shape {tuple(shape)} is not (D,); for signals, images and volumes use unet or dit")
        if conditions.context or conditions.concat:
            raise ValueError(
                f"mlp: {conditions}; it takes the conditions label, vector and span, for others use unet or dit"
            )
        self.config, self.shape, self.conditions = config, tuple(shape), conditions
        width = config.width
        self.embedding = Embedding(width, width, conditions, config.time_scale)
        self.film = nn.Linear(width, 2 * width * (config.depth + 1))
        self.stem = nn.Linear(shape[0], width)
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(config.depth))
        self.dropout = nn.ModuleList(Dropout(config.dropout) for _ in range(config.depth))
        self.outer = nn.ModuleList(zeroed(nn.Linear(width, width)) for _ in range(config.depth))
        self.out = zeroed(nn.Linear(width, out_channels or shape[0]))

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """x (B, D), t (B,), conditions as in ``Conditions`` -> (B, out_channels)."""
        check_input(x, t, self.shape)
        h = x.to(self.stem.weight.dtype)
        full = self.conditions.complete(cond, h)
        *films, last = self.film(F.silu(self.embedding(t, full))).chunk(self.config.depth + 1, dim=1)
        h = self.stem(h)
        for inner, dropout, outer, film in zip(self.inner, self.dropout, self.outer, films, strict=True):
            h = h + outer(dropout(F.silu(inner(adaptive_norm(h, film)))))
        return self.out(modulate(h, last)).to(x.dtype)
