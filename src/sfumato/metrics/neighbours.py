"""Balls around features: a set's manifold is the union of balls, each reaching to its centre's k-th neighbour.

Squared distances are |x|^2 + |y|^2 - 2 x.y in float64, a block of rows at a time, so that 10,000 x 10,000 rows never
lie in memory at once.  Balls are closed; ties within the rounding of these float64 sums are inside, so that copies of
a set lie in its balls whatever the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

PAIRS = 2**24  # pairs in memory at a time
SLACK = 1e-12  # of squared distances, relative to the squared radius and to the longest feature


def squared_distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of rows of x (M, D): their numbers (b,) and |x_i - y_j|^2 (b, N) to all rows of y (N, D)."""
    lengths = (y * y).sum(1)
    step = max(1, PAIRS // len(y))
    for start in range(0, len(x), step):
        part = x[start : start + step]
        distances = part @ y.T
        distances *= -2
        distances += lengths
        distances += (part * part).sum(1)[:, None]
        yield np.arange(start, start + len(part)), distances


def balls(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each row of x (N, D) to its k-th nearest other row, (N,)."""
    if not 1 <= k < len(x):
        raise ValueError(f"k is {k} among {len(x)} rows; allowed is 1 to one less than the rows")
    radii = np.empty(len(x))
    for numbers, distances in squared_distances(x, x):
        distances[np.arange(len(numbers)), numbers] = np.inf  # a row is no neighbour of itself
        radii[numbers] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return radii * (1 + SLACK) + SLACK * (x * x).sum(1).max()


def inside(x: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> Iterator[np.ndarray]:
    """Blocks (b, N) of rows of x (M, D): which of the N balls a row lies in."""
    for _, distances in squared_distances(x, centres):
        yield distances <= radii
