"""Learned log-variance weighting: how much of each noise level's loss is beyond learning.

    L = exp(-u(t)) l + u(t),   least where u = log E[l | t]                                                (1)

so every noise level comes to weigh alike, whatever its weighting.  u is a linear map of Fourier features of
logsnr(t)/8, trained beside the network and left out of the model; it starts at 0, where (1) is l itself.

T. Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", arXiv:2312.02696, sec. 2.3 and
app. B; A. Kendall, Y. Gal, "Multi-Task Learning Using Uncertainty", arXiv:1705.07115
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

FREQUENCIES = 32


@final
class Uncertainty(nn.Module):
    """u of (1), for logsnr (B,) -> (B,) float32."""

    def __init__(self) -> None:
        super().__init__()
        self.frequency: Tensor
        self.register_buffer("frequency", torch.arange(FREQUENCIES) / 2, persistent=False)
        self.out = nn.Linear(2 * FREQUENCIES, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, logsnr: Tensor) -> Tensor:
        phase = (logsnr.clamp(-30, 30) / 8).to(self.frequency)[:, None] * self.frequency
        return self.out(torch.cat([phase.cos(), phase.sin()], 1))[:, 0]
