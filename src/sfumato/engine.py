"""How a network is run on the machine at hand: PRECISIONS, a row each.

    float32        PyTorch's own operations in float32, the exact mode
    float32-fast   float32 with fewer and fused operations (`nn.winograd`, `nn.activated`) on processors: an error of
                   a few millionths
    bfloat16       inside the network, by autocast, with the same fused operations; weights, losses and what leaves
                   it stay float32; an error of about a hundredth
    auto           bfloat16 where it is multiplied faster than float32: GPUs that have it, processors with matrix tiles
                   (AMX), AMD's with AVX512-BF16.  On all others it is slower, and auto is float32-fast
    compiled       with the precision of auto, by torch.compile; on a GPU with CUDA graphs.  A shape's first call takes
                   up to minutes; what was compiled is cached between runs by PyTorch (TORCHINDUCTOR_CACHE_DIR)

Memory that is given back to the system and taken again comes page by page, which can cost a network a third of its
time; so `prepare` lets a process that runs the fast operations keep what it has taken.
"""

from __future__ import annotations

import ctypes
import functools
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sfumato.nn import activated, compiled, filters
from sfumato.options import unknown

AMX, AVX512 = "_is_amx_tile_supported", "_is_avx512_bf16_supported"  # what torch.cpu knows of a processor


@dataclass(frozen=True)
class Engine:
    """autocast: the precision inside the network, None for that of its weights.  fast: fewer and fused operations.

    mode: torch.compile's, None where it is not used.
    """

    autocast: torch.dtype | None
    fast: bool
    mode: str | None = None


@functools.cache
def _vendor() -> str:
    """Who made this processor, where Linux says it."""
    try:
        told = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("vendor_id")), "")


def multiplies_bfloat16(kind: str) -> bool:
    """Whether products of matrices are faster in bfloat16 than in float32 on a `cuda` or `cpu`.

    Processors of both vendors may have AVX512-BF16: on AMD's a product takes half of float32's time, on Intel's that
    have no AMX, twice.
    """
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = {name: bool(getattr(torch.cpu, name, lambda: False)()) for name in (AMX, AVX512)}
    return kind == "cpu" and (has[AMX] or (has[AVX512] and _vendor() == "AuthenticAMD"))


def _automatic(device: torch.device) -> Engine:
    return Engine(torch.bfloat16 if multiplies_bfloat16(device.type) else None, device.type == "cpu")


PRECISIONS: dict[str, Callable[[torch.device], Engine]] = {
    "float32": lambda device: Engine(None, False),
    "float32-fast": lambda device: Engine(None, device.type == "cpu"),
    "bfloat16": lambda device: Engine(torch.bfloat16, device.type == "cpu"),
    "auto": _automatic,
    "compiled": lambda device: Engine(
        _automatic(device).autocast, False, "reduce-overhead" if device.type == "cuda" else "default"
    ),
}


def here() -> str:
    """What `auto` is on this machine, in a line."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    engine = PRECISIONS["auto"](device)
    inside = f"precision auto is {str(engine.autocast or torch.float32).removeprefix('torch.')}"
    if not engine.fast:
        return f"{inside} on this {device.type}"
    reason = compiled.why_not(filters.SOURCE) or compiled.why_not(activated.SOURCE)
    how = "compiled operations" if reason is None else f"PyTorch's operations alone ({reason})"
    return f"{inside} by {how} on this {device.type}"


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
