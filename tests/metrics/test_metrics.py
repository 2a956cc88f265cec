"""Metrics beside independent computations, and a judge good enough to judge."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import sem
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score

from sfumato import data
from sfumato.metrics import METRICS, BitsPerDim, HistogramBits, LabelAgreement, NearestNeighbour, fit_judge


def test_histogram_bits_are_the_mean_of_minus_log2_of_the_counted_shares() -> None:
    rng = np.random.default_rng(0)
    train = rng.integers(0, 5, (40, 1, 2, 3), dtype=np.uint8)
    seen = rng.integers(0, 5, (11, 1, 2, 3), dtype=np.uint8)
    metric = HistogramBits(train, 5)
    for part in np.array_split(seen, 3):
        metric.update(part)
    bits = [
        -np.log2(((train[:, 0, y, x] == row[0, y, x]).sum() + 1) / (40 + 5))
        for row in seen
        for y in range(2)
        for x in range(3)
    ]
    assert metric.compute() == pytest.approx(np.mean(bits), rel=1e-12)
    metric.reset()
    metric.update(seen[:1])
    assert metric.compute() == pytest.approx(np.mean(bits[:6]), rel=1e-12)


def test_bits_of_rows_are_their_mean_and_its_error() -> None:
    bits = np.random.default_rng(0).normal(3, 2, 40).astype(np.float32)
    metric = BitsPerDim()
    for part in np.array_split(bits, 7):
        metric.update(part)
    found = metric.compute()
    assert found["rows"] == 40
    assert found["value"] == pytest.approx(bits.astype(np.float64).mean(), rel=1e-12)
    assert found["standard_error"] == pytest.approx(sem(bits.astype(np.float64)), rel=1e-12)
    metric.reset()
    metric.update(np.array([2.5]))
    assert metric.compute()["value"] == 2.5
    assert np.isnan(metric.compute()["standard_error"])
    with pytest.raises(ValueError, match=r"allowed is \(N,\)"):
        metric.update(np.zeros((3, 2)))
    assert METRICS["bits-per-dim"] is BitsPerDim


def test_histogram_of_every_level_once_is_the_uniform_guess() -> None:
    levels = np.arange(17, dtype=np.uint8)[:, None]
    metric = HistogramBits(levels, 17)
    metric.update(levels)
    assert metric.compute() == pytest.approx(np.log2(17), rel=1e-12)


def test_nearest_neighbour_is_the_least_of_all_distances() -> None:
    rng = np.random.default_rng(0)
    reference, seen = rng.integers(0, 17, (60, 1, 4, 4)), rng.integers(0, 17, (25, 1, 4, 4))
    metric = NearestNeighbour(reference)
    for part in np.array_split(seen, 4):
        metric.update(part)
    distances = cdist(seen.reshape(25, -1), reference.reshape(60, -1))
    np.testing.assert_allclose(metric.compute(), distances.min(1), rtol=1e-12)
    assert np.array_equal(metric.nearest(), distances.argmin(1))
    metric.reset()
    metric.update(reference[:5])
    np.testing.assert_allclose(metric.compute(), 0, atol=1e-6)


def test_agreement_is_accuracy() -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.integers(0, 4, (50, 1)), rng.integers(0, 4, 50)
    metric = LabelAgreement(lambda rows: rows[:, 0])
    for a, b in zip(np.array_split(x, 7), np.array_split(labels, 7), strict=True):
        metric.update(a, b)
    assert metric.compute() == pytest.approx(accuracy_score(labels, x[:, 0]))


def test_the_judge_reads_98_of_100_held_out_digits() -> None:
    """On the split that the demo holds out, and on the other four splits of its kind."""
    splits = data.load(data.Data("digits", held_out=5))
    rows = [part.take(np.arange(len(part))) for part in (splits.train, splits.held_out)]
    train, held_out = ((row["x"].numpy(), row["label"].numpy()) for row in rows)
    metric = LabelAgreement(fit_judge(*train))
    metric.update(*held_out)
    assert metric.compute() >= 0.98
    x, labels = load_digits(return_X_y=True)
    for k in range(4):
        out = np.arange(len(x)) % 5 == k
        metric = LabelAgreement(fit_judge(x[~out], labels[~out]))
        metric.update(x[out], labels[out])
        assert metric.compute() >= 0.975, k


@pytest.mark.parametrize(
    "metric",
    [
        BitsPerDim(),
        LabelAgreement(lambda x: x[:, 0]),
        HistogramBits(np.zeros((3, 2), np.uint8), 2),
        NearestNeighbour(np.zeros((3, 2), np.uint8)),
    ],
    ids=lambda metric: type(metric).__name__,
)
def test_nothing_seen_is_said(metric: BitsPerDim | LabelAgreement | HistogramBits | NearestNeighbour) -> None:
    with pytest.raises(ValueError, match=r"call update\((x|bits)"):
        metric.compute()
