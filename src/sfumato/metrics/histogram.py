"""The per-pixel histogram: the bits a dimension of a model that knows each pixel's grey levels and nothing of shapes.

p_d(v) = (count of value v at pixel d in the training rows + 1) / (N + levels)
bits/dim = -mean over rows and pixels of log2 p_d(x_d)
"""

from __future__ import annotations

from typing import final

import numpy as np


@final
class HistogramBits:
    """Fitted to training rows (N, ...) of whole numbers 0..levels-1; compute() is the bits/dim of the updated rows."""

    def __init__(self, train: np.ndarray, levels: int):
        pixels = train.reshape(len(train), -1)
        counts = np.ones((pixels.shape[1], levels))
        np.add.at(counts, (np.broadcast_to(np.arange(pixels.shape[1]), pixels.shape), pixels), 1)
        self.log2 = np.log2(counts / counts.sum(1, keepdims=True))
        self.reset()

    def reset(self) -> None:
        self.bits, self.seen = 0.0, 0

    def update(self, x: np.ndarray) -> None:
        pixels = x.reshape(len(x), -1)
        self.bits -= float(self.log2[np.arange(pixels.shape[1]), pixels].sum())
        self.seen += pixels.size

    def compute(self) -> float:
        if not self.seen:
            raise ValueError("no rows were given; call update(x) first")
        return self.bits / self.seen
