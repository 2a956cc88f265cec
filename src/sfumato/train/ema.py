"""The averages a training tracks; their maths, and making other lengths, is `checkpoints.ema`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from sfumato.checkpoints import ema as averages
from sfumato.train.sharded import local, part_of, whole


@final
class EMA:
    """One power-function average a length, float32, in the order of the network's parameters, sharded as they are."""

    def __init__(self, net: nn.Module, lengths: tuple[float, ...]):
        self.names = [name for name, _ in net.named_parameters()]
        self.tracks = {length: [p.detach().clone() for p in net.parameters()] for length in lengths}

    def update(self, net: nn.Module, step: int) -> None:
        """ema_k = beta_k ema_{k-1} + (1 - beta_k) w_k, k = step counted from 1."""
        weights = local(p.detach() for p in net.parameters())
        for length, track in self.tracks.items():
            torch._foreach_lerp_(local(track), weights, 1 - averages.beta(step, length))

    def copy_to(self, net: nn.Module, length: float) -> None:
        """Write an average into another, whole network of the same kind; every process takes part."""
        with torch.no_grad():
            torch._foreach_copy_(list(net.parameters()), [whole(x) for x in self.tracks[length]])

    def tensors(self) -> dict[str, Tensor]:
        return {f"{a}/{name}": x for a, track in self.tracks.items() for name, x in zip(self.names, track, strict=True)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for length, track in self.tracks.items():
            saved = [part_of(tensors[f"{length}/{name}"], x) for name, x in zip(self.names, track, strict=True)]
            torch._foreach_copy_(local(track), local(saved))
