"""What a training costs: parameters, operations, memory, and time by the number of GPUs.

Counted on the network itself, with tensors that have shapes and no values, so at once and for any size:

    P  parameters          F  operations of one row forwards          S  of one row forwards and backwards, about 3 F
    A  bytes that one row keeps between the two passes, in float32; in bfloat16 and with fused attention fewer

An operation is a product or a sum in a product of matrices or a convolution; all else is left out.  A process that
sees b rows at a time, of N processes, and tracks m averages of the weights, needs in bytes

    M = 4 P (W + copy) + b A                                                                               (1)
    W = weights 1 + gradients 1 + moments 2 + averages m  (+ 1 for N > 1: gradients on their way)    data parallel
    W = (1 + 1 + 2 + m)/N,  and the block that is at work                                            fully sharded

where the copy, 1, is the averaged network that is sampled and measured.  A step on a global batch B takes

    T = C + max(0, R - 2 C/3) + D,   C = S B/(N e f),   R = n (N - 1)/N 4 P/w,   D = (10 + 3 m) 4 P/r      (2)

with f operations a second of one GPU, of which a share e is reached, w bytes a second that each sends round the ring,
and r bytes a second of its memory.  n = 2 passes for the gradients' sum, n = 3 where weights are gathered twice and
gradients scattered once.  What is sent hides behind the backward pass, two thirds of C, as far as it can.  D is the
step of the weights, as `train.adamw` makes it on a GPU: the norm of the gradients reads them, clipping reads and writes
them, AdamW reads four arrays and writes three, each average reads two and writes one; fully sharded it is an Nth.
Rates are the makers', and e is a guess.  What is left out, launching each operation and the first answer of a network,
is nothing beside a large network's step and more than all of a small one's.

P. Patarasuk, X. Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations" (2009) for the ring;
S. Rajbhandari et al., "ZeRO", arXiv:1910.02054 for what is sharded; S. Li et al., "PyTorch Distributed",
arXiv:2006.15704 for the overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import FlopCounterMode

from sfumato.model import ModelConfig, build_network
from sfumato.nn import checkpointing

FLOAT = 4  # bytes
EFFICIENCY = 0.3  # e of (2) unless measured


@dataclass(frozen=True)
class Cost:
    """P, F, S and A of a network."""

    parameters: int
    forward: int
    step: int
    activations: int


@dataclass(frozen=True)
class Machine:
    """Machines of `gpus` GPUs each.

    rate: operations a second of a GPU in bfloat16.  memory: bytes of one.  reading: bytes a second from and to it.
    inside, network: bytes a second that a GPU sends to others of its machine, and that a machine sends to others.
    """

    rate: float
    memory: float
    reading: float
    inside: float
    network: float
    gpus: int = 8

    def bandwidth(self, processes: int) -> float:
        """w of (2): the slowest part of the ring."""
        return self.inside if processes <= self.gpus else min(self.inside, self.network)


# from the data sheets of DGX A100 (eight links of 200 Gb/s to other machines) and DGX H100 (400 Gb/s)
MACHINES = {
    "A100": Machine(rate=312e12, memory=80e9, reading=2.039e12, inside=300e9, network=200e9),
    "H100": Machine(rate=989e12, memory=80e9, reading=3.35e12, inside=450e9, network=400e9),
}


def _place(x: Tensor) -> int:
    return StorageWeakRef(x.untyped_storage()).cdata


def count(net: nn.Module, *inputs: Tensor) -> Cost:
    """The cost of ``net(*inputs)`` in training, by row; inputs (B, ...), on the device meta to compute nothing."""
    parameters, rows = list(net.parameters()), len(inputs[0])
    own = {_place(p) for p in parameters}
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        if _place(x) not in own:
            kept[_place(x)] = x
        return x

    def given(module: nn.Module, args: tuple[Any, ...], told: dict[str, Any]) -> None:
        for x in (*args, *told.values()):
            if isinstance(x, Tensor):
                keep(x)

    # what a block is computed again from is kept without being saved
    again = [module for module in net.modules() if getattr(module, "again", False)]
    looks = [module.register_forward_pre_hook(given, with_kwargs=True) for module in again]
    net.train()
    with FlopCounterMode(display=False) as forwards, saved_tensors_hooks(keep, lambda x: x):
        y = net(*inputs)
    for look in looks:
        look.remove()
    with FlopCounterMode(display=False) as backwards:
        y.sum().backward()
    forward = forwards.get_total_flops() // rows
    return Cost(
        parameters=sum(p.numel() for p in parameters),
        forward=forward,
        step=forward + backwards.get_total_flops() // rows,
        activations=sum(x.untyped_storage().nbytes() for x in kept.values()) // rows,
    )


def of_config(config: ModelConfig, gradient_checkpointing: bool = False) -> Cost:
    """The cost of the network of a model's config; gradient_checkpointing: with its blocks computed again backwards."""
    with torch.device("meta"):
        net = build_network(config)
        checkpointing.use(net, gradient_checkpointing)
        return count(net, torch.empty(1, *config.shape), torch.empty(1))


def memory(cost: Cost, rows: int, *, processes: int = 1, averages: int = 2, sharded: bool = False) -> float:
    """(1), the bytes of one process that sees so many rows at a time."""
    trained = 4 + averages
    if sharded:
        whole = trained / processes
    else:
        whole = trained + (processes > 1)
    return FLOAT * cost.parameters * (whole + 1) + rows * cost.activations


def seconds(
    cost: Cost,
    batch: int,
    machine: Machine,
    gpus: int,
    *,
    averages: int = 2,
    efficiency: float = EFFICIENCY,
    sharded: bool = False,
) -> float:
    """(2), the time of a step."""
    computing = cost.step * batch / (gpus * efficiency * machine.rate)
    passes = 3 if sharded else 2
    sending = passes * (gpus - 1) / gpus * FLOAT * cost.parameters / machine.bandwidth(gpus)
    stepping = (10 + 3 * averages) * FLOAT * cost.parameters / machine.reading / (gpus if sharded else 1)
    return computing + max(0.0, sending - 2 / 3 * computing) + stepping


HEADS = ("GPUs", "rows each", "memory each", "step", "rows/s", "whole training")


def table(
    cost: Cost,
    batch: int,
    steps: int,
    *,
    averages: int = 2,
    parts: int = 1,
    gpus: Sequence[int] = (1, 8, 64),
    efficiency: float = EFFICIENCY,
    sharded: bool = False,
) -> list[tuple[str, ...]]:
    """A line for every kind of machine and every number of GPUs that the batch can be dealt to.

    parts: in which each process takes its rows of a step, one after the other.
    """
    lines: list[tuple[str, ...]] = []
    for name, machine in MACHINES.items():
        for n in gpus:
            if batch % (n * parts):
                continue
            rows = batch // (n * parts)
            step = seconds(cost, batch, machine, n, averages=averages, efficiency=efficiency, sharded=sharded)
            needed = memory(cost, rows, processes=n, averages=averages, sharded=sharded)
            fits = "" if needed <= machine.memory else ", too much"
            hours = steps * step / 3600
            lines.append(
                (
                    f"{n} x {name}",
                    f"{rows}",
                    f"{needed / 2**30:.2f} GiB{fits}",
                    f"{1000 * step:.3g} ms",
                    f"{batch / step:,.0f}",
                    f"{hours:.2g} h"
                    if hours >= 1
                    else f"{60 * hours:.2g} min"
                    if 60 * hours >= 1
                    else "under a minute",
                )
            )
    return lines
