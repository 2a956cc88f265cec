"""The Inception Score on known p(y|x), and against torch-fidelity part by part."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfumato.metrics import METRICS, InceptionScore


def score(log_probs: np.ndarray, splits: int = 1) -> dict[str, float | None]:
    metric = InceptionScore(splits)
    metric.update(log_probs)
    return metric.compute()


def log_softmax(n: int, classes: int, seed: int) -> np.ndarray:
    logits = 3 * np.random.default_rng(seed).normal(size=(n, classes))
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_closed_forms() -> None:
    with np.errstate(divide="ignore"):
        sure = np.log(np.eye(7)[np.arange(70) % 7])
    assert score(sure)["value"] == pytest.approx(7, rel=1e-12)  # sure of each, all classes as often
    assert score(sure[::7])["value"] == pytest.approx(1, rel=1e-12)  # sure, and always of the same
    assert score(np.full((5, 4), math.log(1 / 4)))["value"] == pytest.approx(1, rel=1e-12)  # never sure
    p = 0.9  # two classes: exp(log 2 - H(p))
    two = np.log(np.array([[p, 1 - p], [1 - p, p]]))
    assert score(two)["value"] == pytest.approx(2 * p**p * (1 - p) ** (1 - p), rel=1e-12)


@pytest.mark.slow  # importing torch-fidelity takes so long
@pytest.mark.parametrize("splits", [1, 2, 10])
def test_torch_fidelity(splits: int) -> None:
    """It parts rows in runs, and we in turn: the same rows in the other order."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    log_p = log_softmax(200, 12, 0)
    runs = np.concatenate([log_p[k::splits] for k in range(splits)])
    other = isc_features_to_metric(torch.from_numpy(runs), splits, shuffle=False)
    found = score(log_p, splits)
    assert found["value"] == pytest.approx(other["inception_score_mean"], rel=1e-10)
    spread = None if splits == 1 else pytest.approx(other["inception_score_std"], rel=1e-8)
    assert found["standard_deviation"] == spread
    assert found["splits"] == splits


@given(st.lists(st.integers(0, 50), max_size=5), st.integers(1, 5))
def test_any_division_into_batches_is_the_same(cuts: list[int], splits: int) -> None:
    log_p, metric = log_softmax(50, 6, 1), InceptionScore(splits)
    for part in np.split(log_p, sorted(cuts)):
        metric.update(part)
    assert metric.compute()["value"] == pytest.approx(score(log_p, splits)["value"], rel=1e-10)


def test_reset_and_refusals() -> None:
    metric = InceptionScore(splits=3)
    metric.update(log_softmax(2, 4, 0))
    with pytest.raises(ValueError, match="2 rows were given for 3 splits"):
        metric.compute()
    metric.reset()
    metric.update(log_softmax(30, 5, 1))
    assert metric.compute() == score(log_softmax(30, 5, 1), 3)
    with pytest.raises(ValueError, match="take log_softmax"):
        metric.update(np.zeros((3, 5)))
    with pytest.raises(ValueError, match="splits is 0"):
        InceptionScore(0)
    assert METRICS["inception-score"] is InceptionScore
