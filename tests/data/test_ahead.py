"""The next batch in a thread: the same batches in the same order, errors in their turn, and no more than one ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from sfumato.data.ahead import ahead
from sfumato.data.rows import Batch


def numbered(made: list[int], n: int) -> Iterator[Batch]:
    for k in range(n):
        made.append(k)
        yield {"x": torch.tensor([k]), "caption": [str(k)]}


def test_they_are_the_same_batches() -> None:
    found = list(ahead(numbered([], 5)))
    assert [(int(one["x"]), one["caption"]) for one in found] == [(k, [str(k)]) for k in range(5)]  # type: ignore[arg-type]


def test_one_is_made_ahead_and_no_more() -> None:
    made: list[int] = []
    batches = ahead(numbered(made, 100))
    for _ in range(3):
        next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert len(made) == 4
    assert not any(thread.name.startswith("data") for thread in threading.enumerate())


def test_what_fails_is_raised_in_its_turn() -> None:
    def failing() -> Iterator[Batch]:
        yield {"x": torch.zeros(1)}
        raise ValueError("the third picture was mended away")

    batches = ahead(failing())
    next(batches)
    with pytest.raises(ValueError, match="mended away"):
        next(batches)
