"""A classifier that is the encoder half of the UNet: as ADM guides by one, told how much noise its pictures hold.

    patches -> stem -> the UNet's way down -> its middle -> GroupNorm, silu -> mean over places = features
    logits = W features + b

Its blocks, its patches and the embedding of time are the UNet's own, so a `UNetConfig` says all of it.  A net for
clean pictures is told t = 0, always.

References: P. Dhariwal, A. Nichol, ADM (arXiv 2105.05233), sec. 4, whose classifier is this half with another pool.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn.blocks import CONV, fold, group_norm, zeroed
from sfumato.nn.conditions import Conditions
from sfumato.nn.embedding import Embedding, check_input
from sfumato.nn.unet import Blocks, UNetConfig, check_shape, each_told, walk_down


class ClassifierNet(nn.Module):
    """Logits (B, classes) of x (B, *shape), ``shape = (C, *spatial)``; before training they are all 0.

    ``width`` is the number of features D: the channels of the last level.
    """

    def __init__(self, config: UNetConfig, shape: tuple[int, ...], classes: int):
        super().__init__()
        check_shape(config, shape)
        if classes < 2:
            raise ValueError(f"classifier: {classes} classes came, allowed are 2 or more; give data with labels")
        self.config, self.shape, self.classes = config, tuple(shape), classes
        dims, volume = len(shape) - 1, config.patch ** (len(shape) - 1)
        blocks = Blocks(config, dims)
        self.stem = CONV[dims](volume * shape[0], config.channels, 3, padding=1)
        self.down, skips = blocks.down()
        self.width = skips[-1]
        self.middle = blocks.middle(self.width)
        self.norm = group_norm(self.width, config.groups, config.norm_eps)
        self.out = zeroed(nn.Linear(self.width, classes))
        embedded = 4 * config.channels
        self.embedding = Embedding(config.channels, embedded, Conditions(), config.time_scale, config.freq_shift)
        units: list[Any] = [*self.down, *self.middle]
        self.told = [unit.film for unit in units]
        self.film = nn.Linear(embedded, sum(self.told))

    def features(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, *shape), the network's time t (B,) -> (B, D), the dtype of x."""
        check_input(x, t, self.shape)
        film = each_told(self.film(F.silu(self.embedding(t, {}))), self.told)
        h = self.stem(fold(x.to(self.stem.weight.dtype), self.config.patch))
        h = walk_down(self.down, h, film)[-1]
        for unit in self.middle:
            h = unit(h, next(film), None)
        return F.silu(self.norm(h)).flatten(2).mean(2).to(x.dtype)

    def logits(self, features: Tensor) -> Tensor:
        """The last layer alone: (B, D) -> (B, classes)."""
        return self.out(features.to(self.out.weight.dtype)).to(features.dtype)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.logits(self.features(x, t))
