"""Label agreement: the share of samples that a classifier, which never saw the model, reads as what was asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import numpy as np

Judge = Callable[[np.ndarray], np.ndarray]  # rows (N, ...) -> labels (N,)
JUDGE_ROWS = 10_000  # a judge is fitted to at most so many rows


def fit_judge(x: np.ndarray, labels: np.ndarray) -> Judge:
    """A support vector classifier with Gaussian kernel on raw values, fitted to the first rows of x (N, ...)."""
    from sklearn.svm import SVC

    rows = x[:JUDGE_ROWS].reshape(len(x[:JUDGE_ROWS]), -1).astype(np.float64)
    classifier = SVC(C=10.0, gamma="scale").fit(rows, labels[:JUDGE_ROWS])
    return lambda seen: classifier.predict(seen.reshape(len(seen), -1).astype(np.float64))


@final
class LabelAgreement:
    """compute() is the share in [0, 1] of rows whose judged label is the asked-for one."""

    def __init__(self, judge: Judge):
        self.judge = judge
        self.reset()

    def reset(self) -> None:
        self.right = self.seen = 0

    def update(self, x: np.ndarray, labels: np.ndarray) -> None:
        self.right += int((self.judge(x) == labels).sum())
        self.seen += len(x)

    def compute(self) -> float:
        if not self.seen:
            raise ValueError("no samples were given; call update(x, labels) first")
        return self.right / self.seen
