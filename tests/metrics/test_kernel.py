"""The kernel distance against torch-fidelity and torchmetrics, a double loop, and Gaussians by quadrature."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfumato.metrics import METRICS, KernelDistance, kernel


def distance(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    metric = KernelDistance(y)
    metric.update(x)
    return metric.compute()


def features(n: int, d: int, seed: int) -> np.ndarray:
    return np.maximum(np.random.default_rng(seed).normal(0.2 * seed, 1, (n, d)), 0).astype(np.float32)


@pytest.mark.slow  # importing torchmetrics takes so long
def test_torch_fidelity_and_torchmetrics_on_all_rows() -> None:
    """A subset as large as the sets is the full statistic, whatever its order."""
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torchmetrics.image.kid import poly_mmd

    x, y = features(80, 32, 1), features(80, 32, 2)
    told = {"kid_subsets": 1, "kid_subset_size": 80, "verbose": False}
    other = kid_features_to_metric(torch.from_numpy(x).double(), torch.from_numpy(y).double(), **told)
    found = distance(x, y)["value"]
    assert found == pytest.approx(other["kernel_inception_distance_mean"], rel=1e-10)
    assert found == pytest.approx(
        float(poly_mmd(torch.from_numpy(x).double(), torch.from_numpy(y).double())), rel=1e-10
    )


def test_the_definition_by_loops_for_sets_of_two_sizes() -> None:
    """And the standard error by leaving out each row in turn."""

    def u(x: np.ndarray, y: np.ndarray) -> float:
        def k(a: np.ndarray, b: np.ndarray) -> float:
            return float((a @ b / len(a) + 1) ** 3)

        m, n = len(x), len(y)
        own = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
        other = sum(k(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
        return own + other - 2 * sum(k(a, b) for a in x for b in y) / (m * n)

    x, y = features(7, 3, 1).astype(np.float64), features(10, 3, 2).astype(np.float64)
    found = distance(x, y)
    assert found["value"] == pytest.approx(u(x, y), rel=1e-10)
    without_x = np.array([u(np.delete(x, i, 0), y) for i in range(7)])
    without_y = np.array([u(x, np.delete(y, i, 0)) for i in range(10)])
    variance = 6 * without_x.var() + 9 * without_y.var()
    assert found["standard_error"] ** 2 == pytest.approx(variance, rel=1e-8)


def gaussians_by_quadrature(mean: np.ndarray, scale: np.ndarray) -> float:
    """E U for x ~ N(mean, scale^2), y ~ N(0, I) in two dimensions: Gauss-Hermite is exact for a cubic kernel."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(6)
    grid = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    w = np.outer(weights, weights).reshape(-1) / weights.sum() ** 2
    x, y = mean + scale * grid, grid
    return sum(
        sign * float(w @ ((a @ b.T / 2 + 1) ** 3) @ w) for a, b, sign in ((x, x, 1), (y, y, 1), (x, y, -2))
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mean", "scale"), [((0.0, 0.0), (1.0, 1.0)), ((0.4, -0.2), (1.0, 1.0)), ((0.0, 0.0), (1.3, 0.8))]
)
def test_unbiased_on_gaussians_and_its_error_is_told(mean: tuple[float, ...], scale: tuple[float, ...]) -> None:
    """The mean of 1,500 small sets within 4 of its errors (three tests: family-wise 2e-4); se^2 is not below the true
    variance by more than the draws' noise, nor above twice it."""
    m, s = np.array(mean), np.array(scale)
    draw = np.random.default_rng(5)
    found = [distance(m + s * draw.normal(size=(30, 2)), draw.normal(size=(40, 2))) for _ in range(1500)]
    values = np.array([one["value"] for one in found])
    told = np.mean([one["standard_error"] ** 2 for one in found])
    assert abs(values.mean() - gaussians_by_quadrature(m, s)) < 4 * values.std() / np.sqrt(len(values))
    assert 0.85 < told / values.var() < 2.4


@given(st.lists(st.integers(0, 40), max_size=5))
def test_any_division_into_batches_and_any_block_is_the_same(cuts: list[int]) -> None:
    x, y = features(40, 5, 1), features(30, 5, 2)
    metric = KernelDistance(y)
    for part in np.split(x, sorted(cuts)):
        metric.update(part)
    assert metric.compute() == distance(x, y)


def test_blocks_reset_and_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = features(40, 5, 1), features(30, 5, 2)
    whole = distance(x, y)
    monkeypatch.setattr(kernel, "PAIRS", 100)
    assert distance(x, y) == pytest.approx(whole, rel=1e-10)
    metric = KernelDistance(y)
    metric.update(x)
    metric.reset()
    metric.update(x[:2])
    with pytest.raises(ValueError, match="2 rows were given, at least 3 are needed"):
        metric.compute()
    metric.update(x[2:])
    assert metric.compute() == pytest.approx(whole, rel=1e-10)
    assert METRICS["kernel"] is KernelDistance
