"""How the launcher shares a training: data parallel, or fully sharded (FSDP 2); and sharded tensors as whole ones.

Data parallel, every process holds all weights.  Fully sharded, `accelerate launch --use_fsdp --fsdp_version 2`, each
holds its part of every parameter, gradient, moment and average; a layer's weights come together while they are used.
A checkpoint is the same file either way: `gathered` brings the parts to the main process, `part_of` takes them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.processes import TIMEOUT


def accelerator() -> Any:
    """accelerate's view of how this process was launched; ValueError for what a training cannot be shared by."""
    from accelerate import Accelerator, DistributedType
    from accelerate.utils import InitProcessGroupKwargs

    patience = InitProcessGroupKwargs(timeout=TIMEOUT)
    found = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no", kwargs_handlers=[patience])
    foreign = found.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
    if foreign or (found.distributed_type == DistributedType.FSDP and not found.is_fsdp2):
        raise ValueError(
            f"accelerate was launched with {found.distributed_type.value}; a training is shared data parallel "
            "(--multi_gpu) or fully sharded (--use_fsdp --fsdp_version 2)"
        )
    return found


def prepared(accelerator: Any, net: nn.Module) -> nn.Module:
    """The network as the launcher wants it shared; a sharded one is the same object with other parameters."""
    if not accelerator.is_fsdp2:
        return accelerator.prepare(net)
    unused = torch.optim.SGD(net.parameters())  # accelerate shards beside an optimiser alone; ours is of the parts
    return accelerator.prepare(net, unused)[0]


def is_sharded(x: Tensor) -> bool:
    return hasattr(x, "full_tensor")


@torch.no_grad()
def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this process holds of each tensor, sharing its memory."""
    return [x.to_local() if is_sharded(x) else x for x in tensors]  # type: ignore[attr-defined]


def whole(x: Tensor) -> Tensor:
    """All of a tensor; of a sharded one every process must ask."""
    return x.full_tensor() if is_sharded(x) else x  # type: ignore[attr-defined]


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors, in the processes that keep them; every process takes part."""
    found = {}
    for name, x in tensors.items():
        full = whole(x).cpu() if is_sharded(x) else x
        if keep:
            found[name] = full
    return found


def part_of(x: Tensor, like: Tensor) -> Tensor:
    """x, which every process has whole, on the device of `like` and sharded as it is."""
    x = x.to(like.device)
    if not is_sharded(like) or x.shape != like.shape:  # Adam's step, one number, stays whole
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x, like.device_mesh, like.placements)  # type: ignore[attr-defined]
