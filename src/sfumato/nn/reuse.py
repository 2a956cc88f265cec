"""Deep features of a UNet used again at neighbouring steps of a sampler.

What comes up from the lower levels of a UNet changes slowly from step to step; the first level, at full resolution,
follows x_t.  Of every k calls with as many rows, the first asks the whole network and keeps

    d = what its lower levels send up to the first one,

and the k - 1 others ask the first level alone, between the stem and d.  That is an approximation, unlike all else that
makes sampling faster here: `sfumato reproduce reuse` measures its error.  What is kept depends on the calls before, so
a `Reuse` is made for one walk of one sampler and for no other.

X. Ma, G. Fang, X. Wang, "DeepCache: accelerating diffusion models for free" (arXiv 2312.00858).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from torch import Tensor, nn

from sfumato.nn.unet import UNet


@final
class Reuse(nn.Module):
    """A UNet whose lower levels are asked at every ``every``-th call, and where the number of rows changes."""

    def __init__(self, net: nn.Module, every: int):
        super().__init__()
        if every < 1:
            raise ValueError(
                f"reuse {every} came, allowed is 1 or more: every so many calls the whole network is asked"
            )
        if isinstance(net, UNet) and net._compiled_call_impl is not None:
            raise ValueError(
                f"reuse {every} came for a compiled network, whose first level alone was not compiled; take precision "
                "auto, or reuse 1"
            )
        if not isinstance(net, UNet):
            raise ValueError(f"reuse {every} came for a network of kind {type(net).__name__}, allowed is a UNet")
        self.net, self.every, self.calls = net, every, 0
        self.deep: Tensor | None = None

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        whole = self.deep is None or len(self.deep) != len(x) or self.calls >= self.every
        self.calls = 1 if whole else self.calls + 1
        y, self.deep = self.net.answer(x, t, cond, None if whole else self.deep)
        return y
