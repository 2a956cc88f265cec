"""The trained model that an experiment looks at, with its data, and the lines that say which they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from sfumato import data
from sfumato.experiments.report import Request, digest
from sfumato.model import Model, load

TRAIN_ROWS = 10_000


@dataclass(frozen=True)
class Trained:
    """A model of pictures, the data it was trained on, and the digest of its weights."""

    model: Model
    splits: data.Splits
    digest: str
    basis: list[str]

    @property
    def key(self) -> dict[str, Any]:
        """What a remembered block depends on."""
        return {"weights": self.digest, "data": dict(self.model.config.data)}

    def training_rows(self) -> np.ndarray:
        """The first training rows, at most TRAIN_ROWS, data units."""
        x = self.splits.train.take(np.arange(min(len(self.splits.train), TRAIN_ROWS)))["x"]
        assert isinstance(x, Tensor)
        return x.numpy()

    def held_out(self, n: int) -> tuple[Tensor, Tensor | None]:
        """The first n held-out rows, codec units (n, C, H, W), and their labels if the model takes labels."""
        rows = self.splits.held_out.take(np.arange(min(n, len(self.splits.held_out))))
        x = self.model.codec.encode(rows["x"]).to(self.model.device)  # type: ignore[arg-type]
        labels = rows["label"] if self.model.config.conditions.classes else None
        return x, labels  # type: ignore[return-value]


def trained(request: Request) -> Trained:
    """The request's MODEL and its data; ValueError if it is no model of pictures."""
    model = load(request.model)
    config = model.config
    if config.kind != "picture":
        raise ValueError(
            f"{request.name} shows pictures and {request.model} makes {config.kind}s; give a --model of pictures"
        )
    weights = digest(model)
    basis = [
        f"model `{request.model}`: {config.network}, {sum(p.numel() for p in model.net.parameters()):,} parameters, "
        f"schedule {config.schedule['name']}, target {config.target}, {config.training.get('step', 0)} training steps, "
        f"EMA length {config.training.get('ema', 'unknown')}",
        f"weights sha256 `{weights}`",
        f"data: {config.data.get('source', 'unknown')}; held out: {config.data.get('rule', 'unknown')}",
    ]
    return Trained(model, data.load(config.trained_on), weights, basis)
