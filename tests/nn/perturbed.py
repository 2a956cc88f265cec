"""A network that is no longer new: zero-initialised maps would hide what comes before them."""

from __future__ import annotations

from typing import TypeVar

import torch

Module = TypeVar("Module", bound=torch.nn.Module)


def perturbed(net: Module, scale: float = 0.2) -> Module:
    """The net with normal noise added to every parameter."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return net
