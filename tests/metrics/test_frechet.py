"""The Frechet distance against mpmath, SciPy's matrix root, torch-fidelity, torchmetrics, and a closed form."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from sfumato.metrics import METRICS, FrechetDistance


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    metric = FrechetDistance(y)
    metric.update(x)
    return metric.compute()


def features(n: int, d: int, seed: int) -> np.ndarray:
    """Pooled ReLU-like features: positive, correlated, far from zero mean, float32."""
    draw = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(d, d)) / np.sqrt(d)
    return (np.maximum(draw.normal(size=(n, d)) @ mixing + 0.1 * seed, 0) + 0.5).astype(np.float32)


def test_the_two_gaussians_of_the_rows_at_fifty_digits() -> None:
    """tr (S_r^{1/2} S S_r^{1/2})^{1/2} is the sum of the roots of the eigenvalues of S S_r, here by mpmath."""
    x, y = features(9, 4, 1).astype(np.float64), features(12, 4, 2).astype(np.float64)
    with mpmath.workdps(50):
        moments = []
        for rows in (x, y):
            a = mpmath.matrix(rows.tolist())
            mean = mpmath.matrix([sum(a[i, j] for i in range(a.rows)) / a.rows for j in range(4)])
            centred = mpmath.matrix(a.rows, 4)
            for i in range(a.rows):
                for j in range(4):
                    centred[i, j] = a[i, j] - mean[j]
            moments.append((mean, centred.T * centred / (a.rows - 1)))
        (m1, s1), (m2, s2) = moments
        values, _ = mpmath.eig(s1 * s2)
        trace = sum(s1[i, i] + s2[i, i] for i in range(4))
        exact = sum((m1[i] - m2[i]) ** 2 for i in range(4)) + trace - 2 * sum(mpmath.sqrt(v.real) for v in values)
    assert frechet(x, y) == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("d", [1, 3, 30])
def test_a_matrix_root_by_scipy(d: int) -> None:
    x, y = features(200, d, 1).astype(np.float64), features(300, d, 2).astype(np.float64)
    s, r = np.atleast_2d(np.cov(x.T)), np.atleast_2d(np.cov(y.T))
    exact = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + r - 2 * np.real(sqrtm(s @ r)))
    assert frechet(x, y) == pytest.approx(exact, rel=1e-9)


def test_known_gaussians_in_closed_form() -> None:
    """Rows made to have a diagonal covariance and a given mean exactly: |m|^2 + sum (sqrt a - sqrt b)^2."""
    draw, a, b, m = np.random.default_rng(0), np.array([4.0, 1.0, 0.0]), np.array([1.0, 9.0, 2.0]), np.array([1, 2, 3])
    white = draw.normal(size=(50, 3))
    white -= white.mean(0)
    white = white @ np.linalg.inv(np.linalg.cholesky(np.cov(white.T))).T
    exact = (m**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet(white * np.sqrt(a) + m, white * np.sqrt(b)) == pytest.approx(exact, rel=1e-12)


@pytest.mark.slow  # importing torchmetrics takes so long
@pytest.mark.parametrize(("n", "m"), [(400, 500), (40, 500), (40, 30)])  # of 64 dimensions: full rank, and not
def test_torch_fidelity_and_torchmetrics_on_the_same_features(n: int, m: int) -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torchmetrics.image.fid import _compute_fid

    x, y = (torch.from_numpy(features(k, 64, seed)).double() for k, seed in ((n, 1), (m, 2)))
    first, second = fid_features_to_statistics(x), fid_features_to_statistics(y)
    other = fid_statistics_to_metric(first, second, False)["frechet_inception_distance"]
    third = float(_compute_fid(x.mean(0), torch.cov(x.T), y.mean(0), torch.cov(y.T)))
    found = frechet(x.numpy(), y.numpy())
    assert found == pytest.approx(other, rel=1e-4, abs=1e-4)
    assert found == pytest.approx(third, rel=1e-4, abs=1e-4)


def test_fewer_rows_than_dimensions_are_exact() -> None:
    """With n < D the nuclear norm of the centred rows' product gives the same trace without any covariance."""
    x, y = features(20, 64, 1).astype(np.float64), features(30, 64, 2).astype(np.float64)
    a, b = (x - x.mean(0)) / np.sqrt(19), (y - y.mean(0)) / np.sqrt(29)
    common = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    exact = ((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * common
    assert frechet(x, y) == pytest.approx(exact, rel=1e-10)
    assert frechet(y, y) == pytest.approx(0, abs=1e-10)


def test_a_far_mean_does_not_cancel() -> None:
    x, y = features(100, 8, 1).astype(np.float64), features(120, 8, 2).astype(np.float64)
    assert frechet(x + 1e6, y + 1e6) == pytest.approx(frechet(x, y), rel=1e-6)


@given(st.lists(st.integers(0, 60), max_size=6))
def test_any_division_into_batches_is_the_same(cuts: list[int]) -> None:
    x, metric = features(60, 8, 1), FrechetDistance(features(50, 8, 2))
    for part in np.split(x, sorted(cuts)):
        metric.update(part)
    assert metric.compute() == pytest.approx(frechet(x, features(50, 8, 2)), rel=1e-10)


def test_reset_and_refusals() -> None:
    x, y = features(60, 8, 1), features(50, 8, 2)
    metric = FrechetDistance(y)
    metric.update(x)
    metric.reset()
    metric.update(x[:30])
    assert metric.compute() == pytest.approx(frechet(x[:30], y), rel=1e-12)
    metric.reset()
    metric.update(x[:1])
    with pytest.raises(ValueError, match="1 rows were given, a covariance needs at least 2"):
        metric.compute()
    with pytest.raises(ValueError, match="features have 3 dimensions, the reference's have 8"):
        metric.update(x[:, :3])
    with pytest.raises(ValueError, match="not finite"):
        metric.update(x * np.nan)
    with pytest.raises(ValueError, match=r"features came as \(60,\)"):
        metric.update(x[:, 0])
    assert METRICS["frechet"] is FrechetDistance
