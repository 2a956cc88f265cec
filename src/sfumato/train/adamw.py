"""AdamW's step, the clipping before it and the averages after it, in one pass over the weights.

    g <- c g,   c = min(1, clip / |g|)                                   the gradient of all weights, held to a length
    m <- beta1 m + (1 - beta1) g,    v <- beta2 v + (1 - beta2) g^2
    w <- (1 - rate decay) w - rate m / (1 - beta1^k) / (sqrt(v / (1 - beta2^k)) + eps)
    a <- b a + (1 - b) w,            for every average, b = `averages.beta(k, length)`

These are a few operations a number, so a step lasts as long as memory takes: each array is read and written once in C
(adamw.c), for float32 on a processor.  Elsewhere PyTorch's fused AdamW does the middle, and the ends take a pass each.
The state is that of ``torch.optim.AdamW`` either way.

I. Loshchilov, F. Hutter, "Decoupled weight decay regularization" (arXiv 1711.05101).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.checkpoints import ema as averages
from sfumato.nn.compiled import library
from sfumato.train.ema import EMA

SOURCE = Path(__file__).with_suffix(".c")
MOST = 8  # averages that adamw.c has room for


@functools.cache
def _compiled() -> Any:
    c = library(SOURCE)
    if c is not None:
        pointer, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
        c.descend.argtypes, c.descend.restype = [*[pointer] * 6, number, number, *[real] * 8], None
    return c


def clipping(norm: float, clip: float) -> float:
    """c for a gradient of this norm; 1 where it is no number, which is for the caller to see."""
    return min(1.0, clip / norm) if norm > 0 else 1.0


def _plain(p: Tensor) -> bool:
    single = type(p) is nn.Parameter and p.device.type == "cpu" and p.dtype == torch.float32
    return single and p.is_contiguous() and p.grad is not None


def descend(optimiser: torch.optim.AdamW, net: nn.Module, ema: EMA, k: int, scale: float) -> None:
    """Step k, counted from 1, of all that learns, and of the averages of `net`, whose gradients are scaled before."""
    own = list(net.parameters())
    if not all(_plain(p) for p in own) or len(ema.tracks) > MOST or _compiled() is None:
        torch._foreach_mul_([p.grad for p in own if p.grad is not None], scale)
        optimiser.step()
        ema.update(net, k)
        return
    shares = [1 - averages.beta(k, length) for length in ema.tracks]
    tracked = {p: [track[i] for track in ema.tracks.values()] for i, p in enumerate(own)}
    for group in optimiser.param_groups:
        for p in group["params"]:
            if p in tracked:
                _one(p, optimiser.state[p], group, tracked[p], shares, scale)
            else:
                _one(p, optimiser.state[p], group, (), [], 1.0)


def _one(
    p: Tensor, state: dict[str, Any], group: dict[str, Any], tracks: Sequence[Tensor], shares: list[float], scale: float
) -> None:
    if not state:
        state["step"] = torch.zeros(())
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
    state["step"] += 1
    steps, (beta1, beta2), n = float(state["step"]), group["betas"], len(tracks)
    assert p.grad is not None
    grad = p.grad.contiguous()
    _compiled().descend(
        p.data_ptr(),
        grad.data_ptr(),
        state["exp_avg"].data_ptr(),
        state["exp_avg_sq"].data_ptr(),
        (ctypes.c_void_p * n)(*(x.data_ptr() for x in tracks)),
        (ctypes.c_double * n)(*shares),
        n,
        p.numel(),
        scale,
        group["lr"],
        group["weight_decay"],
        beta1,
        beta2,
        group["eps"],
        1 - beta1**steps,
        1 - beta2**steps,
    )
    torch.autograd.graph.increment_version(p)
