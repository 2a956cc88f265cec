"""Streams: shards through the `datasets` library, a shuffle that is a function of (seed, k), wrong rows named."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sfumato.data import Batch, Data, Splits, StreamRows, load, stream
from sfumato.data.pictures import View
from sfumato.data.stream import Raw, Reading


def png(value: int, size: tuple[int, int] = (4, 4)) -> bytes:
    file = io.BytesIO()
    Image.new("L", size, value).save(file, "PNG")
    return file.getvalue()


PIXELS = [png(i) for i in range(60)]


def memory(n: int) -> StreamRows:
    """A stream of n rows without any file: row i is grey i, has label i % 7 and a caption."""

    def source() -> Iterator[Raw]:
        return (Raw(f"row {i}", PIXELS[i], i % 7, f"row {i}") for i in range(n))

    reading = Reading(1, None, label_names=tuple("0123456"), captioned=True)
    return StreamRows(source, reading, View(flip=True))


def first(rows: StreamRows, count: int, seed: int, batch: int, **options: int) -> list[Batch]:
    return list(itertools.islice(rows.batches(seed, batch, **options), count))


def same(a: Batch, b: Batch) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key] for key in a
    )


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK", 8)


with_sizes = given(n=st.integers(1, 30), batch=st.integers(1, 40), seed=st.integers(-(2**63), 2**64 - 1))


@with_sizes
def test_an_epoch_has_every_row_once_in_blocks(n: int, batch: int, seed: int) -> None:
    index = torch.cat([b["index"] for b in first(memory(n), -(-2 * n // batch), seed, batch)]).tolist()
    for epoch in (index[:n], index[n : 2 * n]):
        for begin in range(0, n, 8):
            assert sorted(epoch[begin : begin + 8]) == list(range(begin, min(begin + 8, n)))


def test_blocks_are_shuffled_and_each_epoch_anew() -> None:
    a, b = (torch.cat([b["index"] for b in first(memory(24), 2, seed, 24)]).reshape(2, 24) for seed in (0, 1))
    assert a[0].tolist() != sorted(a[0].tolist())
    assert a[0].tolist() != a[1].tolist()
    assert a[0].tolist() != b[0].tolist()


@given(
    n=st.integers(1, 30),
    batch=st.integers(1, 20),
    seed=st.integers(-(2**63), 2**64 - 1),
    start=st.integers(0, 20),
    world=st.integers(1, 3),
)
def test_starting_at_k_and_dealing_to_ranks(n: int, batch: int, seed: int, start: int, world: int) -> None:
    batch = max(batch, world)
    whole = first(memory(n), start + 2, seed, batch)[start:]
    for rank in range(world):
        for mine, every in zip(
            first(memory(n), 2, seed, batch, start=start, rank=rank, world=world), whole, strict=True
        ):
            assert same(mine, {key: value[rank::world] for key, value in every.items()})


def test_resuming_far_in_reads_little_more_than_an_epoch() -> None:
    """A million rows on, the stream of 30 rows is not read 33,333 times."""
    reads = 0
    rows = memory(30)
    inner = rows.source

    def counted() -> Iterator[Raw]:
        nonlocal reads
        for raw in inner():
            reads += 1
            yield raw

    rows.source = counted
    (got,) = first(rows, 1, 0, 10, start=100_000)
    assert reads <= 3 * 30
    assert same(got, first(rows, 2, 0, 10, start=99_999)[1])


def test_rows_keep_label_and_caption() -> None:
    (got,) = first(memory(30), 1, 0, 30)
    index = got["index"]
    assert torch.equal(got["x"][:, 0, 0, 0].long(), index)
    assert torch.equal(got["label"], index % 7)
    assert got["caption"] == [f"row {i}" for i in index.tolist()]


def test_take_and_length() -> None:
    rows = memory(30)
    assert rows.take(np.array([7, 2, 7]))["x"][:, 0, 0, 0].tolist() == [7, 2, 7]
    assert rows.count is None
    with pytest.raises(ValueError, match=r"a stream has no known length: use rows\.batches"):
        len(rows)
    with pytest.raises(ValueError, match="row 30 came, and the stream ends before it"):
        rows.take(np.array([30]))
    with pytest.raises(ValueError, match="row -1 of a stream came"):
        rows.take(np.array([-1]))


def shard(path: Path, rows: list[dict[str, bytes]], start: int = 0) -> None:
    with tarfile.open(path, "w") as tar:
        for number, row in enumerate(rows, start=start):
            for ending, content in row.items():
                member = tarfile.TarInfo(f"{number:04}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def shards(root: Path, count: int = 3, each: int = 10) -> None:
    for k in range(count):
        numbers = range(k * each, (k + 1) * each)
        rows = [{"png": PIXELS[i], "cls": str(i % 5).encode(), "txt": f"row {i}".encode()} for i in numbers]
        shard(root / f"shard-{k}.tar", rows, k * each)


def of(pattern: Path, **options: object) -> Splits:
    return load(Data("stream", path=str(pattern), **options))


def test_shards(tmp_path: Path) -> None:
    shards(tmp_path)
    splits = of(tmp_path / "*.tar", held_out=5, channels=1)
    info = splits.info
    assert (info.shape, info.levels, info.label_names) == ((1, 4, 4), 256, ("0", "1", "2", "3", "4"))
    assert info.rule.startswith("rows with index % 5 == 4 of the stream's order, of which the first 6 are used")
    held = splits.held_out.take(np.arange(len(splits.held_out)))
    assert held["x"][:, 0, 0, 0].tolist() == [4, 9, 14, 19, 24, 29]
    assert held["label"].tolist() == [4] * 6
    assert held["caption"] == ["row 4", "row 9", "row 14", "row 19", "row 24", "row 29"]
    batches = first(splits.train, 6, 0, 8)
    seen = torch.cat([b["x"][:, 0, 0, 0] for b in batches]).tolist()
    assert sorted(seen) == sorted([i for i in range(30) if i % 5 != 4] * 2)
    assert all(same(a, b) for a, b in zip(first(splits.train, 2, 0, 8, start=4), batches[4:], strict=True))
    assert of(tmp_path / "*.tar", size=8).info.shape == (3, 8, 8)


def test_the_held_out_part_of_a_long_stream_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "HELD_OUT_ROWS", 2)
    shards(tmp_path)
    splits = of(tmp_path / "*.tar", held_out=5)
    assert len(splits.held_out) == 2
    seen = torch.cat([b["x"][:, 0, 0, 0] for b in first(splits.train, 3, 0, 8)])
    assert not set(seen.tolist()) & {4, 9, 14, 19, 24, 29}  # later rows of the rule are not trained on either


def test_json_and_names_of_classes(tmp_path: Path) -> None:
    rows = [{"jpg": PIXELS[0], "json": json.dumps({"label": i % 2, "caption": f"c{i}"}).encode()} for i in range(6)]
    shard(tmp_path / "a.tar", rows)
    (tmp_path / "label_names.txt").write_text("ant\nbee\n\ncat\n")
    splits = of(tmp_path / "a.tar", held_out=3)
    assert splits.info.label_names == ("ant", "bee", "cat")
    held = splits.held_out.take([0, 1])
    assert (held["label"].tolist(), held["caption"]) == ([0, 1], ["c2", "c5"])


def test_pictures_alone(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", [{"png": PIXELS[i]} for i in range(6)])
    splits = of(tmp_path / "a.tar", held_out=3)
    assert splits.train.take([0]).keys() == splits.held_out.take([0]).keys() == {"x", "index"}
    assert splits.info.label_names == ()


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (15, {"png": b"broken"}, r"row 0015: not a picture; mend or remove it, or set skip_broken"),
        (15, {"png": png(1, (1, 4))}, "row 0015: one pixel: 1x4"),
        (15, {"png": png(1, (5, 4))}, "row 0015: a picture of 5x4 came after 4x4; set size"),
        (15, {"cls": b"3"}, "row 0015: label 3 came, allowed is 0 to 1; mend it, or name all classes"),
        (15, {"cls": b"-1"}, "row 0015: label -1 came, allowed is 0 to 1"),
    ],
)
def test_wrong_rows_are_named(
    number: int, change: dict[str, bytes], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "HELD_OUT_ROWS", 1)
    rows = [{"png": PIXELS[i], "cls": str(i % 2).encode()} for i in range(20)]
    rows[number] = {**rows[number], **change}
    shard(tmp_path / "a.tar", rows)
    with pytest.raises(ValueError, match=message) as caught:
        first(of(tmp_path / "a.tar", held_out=5).train, 3, 0, 8)
    assert "\n" not in str(caught.value)


def test_broken_rows_give_way_if_asked(tmp_path: Path) -> None:
    rows = [{"png": PIXELS[i] if i not in (4, 6, 7) else b"broken"} for i in range(20)]
    shard(tmp_path / "a.tar", rows)
    splits = of(tmp_path / "a.tar", held_out=5, skip_broken=True)
    assert len(splits.held_out) == 3  # row 4 is held out and broken
    batches = first(splits.train, 4, 0, 8)
    seen = torch.cat([b["x"][:, 0, 0, 0] for b in batches]).tolist()
    assert set(seen) == {i for i in range(20) if i % 5 != 4 and i not in (6, 7)}
    assert all(same(a, b) for a, b in zip(first(splits.train, 2, 0, 8, start=2), batches[2:], strict=True))


def test_no_shards_or_none_that_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file; give a pattern of tar shards"):
        of(tmp_path / "*.tar")
    (tmp_path / "a.tar").write_bytes(b"no tar")
    with pytest.raises(ValueError, match=r"cannot be opened|no row|holds") as caught:
        of(tmp_path / "a.tar")
    assert "\n" not in str(caught.value)
    shard(tmp_path / "b.tar", [{"txt": b"words"}] * 3)
    with pytest.raises(ValueError, match="but no pictures"):
        of(tmp_path / "b.tar")
    shard(tmp_path / "c.tar", [{"png": PIXELS[0]}] * 3)
    with pytest.raises(ValueError, match="too few rows to hold out"):
        of(tmp_path / "c.tar")


def test_a_torn_shard(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", [{"png": PIXELS[i]} for i in range(40)])
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(content[: 1024 * 20 + 600])
    with pytest.raises(ValueError, match=r"a\.tar: breaks off after \d+ rows .unexpected end of data.; mend the shard"):
        of(tmp_path / "a.tar", held_out=2)


def test_the_hubs_layout(tmp_path: Path) -> None:
    """A hub's data set, here from a local folder of parquet files: the same code reads both."""
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["ant", "bee"]),
            "text": datasets.Value("string"),
        }
    )
    rows = {
        "image": [{"bytes": PIXELS[i], "path": None} for i in range(20)],
        "label": [i % 2 for i in range(20)],
        "text": [f"row {i}" for i in range(20)],
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    splits = load(Data("stream", path=f"hf://{tmp_path}", held_out=4))
    assert splits.info.label_names == ("ant", "bee")
    held = splits.held_out.take(np.arange(5))
    assert held["x"][:, 0, 0, 0].tolist() == [3, 7, 11, 15, 19]
    assert held["caption"][0] == "row 3"


def test_pictures_that_the_hub_gives_as_paths(tmp_path: Path) -> None:
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(PIXELS[i])
    splits = load(Data("stream", path=f"hf://{tmp_path}", held_out=3))
    assert splits.held_out.take([0, 1])["x"][:, 0, 0, 0].tolist() == [2, 5]


def test_a_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, **options: object) -> None:
        assert name == "user/name"
        raise ConnectionError("Couldn't reach\nthe hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(
        ValueError, match=r"hf://user/name: cannot be opened .Couldn't reach the hub.; check the name and the net"
    ):
        load(Data("stream", path="hf://user/name"))
