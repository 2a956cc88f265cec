"""Which tensors of diffusers' ``UNet2DModel`` make each tensor of our UNet.

Ours keeps query, key and value in one map, and one map for what the embedding says to all blocks: theirs, stacked along
the first axis, in the order of ``UNet.told``.  Blocks that keep their width have no ``conv_shortcut``, and we no skip.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sfumato.nn import UNet, UNetConfig

ENDS = {
    "stem": "conv_in",
    "embedding.time.0": "time_embedding.linear_1",
    "embedding.time.2": "time_embedding.linear_2",
    "embedding.label": "class_embedding",
    "norm": "conv_norm_out",
    "out": "conv_out",
}
RESIDUAL = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "skip": "conv_shortcut"}
ATTENTION = {"norm": ("group_norm",), "qkv": ("to_q", "to_k", "to_v"), "out": ("to_out.0",)}
OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # what attention was called before


def renamed(key: str) -> str:
    """A key of theirs as it is called today."""
    rest, _, kind = key.rpartition(".")
    path, _, name = rest.rpartition(".")
    return f"{path}.{OLD[name]}.{kind}" if name in OLD and ".attentions." in path else key


def units(config: UNetConfig) -> Iterator[tuple[str, str, str]]:
    """(kind, our name, their name) of every block, in our order; kind is residual, attention or convolution."""
    last = len(config.multipliers) - 1
    resample = "residual" if config.residual_resampling else "convolution"

    def stage(ours: str, theirs: str, index: int, attend: bool) -> Iterator[tuple[str, str, str]]:
        yield "residual", f"{ours}.residual", f"{theirs}.resnets.{index}"
        if attend:
            yield "attention", f"{ours}.attention", f"{theirs}.attentions.{index}"

    unit = 0
    for level in range(last + 1):
        for block in range(config.blocks):
            yield from stage(f"down.{unit}", f"down_blocks.{level}", block, level in config.attention)
            unit += 1
        if level < last:
            yield resample, f"down.{unit}", f"down_blocks.{level}.downsamplers.0"
            unit += 1
    yield from stage("middle.0", "mid_block", 0, True)
    yield from stage("middle.1", "mid_block", 1, False)
    unit = 0
    for level in range(last, -1, -1):
        for block in range(config.blocks + 1):
            yield from stage(f"up.{unit}", f"up_blocks.{last - level}", block, level in config.attention)
            unit += 1
        if level > 0:
            yield resample, f"up.{unit}", f"up_blocks.{last - level}.upsamplers.0"
            unit += 1


def modules(config: UNetConfig) -> dict[str, tuple[str, ...]]:
    """Our module -> their modules, to be stacked along the first axis."""
    table: dict[str, tuple[str, ...]] = {ours: (theirs,) for ours, theirs in ENDS.items()}
    film = []
    for kind, ours, theirs in units(config):
        if kind == "residual":
            table |= {f"{ours}.{a}": (f"{theirs}.{b}",) for a, b in RESIDUAL.items()}
            film.append(f"{theirs}.time_emb_proj")
        elif kind == "attention":
            table |= {f"{ours}.{a}": tuple(f"{theirs}.{each}" for each in b) for a, b in ATTENTION.items()}
        else:
            table[f"{ours}.conv"] = (f"{theirs}.conv",)
    return table | {"film": tuple(film)}


def from_theirs(state: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """Their state dict as ours."""
    return {
        f"{ours}.{kind}": torch.cat([state[f"{each}.{kind}"] for each in theirs])
        for ours, theirs in modules(config).items()
        for kind in ("weight", "bias")
        if f"{theirs[0]}.{kind}" in state
    }


def to_theirs(state: Mapping[str, Tensor], net: UNet) -> dict[str, Tensor]:
    """The state dict of a network like `net` as theirs: views of it."""
    made: dict[str, Tensor] = {}
    for ours, theirs in modules(net.config).items():
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in state:
                x = state[f"{ours}.{kind}"]
                parts = x.split([n for n in net.told if n]) if ours == "film" else x.chunk(len(theirs))
                made |= {f"{each}.{kind}": part for each, part in zip(theirs, parts, strict=True)}
    return made
