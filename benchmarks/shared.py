"""What all sides have in common: the pictures, the judge, the network made by diffusers, and the state of a training.

The rooms of sfumato are imported where they are used, so that a peer's memory is its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from .terms import Options

if TYPE_CHECKING:
    from sfumato.data import Splits

SIDE = 28  # pixels of MNIST
NOISE_PICTURES = 512  # pictures 32x32 of noise, where only the time of a step matters


@cache
def pictures(name: str) -> Splits:
    """A data set by sfumato's own data room, for all sides."""
    from sfumato import data

    return data.load(data.Data(name))


def training_pictures(options: Options) -> np.ndarray:
    """uint8 (N, C, S, S): MNIST, padded by black to the size asked for; or noise, for the network of CIFAR-10."""
    if options["pictures"] == "noise":
        return np.random.default_rng(0).integers(0, 256, (NOISE_PICTURES, 3, 32, 32), dtype=np.uint8)
    rows = pictures("mnist").train
    x = np.asarray(rows.take(np.arange(len(rows)))["x"])
    edge = (options["size"] - SIDE) // 2
    return x if edge == 0 else np.pad(x, ((0, 0), (0, 0), (edge, edge), (edge, edge)))


def batches(rows: np.ndarray, batch: int) -> DataLoader[tuple[Tensor, ...]]:
    """The pictures, uint8, in random order, from memory: what the peers' own loops read from files."""
    return DataLoader(TensorDataset(torch.from_numpy(rows)), batch, shuffle=True, drop_last=True)


def endless(loader: DataLoader[tuple[Tensor, ...]]) -> Iterator[Tensor]:
    while True:
        for (x,) in loader:
            yield x


def seen(x: np.ndarray) -> np.ndarray:
    """Pictures (N, S, S, 1) in [0, 1] as uint8 (N, 28, 28, 1), without what they were padded with."""
    edge = (x.shape[1] - SIDE) // 2
    return np.rint(255 * x[:, edge : edge + SIDE, edge : edge + SIDE].clip(0, 1)).astype(np.uint8)


def in_batches(n: int, rows: int) -> Iterator[int]:
    """The sizes of the batches of n pictures."""
    return (min(rows, n - start) for start in range(0, n, rows))


def frechet(images: np.ndarray, rows: int, features: str, name: str) -> float:
    """FD(features) of pictures uint8 (N, H, W, C) against the test pictures of a data set, so many at most."""
    from sfumato.metrics import FrechetDistance
    from sfumato.tasks.features import feature_network
    from sfumato.tasks.scores import pictures_of

    network, splits = feature_network(features), pictures(name)
    real = pictures_of(splits.held_out, min(rows, len(splits.held_out)), splits.info.levels)
    metric = FrechetDistance(network.look(real).features)
    metric.update(network.look(images).features)
    return metric.compute()


def half(precision: str) -> bool:
    """Whether a precision means bfloat16 on this machine; for "auto" it is said by sfumato's own rule."""
    from sfumato.engine import PRECISIONS

    return PRECISIONS[precision](torch.device("cpu")).autocast is torch.bfloat16


def mixed(precision: str) -> str:
    """The same as accelerate calls it, which both peers train with."""
    return "bf16" if half(precision) else "no"


# the network that diffusers made ------------------------------------------------------------------------------------


def network(options: Options) -> Path:
    return Path(options["runs"]) / "networks" / options["network"]


def expected(folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """x (8, 3, 32, 32), steps (8,) counted from 0, and what diffusers answers in float32."""
    tensors = load_file(folder / "expected.safetensors")
    return tensors["x"], tensors["steps"], tensors["y"]


# the state of a peer's training -------------------------------------------------------------------------------------


def save(
    folder: Path,
    parts: Mapping[str, Mapping[str, Tensor]],
    optimiser: torch.optim.Optimizer,
    number: int,
    seconds: float,
) -> None:
    """Tensors by part, Adam's moments, the steps made and their seconds; written whole or not at all."""
    from sfumato.checkpoints import native

    moments = {f"{i}/{key}": x for i, state in optimiser.state_dict()["state"].items() for key, x in state.items()}
    whole = {"adam": moments, **parts}
    tensors = {f"{part}/{name}": x for part, inside in whole.items() for name, x in inside.items()}
    native.write_folder(folder / "state", "state", tensors, {"number": number, "seconds": seconds})


def restored(folder: Path, optimiser: torch.optim.Optimizer) -> tuple[dict[str, dict[str, Tensor]], int, float]:
    """What `save` kept, the moments back in the optimiser; nothing of it, step 0 and no seconds if it kept nothing."""
    from sfumato.checkpoints import native

    if not (folder / "state").exists():
        return {}, 0, 0.0
    tensors, document = native.read_state(folder / "state")
    parts: dict[str, dict[str, Tensor]] = {}
    for key, x in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = x
    moments: dict[int, dict[str, Tensor]] = {}
    for key, x in parts.pop("adam").items():
        number, _, name = key.partition("/")
        moments.setdefault(int(number), {})[name] = x
    optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
    return parts, document["number"], document["seconds"]
