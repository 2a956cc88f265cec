"""The demo: scikit-learn's 1,797 handwritten digits, 8x8, 17 grey levels, class-conditional, 4 minutes on 2 cores."""

from __future__ import annotations

from sfumato.data import Data
from sfumato.model import Sampling
from sfumato.nn import UNetConfig
from sfumato.train import Loss, Optimiser, Run


def digits() -> Run:
    """8x8 handwritten digits, ten classes: the demo, 4 minutes on 2 cores."""
    return Run(
        data=Data("digits", held_out=5),
        network=UNetConfig(channels=32, multipliers=(1, 2), blocks=1, groups=8, dropout=0.1),
        schedule="cosine",
        target="v",
        loss=Loss(weighting="simple", times="stratified"),
        optimiser=Optimiser(learning_rate=2e-3, warmup=100),
        sampling=Sampling(sampler="ddim", steps=50, guidance=1.0),
        steps=3000,
        batch=128,
        precision="float32",
    )
