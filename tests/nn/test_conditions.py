"""What a network is told: nulls, shapes, ranges, and the errors for what cannot be."""

from __future__ import annotations

import pytest
import torch

from sfumato.nn import Conditions

ALL = Conditions(classes=4, vector=3, context=5, concat=2, span=1)


def test_nulls_are_as_the_table_says():
    null = ALL.null(torch.randn(2, 1, 6, 7, dtype=torch.float64))
    assert {name: tuple(value.shape) for name, value in null.items()} == {
        "label": (2,),
        "vector": (2, 3),
        "context": (2, 1, 5),
        "image": (2, 2, 6, 7),
        "span": (2,),
    }
    assert null["label"].tolist() == [4, 4]
    assert null["label"].dtype == torch.int64
    assert all(
        not null[name].any() and null[name].dtype == torch.float64 for name in ("vector", "context", "image", "span")
    )
    assert Conditions().null(torch.randn(2, 1)) == {}


def test_complete_keeps_what_is_given_and_fills_what_is_not():
    x = torch.randn(2, 1, 6)
    given = {"label": torch.tensor([0, 4], dtype=torch.int32), "context": torch.randn(2, 9, 5).double(), "other": x}
    full = ALL.complete(given, x)
    assert full.keys() == {"label", "vector", "context", "image", "span"}
    assert full["label"].tolist() == [0, 4]
    assert full["label"].dtype == torch.int64
    assert full["context"].dtype == torch.float32
    torch.testing.assert_close(full["context"], given["context"].float())
    assert not full["vector"].any()


@pytest.mark.parametrize(
    ("cond", "says"),
    [
        ({"label": torch.tensor([0, 5])}, r"labels from 0 to 5, allowed are 0\.\.3, and 4 for no label"),
        ({"label": torch.tensor([-1, 0])}, "labels from -1 to 0"),
        ({"label": torch.tensor([0.0, 1.0])}, r"torch\.float32, allowed are integers"),
        ({"label": torch.tensor([True, False])}, r"torch\.bool"),
        ({"label": torch.tensor([0])}, r"'label' has shape \(1,\), allowed is \(2,\)"),
        ({"vector": torch.zeros(2, 4)}, r"'vector' has shape \(2, 4\), allowed is \(2, 3\)"),
        ({"context": torch.zeros(2, 5)}, r"'context' has shape \(2, 5\)"),
        ({"context": torch.zeros(2, 0, 5)}, r"'context' has shape \(2, 0, 5\)"),
        ({"context": torch.zeros(2, 8, 4)}, r"'context' has shape \(2, 8, 4\), allowed is \(2, 8, 5\)"),
        ({"span": torch.zeros(2, 1)}, r"'span' has shape \(2, 1\), allowed is \(2,\)"),
        ({"span": torch.tensor([0.5, -0.25])}, r"'span' is t - s >= 0, got -0\.25: give times s <= t"),
        ({"image": torch.zeros(2, 2, 5)}, r"'image' has shape \(2, 2, 5\), allowed is \(2, 2, 6\)"),
    ],
)
def test_what_does_not_fit_is_refused(cond, says):
    with pytest.raises(ValueError, match=says) as error:
        ALL.complete(cond, torch.randn(2, 1, 6))
    assert "\n" not in str(error.value)


def test_a_span_is_a_time_and_stays_float32():
    x = torch.randn(2, 1, 6, dtype=torch.bfloat16)
    span = torch.tensor([0.001, 0.9])
    assert torch.equal(ALL.complete({"span": span}, x)["span"], span)
    assert ALL.complete({"span": span}, x.double())["span"].dtype == torch.float64


@pytest.mark.parametrize(("size", "says"), [({"classes": -1}, "classes = -1"), ({"span": 2}, "span = 2; give 1")])
def test_a_size_that_cannot_be_is_refused(size, says):
    with pytest.raises(ValueError, match=says):
        Conditions(**size)


def test_conditions_written_before_there_was_a_span_still_read():
    assert Conditions(classes=10, vector=0, context=0, concat=0) == Conditions(classes=10, span=0)
