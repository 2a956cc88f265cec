"""The order of training rows: a pure function of (seed, k), every row once an epoch, ranks that deal one batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfumato import noise
from sfumato.data.pictures import View
from sfumato.data.rows import Batch, Rows, TableRows

SIZES = {"n": st.integers(1, 40), "batch": st.integers(1, 90), "seed": st.integers(-(2**63), 2**64 - 1)}


PLAIN = View()


def table(n: int, view: View = PLAIN, shape: tuple[int, ...] = (1, 4, 6)) -> TableRows:
    """Rows whose pixels all differ, with labels and captions that tell the row."""
    x = (np.arange(n * np.prod(shape)) % 251).astype(np.uint8).reshape(n, *shape)
    captions = np.array([f"row {i}" for i in range(n)], dtype=object)
    return TableRows(x.__getitem__, np.arange(n), view, np.arange(n), captions)


def first(rows: Rows, count: int, seed: int, batch: int, **options: int | bool) -> list[Batch]:
    return list(itertools.islice(rows.batches(seed, batch, **options), count))


def same(a: Batch, b: Batch) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key] for key in a
    )


@given(**SIZES, epochs=st.integers(1, 3))
def test_an_epoch_has_every_row_once(n: int, batch: int, seed: int, epochs: int) -> None:
    batches = first(table(n), -(-n * epochs // batch), seed, batch)
    index = torch.cat([b["index"] for b in batches])[: n * epochs].reshape(epochs, n)
    assert all(sorted(epoch.tolist()) == list(range(n)) for epoch in index)


@given(**SIZES)
def test_the_order_is_the_formula(n: int, batch: int, seed: int) -> None:
    """index(p) = perm_{p // N}[p % N], written out place by place."""
    for k, got in enumerate(first(table(n), 3, seed, batch)):
        for j, index in enumerate(got["index"].tolist()):
            epoch, place = divmod(k * batch + j, n)
            assert index == noise.philox(seed, noise.ROWS, epoch).permutation(n)[place]


@given(**SIZES, start=st.integers(0, 12), world=st.integers(1, 5), flip=st.booleans(), size=st.sampled_from([None, 4]))
def test_starting_at_k_and_dealing_to_ranks(
    n: int, batch: int, seed: int, start: int, world: int, flip: bool, size: int | None
) -> None:
    """A resumed rank sees, pixel by pixel, its rows of the batches that one process that never stopped sees."""
    rows = table(n, View(size, "random", flip))
    batch = max(batch, world)
    whole = first(rows, start + 3, seed, batch)[start:]
    for rank in range(world):
        for mine, all_rows in zip(first(rows, 3, seed, batch, start=start, rank=rank, world=world), whole, strict=True):
            dealt = {key: value[rank::world] for key, value in all_rows.items()}
            assert same(mine, dealt)


def test_another_seed_and_another_epoch_are_another_order() -> None:
    a, b = (torch.cat([b["index"] for b in first(table(40), 2, seed, 40)]).reshape(2, 40) for seed in (0, 1))
    assert not torch.equal(a[0], a[1])
    assert not torch.equal(a[0], b[0])


def test_rows_keep_their_labels_and_captions() -> None:
    (got,) = first(table(7), 1, 3, 7)
    assert torch.equal(got["label"], got["index"])
    assert got["caption"] == [f"row {i}" for i in got["index"].tolist()]
    assert got["x"].dtype == torch.uint8
    assert got["label"].dtype == got["index"].dtype == torch.int64
    assert same(got, {**table(7).take(got["index"].numpy()), "index": got["index"]})


def test_half_of_the_rows_are_mirrored_and_anew_at_each_step() -> None:
    rows = table(50, View(flip=True))
    mirrored = []
    for got in first(rows, 20, 0, 50):
        plain = rows.take(got["index"].numpy())["x"]
        is_plain = (got["x"] == plain).flatten(1).all(1)
        is_mirrored = (got["x"] == plain.flip(-1)).flatten(1).all(1)
        assert (is_plain ^ is_mirrored).all()
        mirrored.append(torch.zeros(50, dtype=torch.bool).index_put((got["index"],), is_mirrored))
    share = torch.stack(mirrored).double()
    assert abs(share.mean() - 0.5) < 5 * 0.5 / 1000**0.5
    assert ((share.mean(0) > 0) & (share.mean(0) < 1)).all()  # no row is always or never mirrored


def test_random_crops_reach_every_place_and_the_center_stays() -> None:
    rows = table(1, View(4, "random"), (3, 4, 7))
    whole = table(1, View(), (3, 4, 7)).take(np.zeros(1, int))["x"]
    seen = set()
    for got in first(rows, 100, 0, 1):
        seen |= {left for left in range(4) if torch.equal(got["x"], whole[..., left : left + 4])}
    assert seen == {0, 1, 2, 3}
    assert torch.equal(rows.take(np.zeros(1, int))["x"], whole[..., 1:5])
    assert all(torch.equal(b["x"], whole[..., 1:5]) for b in first(rows, 20, 0, 1, augment=False))
    center = table(1, View(4, "center"), (3, 4, 7))
    assert all(torch.equal(b["x"], whole[..., 1:5]) for b in first(center, 20, 0, 1))


def test_no_augmentation_unless_asked() -> None:
    rows = table(9, View(flip=True))
    for got in first(rows, 5, 0, 9, augment=False):
        assert torch.equal(got["x"], rows.take(got["index"].numpy())["x"])
    for got in first(table(9), 5, 0, 9):
        assert torch.equal(got["x"], rows.take(got["index"].numpy())["x"])


def test_a_batch_does_not_write_into_the_data() -> None:
    rows = table(5, View(flip=True))
    before = rows.take(np.arange(5))["x"].clone()
    for got in first(rows, 4, 0, 5):
        got["x"].zero_()
    assert torch.equal(rows.take(np.arange(5))["x"], before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"batch": 2, "world": 3}, "batch is 2"),
        ({"batch": 4, "world": 2, "rank": 2}, "rank is 2, allowed is 0 to 1"),
        ({"batch": 4, "start": -1}, "start is -1"),
    ],
)
def test_mistakes_are_named_at_the_call(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table(5).batches(0, **options)
