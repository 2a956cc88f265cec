"""Files of arrays: both naming conventions, what rank and dtype mean, and one clear line for all that is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.data import Data, Splits, load

PICTURES = np.random.default_rng(0).integers(0, 256, (20, 5, 6, 3), dtype=np.uint8)


def saved(path: Path, **arrays: Any) -> str:
    np.savez(path / "set.npz", **arrays)
    return str(path / "set.npz")


def from_file(path: str, **options: Any) -> Splits:
    return load(Data("file", path=path, **options))


def test_simple_names_and_the_rule(tmp_path: Path) -> None:
    splits = from_file(saved(tmp_path, images=PICTURES, labels=np.arange(20) % 4), held_out=5)
    assert (len(splits.train), len(splits.held_out)) == (16, 4)
    held = splits.held_out.take(np.arange(4))
    assert torch.equal(held["x"], torch.from_numpy(PICTURES[4::5].transpose(0, 3, 1, 2).copy()))
    assert held["label"].tolist() == [0, 1, 2, 3]
    kept = splits.train.take(np.arange(16))["x"]
    assert torch.equal(kept, torch.from_numpy(np.delete(PICTURES, slice(4, None, 5), 0).transpose(0, 3, 1, 2).copy()))
    assert splits.info.shape == (3, 5, 6)
    assert splits.info.levels == 256
    assert splits.info.label_names == ("0", "1", "2", "3")
    assert splits.info.rule == "rows with index % 5 == 4 of the file's order"
    assert "set.npz" in splits.info.source


def test_names_with_a_test_part(tmp_path: Path) -> None:
    path = saved(
        tmp_path,
        train_images=PICTURES[:15],
        train_labels=(np.arange(15) % 3)[:, None],
        train_captions=np.array([f"train {i}" for i in range(15)]),
        test_images=PICTURES[15:],
        test_labels=np.array([0, 1, 2, 3, 0])[:, None],
        test_captions=np.array([f"test {i}" for i in range(5)]),
        class_names=np.array(list("abcde")),
    )
    splits = from_file(path, held_out=5)
    assert (len(splits.train), len(splits.held_out)) == (15, 5)
    held = splits.held_out.take([3, 0])
    assert held["caption"] == ["test 3", "test 0"]
    assert held["label"].tolist() == [3, 0]
    assert torch.equal(held["x"], torch.from_numpy(PICTURES[[18, 15]].transpose(0, 3, 1, 2).copy()))
    assert splits.train.take([14])["caption"] == ["train 14"]
    assert splits.info.label_names == ("a", "b", "c", "d", "e")
    assert splits.info.rule == "the set's own test part, 5 rows"


@pytest.mark.parametrize(
    ("shape", "kind"), [((20, 7), "vector"), ((20, 2, 30), "signal"), ((20, 1, 3, 4, 5), "volume")]
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_rows(tmp_path: Path, shape: tuple[int, ...], kind: str, dtype: type) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    splits = from_file(str(tmp_path / "x.npy"), held_out=2)
    assert (splits.info.kind, splits.info.shape, splits.info.levels) == (kind, shape[1:], None)
    taken = splits.held_out.take(np.arange(10))
    assert taken.keys() == {"x", "index"}
    assert taken["x"].dtype == torch.float32
    assert torch.equal(taken["x"], torch.from_numpy(x[1::2].astype(np.float32)))
    with pytest.raises(ValueError, match=f"came for {kind}s, allowed are pictures"):
        from_file(str(tmp_path / "x.npy"), flip=True)


def test_grey_pictures_with_and_without_a_channel(tmp_path: Path) -> None:
    for x in (PICTURES[..., 0], PICTURES[..., :1]):
        splits = from_file(saved(tmp_path, x=x))
        assert splits.info.shape == (1, 5, 6)
        assert torch.equal(splits.held_out.take([1])["x"][0, 0], torch.from_numpy(PICTURES[19, ..., 0].copy()))


def test_size_and_channels(tmp_path: Path) -> None:
    path = saved(tmp_path, images=PICTURES)
    splits = from_file(path, size=4, channels=1)
    assert splits.info.shape == (1, 4, 4)
    assert next(splits.train.batches(0, 3))["x"].shape == (3, 1, 4, 4)
    cropped = from_file(path, size=5).train.take([0])["x"][0]  # 5x6: not resized, the center of the longer side
    assert torch.equal(cropped, torch.from_numpy(PICTURES[0, :, 0:5].transpose(2, 0, 1).copy()))


def nan_rows() -> np.ndarray:
    x = np.zeros((20, 3))
    x[[2, 7], 1] = np.nan
    x[11, 0] = np.inf
    return x


LABELS = np.arange(20) % 4
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"a": PICTURES}, r"holds a; allowed is 'images'"),
    "nan": ({"x": nan_rows()}, r"3 of 20 rows hold NaN or infinity .*: rows 2, 7, 11; .*fill or remove"),
    "nan in test": (
        {"train_images": np.zeros((9, 2)), "test_images": np.array([[0.0, np.nan]])},
        r"test_images: 1 of 1 rows hold NaN .*: row 0",
    ),
    "overflow": ({"x": np.full((20, 3), 1e300)}, "20 of 20 rows .*rows 0, 1, 2, 3, 4, ..."),
    "object": ({"x": np.array([{}, []], dtype=object)}, "pickled objects .*save plain arrays"),
    "int": ({"x": np.zeros((20, 3), np.int64)}, r"int64 of shape \(20, 3\) came; allowed: uint8 pictures.*astype"),
    "bool": ({"x": np.zeros((20, 3, 3), bool)}, "bool of shape .* came; allowed"),
    "complex": ({"x": np.zeros((20, 3), complex)}, "complex128 of shape .* came; allowed"),
    "float pictures": (
        {"x": np.zeros((20, 3, 8, 8))},
        r"pictures or volumes; save pictures as uint8 .*\(N, 1, D, H, W\)",
    ),
    "rank 1": ({"x": np.zeros(20)}, r"reshape\(-1, 1\)"),
    "rank 6": ({"x": np.zeros((20, 1, 1, 1, 1, 1))}, "reshape it"),
    "empty": ({"x": np.zeros((0, 3))}, "without rows"),
    "channels first": ({"x": np.zeros((20, 3, 8, 8), np.uint8)}, r"channels last; save images.transpose\(0, 2, 3, 1\)"),
    "uint8 volume": ({"x": np.zeros((20, 8, 8, 8), np.uint8)}, "allowed: .*volumes"),
    "uint8 vector": ({"x": np.zeros((20, 8), np.uint8)}, "allowed: .*astype"),
    "one pixel": ({"x": np.zeros((20, 1, 8), np.uint8)}, "at least 2x2 pixels"),
    "too few": ({"x": np.zeros((9, 8))}, "9 rows are too few to hold out .*lower held_out"),
    "test shape": (
        {"train_images": PICTURES, "test_images": PICTURES[:, 1:]},
        r"training rows of shape \(3, 5, 6\) and test rows of \(3, 4, 6\)",
    ),
    "test kind": ({"train_images": PICTURES, "test_images": np.zeros((3, 2))}, "make them alike"),
    "negative label": ({"x": PICTURES, "labels": LABELS - 1}, "5 negative labels, down to -1 .rows 0, 4, 8"),
    "float label": ({"x": PICTURES, "labels": LABELS * 1.0}, "dtype float64 came, allowed are integers"),
    "label beyond names": (
        {"x": PICTURES, "labels": LABELS, "label_names": np.array(["a", "b", "c"])},
        r"5 labels out of range, up to 3 \(rows 3, 7, 11, 15, 19\) came, allowed is 0 to 2",
    ),
    "wild label": ({"x": PICTURES, "labels": LABELS * 1000}, "labels up to 3000 came for 20 rows.*renumber"),
    "label count": ({"x": PICTURES, "labels": LABELS[:-1]}, r"shape \(19,\) came for 20 rows, allowed is \(20,\)"),
    "one-hot label": ({"x": PICTURES, "labels": np.eye(20, dtype=int)}, r"shape \(20, 20\) came"),
    "labels in one part": (
        {"train_images": PICTURES, "test_images": PICTURES, "train_labels": LABELS},
        "train_labels came without its like.*test_labels",
    ),
    "captions": ({"x": PICTURES, "captions": LABELS}, "dtype int64 came, allowed is text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case: str, tmp_path: Path) -> None:
    arrays, message = REFUSED[case]
    path = saved(tmp_path, **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        from_file(path)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_array_files(tmp_path: Path) -> None:
    good = saved(tmp_path, x=PICTURES)
    cases = {"torn.npz": Path(good).read_bytes()[:-500], "text.npz": b"hello", "text.npy": b"hello", "empty.npy": b""}
    flipped = bytearray(Path(good).read_bytes())
    flipped[900] ^= 255
    cases["flipped.npz"] = bytes(flipped)
    np.savez_compressed(tmp_path / "packed.npz", x=PICTURES)
    flipped = bytearray((tmp_path / "packed.npz").read_bytes())
    flipped[100:140] = bytes(40)
    cases["packed.npz"] = bytes(flipped)
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot be read|no array file") as caught:
            from_file(str(tmp_path / name))
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no such file"):
        from_file(str(tmp_path / "missing.npz"))
    with pytest.raises(ValueError, match=r"must end in \.npz or \.npy"):
        from_file(str(tmp_path / "x.csv"))
