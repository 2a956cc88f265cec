"""Networks: what maps (x, t, cond) to a prediction.  They know shapes and conditions, and nothing of diffusion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from sfumato.nn.conditions import Conditions
from sfumato.nn.dit import DiT, DiTConfig
from sfumato.nn.mlp import MLP, MLPConfig
from sfumato.nn.unet import UNet, UNetConfig


@dataclass(frozen=True)
class Network:
    """A row of NETWORKS: ``build(config, shape, conditions, out_channels)`` is the network."""

    config: type[Any]
    build: Callable[..., nn.Module]
    summary: str


NETWORKS = {
    "unet": Network(UNetConfig, UNet, "UNet of DDPM and ADM: signals (C, L), images (C, H, W), volumes (C, D, H, W)"),
    "dit": Network(DiTConfig, DiT, "diffusion transformer with adaLN-Zero: signals, images, volumes, cut into patches"),
    "mlp": Network(MLPConfig, MLP, "residual MLP for vectors (D,)"),
}

NetworkConfig = UNetConfig | MLPConfig | DiTConfig

__all__ = [
    "MLP",
    "NETWORKS",
    "Conditions",
    "DiT",
    "DiTConfig",
    "MLPConfig",
    "Network",
    "NetworkConfig",
    "UNet",
    "UNetConfig",
]
