"""How a network is told the time, label, vector and span: one embedding, a row each, for all of its blocks.

    features(t) = [sin(w_k t), cos(w_k t)],    w_k = 10000^(-k / (K - shift)),    k = 0..K-1
    embedding   = MLP(features(t)) + table[label] + W vector + MLP'(features(span))

MLP' starts at zero: a new network answers the same for every span.  A network in float64 embeds its times in float64,
every other one in float32 whatever the precision around.

References: A. Vaswani et al., "Attention is all you need" (arXiv 1706.03762) for the sinusoids; J. Ho, A. Jain,
P. Abbeel, "Denoising diffusion probabilistic models" (arXiv 2006.11239), whose shift is 1; P. Dhariwal, A. Nichol,
"Diffusion models beat GANs on image synthesis" (ADM, arXiv 2105.05233), whose shift is 0, for the sum with the label;
Z. Geng et al., "Mean flows for one-step generative modeling" (arXiv 2505.13447) for the span beside the time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sfumato.nn.blocks import zeroed
from sfumato.nn.conditions import Conditions


def time_features(t: Tensor, width: int, shift: float = 1.0) -> Tensor:
    """Sines, then cosines, of t (B,) at width/2 frequencies from 1 down to about 1/10000: (B, width).

    In float32, or in float64 where t is.
    """
    half = width // 2
    t = t if t.dtype == torch.float64 else t.float()
    k = torch.arange(half, device=t.device, dtype=t.dtype)
    angle = t[:, None] * torch.exp(k * (-math.log(10_000) / (half - shift)))
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class Embedding(nn.Module):
    """(t, label, vector, span) -> (B, width); t and span are multiplied by ``time_scale`` first."""

    def __init__(self, features: int, width: int, conditions: Conditions, time_scale: float, shift: float = 1.0):
        super().__init__()
        self.features, self.time_scale, self.shift = features, time_scale, shift
        self.time = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(conditions.classes + 1, width) if conditions.classes else None  # last row: no label
        self.vector = nn.Linear(conditions.vector, width) if conditions.vector else None
        self.span: nn.Module | None = None
        if conditions.span:
            self.span = nn.Sequential(nn.Linear(features, width), nn.SiLU(), zeroed(nn.Linear(width, width)))

    def forward(self, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """t (B,) and complete conditions -> (B, width)."""
        out: Tensor = self.time(self._features(t))
        if self.label is not None:
            out = out + self.label(cond["label"])
        if self.vector is not None:
            out = out + self.vector(cond["vector"])
        if self.span is not None:
            out = out + self.span(self._features(cond["span"]))
        return out

    def _features(self, t: Tensor) -> Tensor:
        dtype = next(self.parameters()).dtype
        t = t.to(torch.promote_types(dtype, torch.float32))
        return time_features(t * self.time_scale, self.features, self.shift).to(dtype)


def check_input(x: Tensor, t: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless x is (B, *shape) and t is (B,)."""
    if x.shape[1:] != shape or x.ndim != len(shape) + 1:
        raise ValueError(f"x has shape {tuple(x.shape)}, this network takes (B, {', '.join(map(str, shape))})")
    if t.shape != x.shape[:1]:
        raise ValueError(f"t has shape {tuple(t.shape)}, allowed is ({len(x)},): one time each row of x")
