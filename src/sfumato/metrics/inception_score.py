"""Inception Score: whether a classifier is sure of each sample, and names many classes over all of them.

    IS = exp E_x KL(p(y|x) || p(y)) = exp( E_x sum_y p(y|x) log p(y|x) - sum_y p(y) log p(y) ),   p(y) = E_x p(y|x),

between 1 (every sample is read alike) and the number of classes.  It looks at no reference.  With `splits` parts, as
the paper has (ten), the score is the mean over the parts, each with its own p(y).  Rows are dealt to the parts as
torch-fidelity does, which shuffles them by a fixed seed and cuts them into runs: labels asked for in turn and pictures
sorted by class alike, a part has all classes.  How many rows there will be is told beforehand, and one pass suffices.
Called so only of Inception-v3's log-probabilities, else "classifier score".

T. Salimans et al., "Improved Techniques for Training GANs", arXiv:1606.03498
S. Barratt, R. Sharma, "A Note on the Inception Score", arXiv:1801.01973
A. Obukhov et al., "High-fidelity performance metrics for generative models in PyTorch" (torch-fidelity, 2020)
"""

from __future__ import annotations

from typing import final

import numpy as np

SEED = 2020  # of the shuffle, torch-fidelity's


def neg_entropy(log_p: np.ndarray) -> np.ndarray:
    """sum_y p log p over the last axis, from log p; 0 where p = 0."""
    p = np.exp(log_p)
    return np.where(p > 0, p * np.where(p > 0, log_p, 0), 0).sum(-1)


def dealt(rows: int, splits: int) -> np.ndarray:
    """The part of each row, (rows,): the shuffled rows from k rows//splits to (k + 1) rows//splits are part k."""
    part = np.empty(rows, dtype=np.int64)
    shuffled = np.random.RandomState(SEED).permutation(rows)  # the older generator, whose numbers torch-fidelity has
    part[shuffled] = ((np.arange(rows) + 1) * splits - 1) // rows
    return part


@final
class InceptionScore:
    """compute() is the mean of the parts' scores, their standard deviation (None of one part), and their number.

    rows: how many will come in all; needed where there is more than one part.
    """

    def __init__(self, splits: int = 1, rows: int | None = None):
        if splits < 1:
            raise ValueError(
                f"splits is {splits}, allowed is 1 or more: 1 is one score over all rows, the paper has 10"
            )
        if splits > 1 and (rows is None or rows < splits):
            raise ValueError(f"rows is {rows} for {splits} splits; say how many will come, at least one a split")
        self.splits, self.parts = splits, None if rows is None else dealt(rows, splits)
        self.reset()

    def reset(self) -> None:
        self.counts = np.zeros(self.splits, dtype=np.int64)
        self.sure = np.zeros(self.splits)  # sum of sum_y p(y|x) log p(y|x)
        self.classes: np.ndarray | None = None  # sum of p(y|x), (splits, K)

    def update(self, log_probs: np.ndarray) -> None:
        """log p(y|x) (N, K), normalised; -inf is allowed."""
        log_p = log_probs.astype(np.float64)
        p = np.exp(log_p)
        if log_p.ndim != 2 or not np.allclose(p.sum(-1), 1, rtol=0, atol=1e-3):
            raise ValueError(f"log_probs {log_p.shape} are no log-probabilities (N, K) that sum to 1; take log_softmax")
        if self.classes is None:
            self.classes = np.zeros((self.splits, log_p.shape[1]))
        first = int(self.counts.sum())
        if self.parts is not None and first + len(p) > len(self.parts):
            raise ValueError(f"{first + len(p)} rows came where {len(self.parts)} were said to come; say how many")
        part = np.zeros(len(p), dtype=np.int64) if self.parts is None else self.parts[first : first + len(p)]
        np.add.at(self.counts, part, 1)
        np.add.at(self.sure, part, neg_entropy(log_p))
        np.add.at(self.classes, part, p)

    def compute(self) -> dict[str, float | None]:
        seen = int(self.counts.sum())
        if self.classes is None or not seen or (self.parts is not None and seen < len(self.parts)):
            wanted = "1 or more" if self.parts is None else len(self.parts)
            raise ValueError(f"{seen} rows were given, wanted are {wanted}; call update(log_probs) with more")
        with np.errstate(divide="ignore"):
            marginal = np.log(self.classes / self.counts[:, None])
        scores = np.exp(self.sure / self.counts - neg_entropy(marginal))
        spread = float(scores.std()) if self.splits > 1 else None  # of one part nothing is known
        return {"value": float(scores.mean()), "standard_deviation": spread, "splits": self.splits}
