"""Density and coverage: precision and recall that one far row cannot spoil, with the reference's balls only.

With M samples y, N reference rows x and the balls B(x_i) that reach to x_i's k-th nearest neighbour in the reference,

    density  = sum_j sum_i 1[y_j in B(x_i)]/(k M),      coverage = the share of i with some y_j in B(x_i).

For samples of the reference's own distribution, whatever it is (lemmas 1 and 2 of the paper),

    E density = 1,   E coverage = 1 - (N - 1)...(N - k)/((M + N - 1)...(M + N - k)),   near 1 - 2^-k at M = N.    (1)

Density may exceed 1 where samples crowd where the reference is dense.

M. Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", arXiv:2002.09797
"""

from __future__ import annotations

from typing import final

import numpy as np

from sfumato.metrics.features import rows
from sfumato.metrics.neighbours import balls, inside


@final
class DensityCoverage:
    """compute() is {"density", "coverage"} of the updated features against `reference` (N, D)."""

    def __init__(self, reference: np.ndarray, k: int = 5):
        self.k, self.reference = k, rows(reference)
        self.radii = balls(self.reference, k)
        self.reset()

    def reset(self) -> None:
        self.seen = self.hits = 0
        self.covered = np.zeros(len(self.reference), dtype=bool)

    def update(self, features: np.ndarray) -> None:
        x = rows(features, self.reference.shape[1])
        self.seen += len(x)
        for block in inside(x, self.reference, self.radii):
            self.hits += int(block.sum())
            self.covered |= block.any(0)

    def compute(self) -> dict[str, float]:
        if not self.seen:
            raise ValueError("no samples were given; call update(features) first")
        return {"density": self.hits / (self.k * self.seen), "coverage": float(self.covered.mean())}
