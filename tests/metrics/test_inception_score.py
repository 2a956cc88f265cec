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
    metric = InceptionScore(splits, len(log_probs))
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


@pytest.mark.parametrize("order", [np.arange(1000) % 10, np.arange(1000) // 100], ids=["in turn", "sorted"])
def test_no_part_is_of_one_class_whatever_the_order(order: np.ndarray) -> None:
    """Sure rows of ten classes as often: 10, less what a hundred rows a part miss of it, 9/200 in the logarithm."""
    with np.errstate(divide="ignore"):
        sure = np.log(np.eye(10)[order])
    assert score(sure, 10)["value"] == pytest.approx(10 * math.exp(-9 / 200), rel=0.02)


@pytest.mark.slow  # importing torch-fidelity takes so long
@pytest.mark.parametrize("splits", [1, 2, 10])
def test_torch_fidelity(splits: int) -> None:
    """As it is usually called, of rows in any order and of a number that the parts do not divide."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    log_p = log_softmax(203, 12, 0)
    other = isc_features_to_metric(torch.from_numpy(log_p), splits)
    found = score(log_p, splits)
    assert found["value"] == pytest.approx(other["inception_score_mean"], rel=1e-10)
    spread = None if splits == 1 else pytest.approx(other["inception_score_std"], rel=1e-8)
    assert found["standard_deviation"] == spread
    assert found["splits"] == splits


@given(st.lists(st.integers(0, 50), max_size=5), st.integers(1, 5))
def test_any_division_into_batches_is_the_same(cuts: list[int], splits: int) -> None:
    log_p, metric = log_softmax(50, 6, 1), InceptionScore(splits, 50)
    for part in np.split(log_p, sorted(cuts)):
        metric.update(part)
    assert metric.compute()["value"] == pytest.approx(score(log_p, splits)["value"], rel=1e-10)


def test_reset_and_refusals() -> None:
    metric = InceptionScore(3, 30)
    metric.update(log_softmax(29, 5, 0))
    with pytest.raises(ValueError, match="29 rows were given, wanted are 30"):
        metric.compute()
    with pytest.raises(ValueError, match="31 rows came where 30 were said to come"):
        metric.update(log_softmax(2, 5, 0))
    with pytest.raises(ValueError, match="0 rows were given, wanted are 1 or more"):
        InceptionScore().compute()
    metric.reset()
    metric.update(log_softmax(30, 5, 1))
    assert metric.compute() == score(log_softmax(30, 5, 1), 3)
    with pytest.raises(ValueError, match="take log_softmax"):
        metric.update(np.zeros((3, 5)))
    with pytest.raises(ValueError, match="splits is 0"):
        InceptionScore(0)
    for rows in (None, 2):
        with pytest.raises(ValueError, match=f"rows is {rows} for 3 splits"):
            InceptionScore(3, rows)
    assert METRICS["inception-score"] is InceptionScore
