"""Tiny recipes for what is not a picture: real signals, volumes and vectors that come inside libraries.

Each trains in half a minute to a minute and a half on 2 cores, and knows more of its data than a Gaussian fitted to
them: `sfumato evaluate` measures both.
"""

from __future__ import annotations

from sfumato.data import Data
from sfumato.model import Sampling
from sfumato.nn import MLPConfig, UNetConfig
from sfumato.train import Loss, Optimiser, Run


def _run(data: Data, network: UNetConfig | MLPConfig, optimiser: Optimiser, steps: int, batch: int) -> Run:
    return Run(
        data=data,
        network=network,
        loss=Loss(weighting="simple", times="stratified"),
        optimiser=optimiser,
        sampling=Sampling(sampler="ddim", steps=50),
        steps=steps,
        batch=batch,
        precision="float32",
    )


def signal() -> Run:
    """1-D: pieces of a firing neuron's membrane potential, 64 samples; a minute and a half on 2 cores."""
    network = UNetConfig(channels=32, multipliers=(1, 2, 2), blocks=1, groups=8)
    return _run(Data("neuron"), network, Optimiser(learning_rate=2e-3, warmup=100), steps=800, batch=64)


def volume() -> Run:
    """3-D: patches of a brain scan, 8x8x8 voxels; a minute and a half on 2 cores, with the extra sfumato[volumes]."""
    network = UNetConfig(channels=16, multipliers=(1, 2), blocks=1, groups=8)
    return _run(Data("brain"), network, Optimiser(learning_rate=4e-3, warmup=50), steps=1200, batch=16)


def vector() -> Run:
    """Vectors: 30 measures of each of 569 tumours, two classes; half a minute on 2 cores."""
    network = MLPConfig(width=128, depth=3, dropout=0.2)
    data = Data("breast_cancer", held_out=5)
    return _run(data, network, Optimiser(learning_rate=1e-3, warmup=100), steps=2000, batch=128)
