"""A run so small that a test can afford it, and what it leaves behind."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sfumato.checkpoints import native
from sfumato.data import Info
from sfumato.model import Model, Sampling, build_network
from sfumato.nn import UNetConfig
from sfumato.recipes import fit
from sfumato.train import Loss, Optimiser, Run, Training
from sfumato.train.run import model_config
from sfumato.train.trainer import train

COMMAND = "sfumato train tiny"
NETWORK = UNetConfig(channels=8, multipliers=(1, 2), blocks=1, groups=4)


def tiny(**changes: Any) -> Run:
    """A Run on digits of a few seconds; `changes` are fields of Run."""
    usual: dict[str, Any] = {
        "network": NETWORK,
        "schedule": "cosine:steps=20",
        "loss": Loss(times="stratified"),
        "optimiser": Optimiser(warmup=5),
        "sampling": Sampling(steps=4),
        "steps": 48,
        "batch": 16,
        "precision": "float32",
        "snapshots": 16,
        "log_every": 4,
        "save_every": 16,
        "evaluate_every": 16,
        "sample_every": 1000,
    }
    return Run(**{**usual, **changes})


def silent(*anything: Any) -> None:
    """Nothing is said."""


def train_tiny(run: Run, out: Path, init: Model | None = None) -> Training:
    return fit(run, out, init, COMMAND, silent, silent)


def steps_of(run: Run, out: Path) -> tuple[Training, list[float]]:
    """A training run to its end without its files, and the losses on the way."""
    training = Training(run, out, say=silent, resume=False)
    return training, [step.loss for step in train(training)]


@cache
def trained() -> Path:
    """The folder of one finished tiny run, for all tests that only read it."""
    out = Path(tempfile.mkdtemp(prefix="sfumato-test-"))
    atexit.register(shutil.rmtree, out, ignore_errors=True)
    train_tiny(tiny(), out / "run")
    return out / "run"


def random_model(run: Run | None = None, info: Info | None = None, **changes: Any) -> Model:
    """A model whose weights are random, the last layer too, so that all of the network speaks; labelled digits."""
    from sfumato.codecs import PixelCodec, StandardCodec

    info = info or Info((1, 8, 8), "picture", 17, tuple("0123456789"))
    codec = PixelCodec(info.levels) if info.levels else StandardCodec((1.5,) * info.shape[0], (2.0,) * info.shape[0])
    config = model_config(run or tiny(**changes), info, codec)
    torch.manual_seed(1)
    net = build_network(config)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return Model(config, net, "a card\n")


def checkpoint(out: Path, step: int) -> dict[str, torch.Tensor]:
    return native.read_state(out / "checkpoints" / f"step-{step:08d}")[0]


def different(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """The tensors of two states that are not the same to the bit (NaN, a loss not seen yet, is itself)."""
    assert a.keys() == b.keys()
    return [name for name, x in a.items() if not torch.equal(x.nan_to_num(-1), b[name].nan_to_num(-1))]
