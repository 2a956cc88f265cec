"""Energy distance: how far two sets of rows lie apart as distributions, without features and without a bandwidth.

    E(X, Y) = 2 E|X - Y| - E|X - X'| - E|Y - Y'|  >=  0,    0 only if X and Y are alike,

between the two empirical distributions: each mean runs over all pairs, those of a row with itself among them.  Two
finite sets of one distribution are thus a little apart: compare sets of one size, with real rows as a third.

Reference: G. Székely, M. Rizzo, "Energy statistics: a class of statistics based on distances" (2013).
"""

from __future__ import annotations

from typing import final

import numpy as np


def mean_distance(x: np.ndarray, y: np.ndarray) -> float:
    """E|X - Y| over all pairs of rows of x (N, D) and y (M, D)."""
    from scipy.spatial.distance import cdist

    return float(cdist(x, y).mean())


def flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1).astype(np.float64)


@final
class EnergyDistance:
    """compute() is E(X, Y) of the updated rows X and the rows Y of `reference` (N, ...)."""

    def __init__(self, reference: np.ndarray):
        self.reference = flat(reference)
        self.within = mean_distance(self.reference, self.reference)
        self.reset()

    def reset(self) -> None:
        self.rows: list[np.ndarray] = []

    def update(self, x: np.ndarray) -> None:
        self.rows.append(flat(x))

    def compute(self) -> float:
        if not self.rows:
            raise ValueError("no samples were given; call update(x) first")
        x = np.concatenate(self.rows)
        return 2 * mean_distance(x, self.reference) - mean_distance(x, x) - self.within
