"""Which tensors of a diffusers ``UNet2DModel`` make each tensor of our UNet.

Ours keeps query, key and value in one map, and one map for what the embedding says to all blocks: theirs, stacked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sfumato.nn import UNetConfig

ENDS = {
    "stem": "conv_in",
    "embedding.time.0": "time_embedding.linear_1",
    "embedding.time.2": "time_embedding.linear_2",
    "norm": "conv_norm_out",
    "out": "conv_out",
}
RESIDUAL = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "skip": "conv_shortcut"}
ATTENTION = {"norm": ("group_norm",), "qkv": ("to_q", "to_k", "to_v"), "out": ("to_out.0",)}


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


def from_diffusers(state: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """Their state dict as ours.  Blocks that keep their width have no ``conv_shortcut``, and we no ``skip``."""
    return {
        f"{ours}.{kind}": torch.cat([state[f"{each}.{kind}"] for each in theirs])
        for ours, theirs in modules(config).items()
        for kind in ("weight", "bias")
        if f"{theirs[0]}.{kind}" in state
    }
