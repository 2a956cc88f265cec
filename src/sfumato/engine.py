"""How a network is run on the machine at hand: PRECISIONS, a row each.

    float32    PyTorch's own operations in float32, the exact mode
    bfloat16   inside the network, by autocast; weights, losses and what leaves it stay float32
    auto       bfloat16 where there is hardware for it: GPUs, processors with matrix tiles (AMX).  On other processors
               float32 with fewer and fused operations (`nn.winograd`, `nn.activated`): an error of a few millionths,
               where bfloat16 would be slower and a thousand times coarser
    compiled   with the precision of auto, by torch.compile; on a GPU with CUDA graphs.  A shape's first call takes
               up to minutes; what was compiled is cached between runs by PyTorch (TORCHINDUCTOR_CACHE_DIR)

Memory that is given back to the system and taken again comes page by page, which can cost a network a third of its
time; so `prepare` lets a process that runs the fast float32 keep what it has taken.
"""

from __future__ import annotations

import ctypes
import functools
import platform
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from sfumato.nn import activated, compiled, winograd
from sfumato.options import unknown


@dataclass(frozen=True)
class Engine:
    """autocast: the precision inside the network, None for that of its weights.  fast: fewer and fused operations.

    mode: torch.compile's, None where it is not used.
    """

    autocast: torch.dtype | None
    fast: bool
    mode: str | None = None


def _automatic(device: torch.device) -> Engine:
    if device.type == "cuda":
        tiles = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        tiles = bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
    return Engine(torch.bfloat16, False) if tiles else Engine(None, device.type == "cpu")


PRECISIONS: dict[str, Callable[[torch.device], Engine]] = {
    "float32": lambda device: Engine(None, False),
    "bfloat16": lambda device: Engine(torch.bfloat16, False),
    "auto": _automatic,
    "compiled": lambda device: Engine(
        _automatic(device).autocast, False, "reduce-overhead" if device.type == "cuda" else "default"
    ),
}


def here() -> str:
    """What `auto` is on this machine, in a line."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    engine = PRECISIONS["auto"](device)
    if not engine.fast:
        inside = engine.autocast or torch.float32
        return f"precision auto is {str(inside).removeprefix('torch.')} on this {device.type}"
    reason = compiled.why_not(winograd.SOURCE) or compiled.why_not(activated.SOURCE)
    how = "compiled operations" if reason is None else f"PyTorch's operations alone ({reason})"
    return f"precision auto is float32 by {how} on this {device.type}"


@functools.cache
def keep_memory() -> None:
    """Let this process keep the memory it frees, up to its peak, where the C library is glibc."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 2**26)
        mallopt(mmap_max, 0)


def prepare(net: nn.Module, precision: str) -> torch.dtype | None:
    """Let a network run as a row of PRECISIONS says; what its Denoiser is to autocast to.

    What is kept of its weights is forgotten, so this is also what to call after writing to them behind PyTorch's back.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    engine = PRECISIONS[precision](next(net.parameters()).device)
    compiled.use(net, engine.fast)
    if engine.fast:
        keep_memory()
    net._compiled_call_impl = None  # what another row made of it
    if engine.mode is not None:
        net.compile(mode=engine.mode)
    return engine.autocast
