"""Bits a dimension of held-out rows: how many bits a model needs of each of their values, as a metric over rows.

    value = mean_n b_n,   standard error = sqrt( sum_n (b_n - value)^2/(N (N - 1)) ),   b_n = -log2 p(x_n)/D or a bound

The rows b_n come from `likelihood`; what a histogram without a model needs is `HistogramBits`.
"""

from __future__ import annotations

import math
from typing import final

import numpy as np


@final
class BitsPerDim:
    """compute() is {"value", "standard_error", "rows"} of the updated rows' bits/dim; of one row the error is nan."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.rows: list[np.ndarray] = []

    def update(self, bits: np.ndarray) -> None:
        """bits (N,): each row's bits/dim."""
        if bits.ndim != 1:
            raise ValueError(f"bits came as {bits.shape}, allowed is (N,); give each row's bits/dim")
        self.rows.append(bits.astype(np.float64))

    def compute(self) -> dict[str, float]:
        bits = np.concatenate(self.rows) if self.rows else np.zeros(0)
        if not len(bits):
            raise ValueError("no rows were given; call update(bits) first")
        error = float(bits.std(ddof=1)) / math.sqrt(len(bits)) if len(bits) > 1 else math.nan
        return {"value": float(bits.mean()), "standard_error": error, "rows": len(bits)}
