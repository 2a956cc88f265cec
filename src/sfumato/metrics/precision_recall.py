"""Precision and recall: how many samples look real, and how much of the real there is among the samples.

    Phi(X) = union over x in X of the ball around x that reaches to its k-th nearest neighbour in X
    precision = the share of samples in Phi(reference),   recall = the share of the reference in Phi(samples).

Recall depends on how many samples there are: compare at equal n.  A reference row far from the others has a large
ball, which flatters precision; density and coverage are the answer to that.

T. Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", arXiv:1904.06991
"""

from __future__ import annotations

from typing import final

import numpy as np

from sfumato.metrics.features import gather, rows
from sfumato.metrics.neighbours import balls, inside


@final
class PrecisionRecall:
    """compute() is {"precision", "recall"}, each in [0, 1], of the updated features against `reference` (N, D)."""

    def __init__(self, reference: np.ndarray, k: int = 3):
        self.k, self.reference = k, rows(reference)
        self.radii = balls(self.reference, k)
        self.reset()

    def reset(self) -> None:
        self.parts: list[np.ndarray] = []
        self.real = 0

    def update(self, features: np.ndarray) -> None:
        x = rows(features, self.reference.shape[1])
        self.parts.append(x)
        self.real += sum(int(block.any(1).sum()) for block in inside(x, self.reference, self.radii))

    def compute(self) -> dict[str, float]:
        x = gather(self.parts, self.k + 1)
        covered = sum(int(block.any(1).sum()) for block in inside(self.reference, x, balls(x, self.k)))
        return {"precision": self.real / len(x), "recall": covered / len(self.reference)}
