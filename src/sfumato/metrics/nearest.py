"""Distance to the nearest training row: a model that memorises lies nearer to them than new real data does."""

from __future__ import annotations

from typing import final

import numpy as np


@final
class NearestNeighbour:
    """compute() is the Euclidean distance of each updated row to its nearest row of `reference` (N, ...), (M,)."""

    def __init__(self, reference: np.ndarray):
        from sklearn.neighbors import NearestNeighbors

        self.index = NearestNeighbors(n_neighbors=1, algorithm="brute")
        self.index.fit(reference.reshape(len(reference), -1).astype(np.float64))
        self.reset()

    def reset(self) -> None:
        self.distances: list[np.ndarray] = []
        self.rows: list[np.ndarray] = []

    def update(self, x: np.ndarray) -> None:
        distance, row = self.index.kneighbors(x.reshape(len(x), -1).astype(np.float64))
        self.distances.append(distance[:, 0])
        self.rows.append(row[:, 0])

    def compute(self) -> np.ndarray:
        if not self.distances:
            raise ValueError("no samples were given; call update(x) first")
        return np.concatenate(self.distances)

    def nearest(self) -> np.ndarray:
        """Which row of the reference was nearest, (M,)."""
        return np.concatenate(self.rows)
