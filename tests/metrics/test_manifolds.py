"""Precision, recall, density and coverage: torch-fidelity, brute force, and the lemmas of the papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from sfumato.metrics import METRICS, DensityCoverage, PrecisionRecall, neighbours

Both = dict[str, float]


def features(n: int, seed: int, shift: float = 0.0, d: int = 6) -> np.ndarray:
    return (np.random.default_rng(seed).normal(shift, 1, (n, d))).astype(np.float32)


def both(x: np.ndarray, y: np.ndarray, k: int, parts: int = 1) -> Both:
    pair = PrecisionRecall(y, k), DensityCoverage(y, k)
    for metric in pair:
        for part in np.array_split(x, parts):
            metric.update(part)
    return pair[0].compute() | pair[1].compute()


def brute(x: np.ndarray, y: np.ndarray, k: int) -> Both:
    """Every ball, one at a time, with distances by subtraction."""

    def radius(rows: np.ndarray, i: int) -> float:
        return float(np.sort(np.linalg.norm(np.delete(rows, i, 0) - rows[i], axis=1))[k - 1])

    real, sampled = [radius(y, i) for i in range(len(y))], [radius(x, j) for j in range(len(x))]
    near = cdist(x, y)
    hits = np.array([[near[j, i] <= real[i] for i in range(len(y))] for j in range(len(x))])
    back = np.array([[near[j, i] <= sampled[j] for j in range(len(x))] for i in range(len(y))])
    return {
        "precision": sum(any(row) for row in hits) / len(x),
        "recall": sum(any(row) for row in back) / len(y),
        "density": hits.sum() / (k * len(x)),
        "coverage": sum(any(column) for column in hits.T) / len(y),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("shift", [0.0, 0.8])
def test_brute_force(k: int, shift: float) -> None:
    x, y = features(50, 0, shift), features(70, 1)
    expected = brute(x.astype(np.float64), y.astype(np.float64), k)
    assert both(x, y, k) == pytest.approx(expected, abs=1e-12)
    assert shift == 0 or expected["precision"] < 0.95  # the case says something


@pytest.mark.slow  # importing torch-fidelity takes so long
def test_torch_fidelity() -> None:
    from torch_fidelity.metric_prc import prc_features_to_metric

    x, y = features(300, 2, 0.5), features(400, 3)
    told = {"prc_neighborhood": 3, "prc_batch_size": 1000, "save_cpu_ram": False, "verbose": False}
    other = prc_features_to_metric(torch.from_numpy(x).double(), torch.from_numpy(y).double(), **told)
    found = both(x, y, 3)
    assert found["precision"] == pytest.approx(other["precision"], abs=1e-6)
    assert found["recall"] == pytest.approx(other["recall"], abs=1e-6)
    assert 0 < found["recall"] < 1


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_copies_of_the_reference(offset: float) -> None:
    """Each ball holds its centre and k others, and no more, however far the features lie from zero."""
    y = features(200, 4, d=100) + np.float32(offset)
    assert both(y, y, 5, parts=200) == pytest.approx({"precision": 1, "recall": 1, "density": 6 / 5, "coverage": 1})
    twice = np.repeat(y[:40], 6, axis=0)  # balls of radius 0
    assert both(twice, twice, 5, parts=240) == pytest.approx(
        {"precision": 1, "recall": 1, "density": 6 / 5, "coverage": 1}
    )


def test_noise_elsewhere_has_none_of_anything() -> None:
    assert both(features(60, 5, 50.0), features(60, 6), 3) == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_one_mode_of_two_has_precision_and_half_the_recall() -> None:
    modes = np.concatenate([features(150, 7), features(150, 8, 40.0)])
    found = both(features(150, 9), modes, 5)
    assert found["precision"] > 0.8
    assert 0.4 < found["recall"] <= 0.5
    assert 0.4 < found["coverage"] <= 0.5


def test_the_lemmas_for_samples_of_the_reference_distribution() -> None:
    """E density = 1 and E coverage exactly, whatever the distribution: 400 pairs of sets, 4 errors (two tests)."""
    n, m, k = 40, 30, 5
    found = []
    for seed in range(400):
        draw = np.random.default_rng(seed)
        metric = DensityCoverage(draw.exponential(size=(n, 3)), k)
        metric.update(draw.exponential(size=(m, 3)))
        found.append(list(metric.compute().values()))
    density, coverage = np.array(found).T
    missed = np.prod([(n - i) / (m + n - i) for i in range(1, k + 1)])
    assert abs(density.mean() - 1) < 4 * density.std() / 20
    assert abs(coverage.mean() - (1 - missed)) < 4 * coverage.std() / 20


def test_coverage_nears_one_minus_two_to_the_minus_k() -> None:
    metric = DensityCoverage(features(2000, 10), k=3)
    metric.update(features(2000, 11))
    assert metric.compute()["coverage"] == pytest.approx(1 - 2**-3, abs=0.03)


@given(st.lists(st.integers(0, 40), max_size=5))
def test_any_division_into_batches_is_the_same(cuts: list[int]) -> None:
    x, y = features(40, 12, 0.3), features(50, 13)
    pair = PrecisionRecall(y), DensityCoverage(y)
    for part in np.split(x, sorted(cuts)):
        for metric in pair:
            metric.update(part)
    whole = PrecisionRecall(y), DensityCoverage(y)
    for metric, other in zip(pair, whole, strict=True):
        other.update(x)
        assert metric.compute() == other.compute()


def test_blocks_reset_and_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = features(40, 12, 0.3), features(50, 13)
    whole = both(x, y, 3)
    monkeypatch.setattr(neighbours, "PAIRS", 150)
    assert both(x, y, 3) == whole
    for metric in (PrecisionRecall(y), DensityCoverage(y, 3)):
        metric.update(x[:20])
        metric.reset()
        with pytest.raises(ValueError, match="were given"):
            metric.compute()
        metric.update(x)
        assert metric.compute().items() <= whole.items()
    with pytest.raises(ValueError, match="k is 3 among 3 rows"):
        PrecisionRecall(y[:3])
    assert METRICS["precision-recall"] is PrecisionRecall
    assert METRICS["density-coverage"] is DensityCoverage
