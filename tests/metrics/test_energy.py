"""The energy distance against SciPy's in one dimension, closed forms, and its own definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sfumato.metrics import METRICS, EnergyDistance


def energy(x: np.ndarray, y: np.ndarray) -> float:
    metric = EnergyDistance(y)
    metric.update(x)
    return metric.compute()


def test_scipy_in_one_dimension() -> None:
    """SciPy integrates the distribution functions and takes the root: another way to the same number."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=200), draw.exponential(size=150) + 0.3
    assert energy(x[:, None], y[:, None]) == pytest.approx(stats.energy_distance(x, y) ** 2, rel=1e-10)


def test_points_by_hand() -> None:
    assert energy(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]])) == pytest.approx(2 * 5)
    assert energy(np.array([[0.0], [2.0]]), np.array([[1.0]])) == pytest.approx(2 * 1 - 1)


def test_two_normals_in_closed_form() -> None:
    """E|X - Y| of N(m, 1), N(0, 1) is the mean of a folded normal; here m = 2, to the error of 4,000 draws."""
    draw, m = np.random.default_rng(1), 2.0
    folded = 2 / math.sqrt(math.pi) * math.exp(-(m**2) / 4) + m * math.erf(m / 2)
    exact = 2 * folded - 2 * 2 / math.sqrt(math.pi)
    found = energy(draw.normal(m, 1, (4000, 1)), draw.normal(0, 1, (4000, 1)))
    assert found == pytest.approx(exact, abs=0.1)


def test_zero_only_for_the_same_rows() -> None:
    x = np.random.default_rng(2).normal(size=(50, 1, 4))
    assert energy(x, x[::-1]) == pytest.approx(0, abs=1e-12)
    assert energy(x, x + 0.1) > 1e-4


def test_parts_and_reset() -> None:
    draw = np.random.default_rng(3)
    x, y = draw.normal(size=(30, 2, 3)), draw.normal(size=(20, 2, 3))
    metric = EnergyDistance(y)
    with pytest.raises(ValueError, match="no samples were given"):
        metric.compute()
    metric.update(x[:10])
    metric.update(x[10:])
    assert metric.compute() == pytest.approx(energy(x, y))
    metric.reset()
    metric.update(y)
    assert metric.compute() == pytest.approx(0, abs=1e-12)
    assert METRICS["energy"] is EnergyDistance
