"""Frechet distance: how far two sets of features lie apart, each taken as the Gaussian of its mean and covariance.

    d^2 = |m - m_r|^2 + tr S + tr S_r - 2 tr (S_r^{1/2} S S_r^{1/2})^{1/2}                                    (1)

is the squared 2-Wasserstein distance of N(m, S) and N(m_r, S_r); covariances have the divisor n - 1.  The last trace
is the sum of the singular values of S_r^{1/2} S^{1/2}, whose roots come from eigenvalues of symmetric matrices, so
that nothing complex appears and rank-deficient covariances (n <= D) are no special case.  An eigenvalue below the
round-off of the largest one is zero.  The moments are sums about the reference's mean, in float64,

    a = sum (x - m_r),   B = sum (x - m_r)(x - m_r)^T,   m = m_r + a/n,   S = (B - a a^T/n)/(n - 1),          (2)

so they do not cancel, and one pass in any batches gives the same.  The distance is biased upwards by about 1/n:
compare it only at equal n.

M. Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
arXiv:1706.08500; D. Dowson, B. Landau, "The Frechet distance between multivariate normal distributions" (1982)
M. Chong, D. Forsyth, "Effectively Unbiased FID and Inception Score", arXiv:1911.07023
"""

from __future__ import annotations

from typing import final

import numpy as np

from sfumato.metrics.features import rows


def root(covariance: np.ndarray) -> np.ndarray:
    """R (D, r) with R R^T = covariance (D, D) of rank r."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    return vectors[:, kept] * np.sqrt(values[kept])


@final
class FrechetDistance:
    """compute() is d^2 of (1) between the updated features and `reference` (N, D); both need at least two rows."""

    def __init__(self, reference: np.ndarray):
        known = rows(reference)
        self.mean = known.mean(0)
        self.reset()
        self.update(known)
        covariance = self._moments()[1]
        self.trace, self.root = float(np.trace(covariance)), root(covariance)
        self.reset()

    def reset(self) -> None:
        self.seen = 0
        self.first = np.zeros(len(self.mean))
        self.second = np.zeros((len(self.mean), len(self.mean)))

    def update(self, features: np.ndarray) -> None:
        moved = rows(features, len(self.mean)) - self.mean
        self.seen += len(moved)
        self.first += moved.sum(0)
        self.second += moved.T @ moved

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        """m - m_r (D,) and S (D, D) by (2)."""
        if self.seen < 2:
            raise ValueError(
                f"{self.seen} rows were given, a covariance needs at least 2; call update(features) with more"
            )
        shift = self.first / self.seen
        return shift, (self.second - np.outer(self.first, shift)) / (self.seen - 1)

    def compute(self) -> float:
        shift, covariance = self._moments()
        common = np.linalg.svd(self.root.T @ root(covariance), compute_uv=False).sum()
        return float(shift @ shift + np.trace(covariance) + self.trace - 2 * common)
