"""Small C files of this room, compiled on the machine that runs them, once, and kept in the user's cache.

The machine's own compiler is asked for its own instruction set.  Where there is none, or it fails, ``library`` is
None, and its caller goes on in PyTorch; ``sfumato doctor`` and ``why_not`` say the reason.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

LANES = 16  # the compiled maps take channels that are multiples of this
# what is defined for pictures of a dtype (numbers.h)
HALF: dict[torch.dtype, tuple[str, ...]] = {torch.float32: (), torch.bfloat16: ("HALF",)}
# strict IEEE but for fused multiply-add; OpenMP is the one that PyTorch has already started
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")


def cache() -> Path:
    """Where compiled files are kept: XDG_CACHE_HOME/sfumato, or ~/.cache/sfumato."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sfumato"


def compiler() -> str | None:
    return next(
        (found for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (found := shutil.which(name))), None
    )


def _processor() -> str:
    """What -march=native depends on: homes are shared by unlike machines."""
    try:
        told = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in told.splitlines() if line.startswith(("flags", "Features", "model name"))}))


@functools.cache
def _built(source: Path, *names: str) -> ctypes.CDLL | str:
    """The library of a C file in which these names are defined, or why there is none."""
    cc = compiler()
    if platform.system() != "Linux":
        return f"they are compiled on Linux alone, and this is {platform.system()}"
    if cc is None:
        return "no C compiler; install gcc"
    text = "".join(file.read_text() for file in [source, *sorted(source.parent.glob("*.h"))])
    flags = [*FLAGS, *(f"-D{name}" for name in names)]
    key = hashlib.sha256("\n".join([text, *flags, cc, _processor()]).encode()).hexdigest()[:16]
    try:
        kept = cache() / f"{source.stem}-{key}.so"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=kept.parent) as fresh:
                built = Path(fresh) / kept.name
                subprocess.run([cc, *flags, str(source), "-o", str(built)], check=True, capture_output=True, text=True)
                built.replace(kept)
        return ctypes.CDLL(str(kept))
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or [str(error)]
        return f"{cc} failed: {next((line for line in said if 'error' in line), said[-1])}"
    except (OSError, RuntimeError) as error:  # a user may have no home
        return f"what is compiled cannot be kept: {error}; set XDG_CACHE_HOME"


def library(source: Path, *names: str) -> ctypes.CDLL | None:
    """The compiled C file in which these names are defined, or None where it cannot be had."""
    built = _built(source, *names)
    return None if isinstance(built, str) else built


def why_not(source: Path) -> str | None:
    """Why ``library`` is None, in a line; None if it is there."""
    built = _built(source)
    return built if isinstance(built, str) else None


def differentiating() -> bool:
    """Whether any derivative may be asked of what is computed now; else an autograd.Function is only a detour."""
    return torch.is_grad_enabled() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


@final
class Kept:
    """What is made of weights to be used faster, kept from call to call until they are replaced or written to.

    A write is seen by PyTorch's version of a tensor; one through `.data` or numpy is not, and wants `forget`.
    """

    def __init__(self) -> None:
        self._made: dict[Callable[..., Tensor], tuple[Any, tuple[Tensor, ...], Tensor]] = {}

    @staticmethod
    def may(*weights: Tensor) -> bool:
        """Whether weights stay as they are, have a version, and outlive the call, unlike those of torch.func."""
        other = any(w.requires_grad or w.is_inference() for w in weights)
        return not (other or torch._C._are_functorch_transforms_active())

    def __call__(self, way: Callable[..., Tensor], *weights: Tensor) -> Tensor:
        """way(*weights), of which the last one is kept for each way."""
        now = [(id(w), w.data_ptr(), w._version) for w in weights]
        if way not in self._made or self._made[way][0] != now:
            with torch.inference_mode(False), torch.no_grad():  # it may be used outside of where it was made
                self._made[way] = (now, weights, way(*weights))  # with the weights, so that no other gets their id
        return self._made[way][2]

    def forget(self) -> None:
        self._made.clear()

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()  # a copy's weights are others


def use(net: nn.Module, fast: bool) -> None:
    """Let every module of a network that knows a faster way take it where it can, or let none; all anew."""
    for module in net.modules():
        if hasattr(module, "fast"):
            module.fast = fast  # type: ignore[assignment]
        if isinstance(kept := getattr(module, "kept", None), Kept):
            kept.forget()
