"""What stands in MODEL's place, and what it is held against: files, folders, and one line for a bad one."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato import data
from sfumato.data import Data, Info
from sfumato.model import Model
from sfumato.tasks import Samples, generate, subjects, write
from sfumato.tasks.subjects import Pictures, against, alike, labels_as, read_pictures, scattered, subject

from ..tiny import random_model


def some(n: int = 24, size: int = 8, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def samples(images: np.ndarray, labels: np.ndarray | None = None) -> Samples:
    return Samples(images.transpose(0, 3, 1, 2), labels, {"seed": 3, "steps": 7}, 1.0, "picture", 256)


@pytest.mark.parametrize("out", ["s.npz", "s"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_sample_writes_comes_back(out: str, channels: int, tmp_path: Path) -> None:
    """With its labels (12 classes, so that the folder `10` is sorted before `2`) and its settings."""
    labels = np.arange(24) % 12
    given = samples(some(channels=channels), labels)
    write(given, tmp_path / out)
    found = read_pictures(str(tmp_path / out))
    assert found.labels is not None
    order = np.argsort(found.labels, kind="stable")
    assert np.array_equal(found.images[order], given.images()[np.argsort(labels, kind="stable")])
    assert np.array_equal(found.labels[order], np.sort(labels))
    assert found.label_names == tuple(map(str, range(12)))
    assert found.settings == {"seed": 3, "steps": 7}


def test_a_folder_without_labels_and_grey_pictures(tmp_path: Path) -> None:
    write(samples(some()), tmp_path / "s")
    found = read_pictures(str(tmp_path / "s"))
    assert found.labels is None
    assert np.array_equal(found.images, some())


@pytest.mark.parametrize(
    ("arrays", "name", "chosen"),
    [
        ({"images": some(), "labels": np.arange(24)}, "", some()),
        ({"arr_0": some(channels=3), "arr_1": np.arange(24)}, "", some(channels=3)),
        ({"train_images": some(30), "test_images": some()}, "", some()),
        ({"train_images": some(30), "test_images": some()}, ":train_images", some(30)),
        ({"faces": some()[..., 0], "other": np.zeros(3)}, "", some()),
    ],
)
def test_names_of_arrays(arrays: dict[str, Any], name: str, chosen: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    found = read_pictures(f"{tmp_path / 'a.npz'}{name}")
    assert np.array_equal(found.images, chosen)
    assert (found.labels is None) == (len(arrays) == 2 and not {"labels", "arr_1"} & arrays.keys())


def bad_files(where: Path) -> dict[str, str]:
    """path -> what its one line says."""
    np.savez(where / "floats.npz", images=np.zeros((4, 8, 8), np.float32))
    np.savez(where / "first.npz", images=np.zeros((4, 3, 8, 8), np.uint8))
    np.savez(where / "empty.npz", images=np.zeros((0, 8, 8), np.uint8))
    np.savez(where / "vectors.npz", samples=np.zeros((5, 2)))
    np.savez(where / "labels.npz", images=some(), labels=np.arange(3))
    np.savez(where / "settings.npz", images=some(), settings=np.array("{"))
    (where / "torn.npz").write_bytes((where / "labels.npz").read_bytes()[:900])
    (where / "none").mkdir()
    (where / "sizes").mkdir()
    for k in (8, 9):
        Image.new("L", (k, k)).save(where / "sizes" / f"{k}.png")
    (where / "broken").mkdir()
    (where / "broken" / "a.png").write_bytes(b"no picture")
    return {
        "floats.npz": "float32 of shape (4, 8, 8) came; allowed are one or more uint8 pictures",
        "first.npz": "channels last",
        "empty.npz": "uint8 of shape (0, 8, 8) came; allowed are one or more",
        "vectors.npz": "holds samples; allowed is an array of pictures, such as images or arr_0",
        "labels.npz": "labels of shape (3,) came for 24 rows",
        "labels.npz:pictures": "holds images, labels; allowed is an array of pictures",
        "settings.npz": "its settings are no JSON",
        "torn.npz": "cannot be read",
        "missing.npz": "no such file",
        "none": "no picture in this folder",
        "sizes": "pictures of 2 sizes came (8x8, 9x9); allowed is one size",
        "broken": "cannot use 1 file: a.png (not a picture)",
    }


def test_what_is_no_pictures_is_one_line(tmp_path: Path) -> None:
    for name, expected in bad_files(tmp_path).items():
        with pytest.raises(ValueError, match=re.escape(expected)) as told:
            subject(str(tmp_path / name))
        assert "\n" not in str(told.value), name
        assert name.partition(":")[0] in str(told.value)


def test_models_are_models(tmp_path: Path) -> None:
    random_model().save(tmp_path / "model")
    assert isinstance(subject(str(tmp_path / "model")), Model)
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json is missing"):  # a torn model is not read as pictures
        subject(str(tmp_path / "model"))
    with pytest.raises(ValueError, match="unknown model 'nothing'"):
        subject("nothing")
    np.savez(tmp_path / "a.npz", images=some())
    with pytest.raises(ValueError, match=r"--ema 0.1 came for .*, which is pictures and no run"):
        subject(str(tmp_path / "a.npz"), ema=0.1)


def test_references(tmp_path: Path) -> None:
    own = Data("digits", held_out=5)
    splits = data.load(own)
    every = {part: rows.take(np.arange(len(rows)))["x"].numpy() for part, rows in
             (("test", splits.held_out), ("train", splits.train))}  # fmt: skip
    for text, part, other, its in (
        ("test", "test", "train", "training"),
        ("train", "train", "test", "held-out"),
        ("digits", "test", "train", "training"),
        ("digits:train", "train", "test", "held-out"),
    ):
        found = against(text, own)
        assert found.name == f"{part} split of digits, {len(every[part]):,} rows"
        assert np.array_equal(found.images, np.rint(every[part] * (255 / 16)).astype(np.uint8).transpose(0, 2, 3, 1))
        assert found.real is not None
        real, labels = found.real(50)
        assert len(real) == 50
        assert labels is not None
        assert np.bincount(labels).tolist() == [5] * 10
        assert len(found.real(10**6)[0]) == len(every[other])
        assert found.real_name == its
        assert found.train is not None
        assert found.train_labels is not None
        assert len(found.train) == len(found.train_labels) == len(every["train"])
        assert found.data == "digits"
    assert len(against("digits", None).images) == len(range(9, 1797, 10))  # the set's own rule, no model's
    np.savez(tmp_path / "a.npz", images=some())
    alone = against(str(tmp_path / "a.npz"), None)
    assert (alone.real, alone.train, alone.data) == (None, None, "")
    beside = against(str(tmp_path / "a.npz"), own)
    assert np.array_equal(beside.images, some())
    assert beside.train is not None  # of which samples may be copies, whatever they are held against
    assert (beside.real, beside.real_name) == (None, "")  # another source, of which there is no other part


def test_rows_that_lie_sorted_by_class_are_all_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more pictures than scores look at, some of every class."""
    monkeypatch.setattr(subjects, "TRAIN_ROWS", 20)
    monkeypatch.setattr(subjects, "HELD_OUT_ROWS", 10)
    labels = np.arange(200) // 20
    images = np.broadcast_to(labels[:, None, None].astype(np.uint8), (200, 4, 4))
    np.savez(tmp_path / "sorted.npz", images=images, labels=labels)
    found = against("test", Data("file", path=str(tmp_path / "sorted.npz"), held_out=5))
    assert found.train is not None
    assert found.train_labels is not None
    assert found.held_out is not None
    assert np.bincount(found.train_labels).tolist() == [2] * 10
    assert set(found.train[:, 0, 0, 0]) == set(found.held_out[:, 0, 0, 0]) == set(range(10))


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("test", "pictures do not say which data they are like: give --reference"),
        ("digits:all", "allowed is digits, digits:test or digits:train"),
        ("nowhere", "unknown reference 'nowhere'; allowed are test, train, "),
        ("breast_cancer", "breast_cancer holds vectors; a reference is pictures"),
    ],
)
def test_a_bad_reference_is_one_line(reference: str, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)) as told:
        against(reference, None)
    assert "\n" not in str(told.value)


def test_sizes_and_colours_are_the_references() -> None:
    grey, colour = some(), some(channels=3)
    assert np.array_equal(alike(grey, colour, "a", "b"), grey.repeat(3, 3))
    assert np.array_equal(alike(colour, colour, "a", "b"), colour)
    with pytest.raises(ValueError, match=r"a: its pictures are in colour, those of the reference \(b\) grey"):
        alike(colour, grey, "a", "b")
    with pytest.raises(ValueError, match=r"a: its pictures are 9x9, those of the reference \(b\) 8x8; resize one"):
        alike(some(size=9), grey, "a", "b")


def test_labels_are_matched_by_name() -> None:
    def labelled(names: tuple[str, ...], labels: list[int]) -> Pictures:
        return Pictures("a", some(len(labels)), np.array(labels), names, {})

    names = ("plane", "car", "bird")
    found = labels_as(labelled(("bird", "car"), [0, 1, 1]), names)
    assert found is not None
    assert found.tolist() == [2, 1, 1]
    found = labels_as(labelled(("0", "1"), [0, 1, 1]), names)
    assert found is not None
    assert found.tolist() == [0, 1, 1]
    numbers = labels_as(labelled(tuple("01234567"), [3, 7, 7]), ("7", "3"))  # names that are numbers are names
    assert numbers is not None
    assert numbers.tolist() == [1, 0, 0]
    assert labels_as(labelled(tuple("abcd"), [0, 3]), names) is None
    assert labels_as(labelled(("cat", "dog"), [0, 1]), names) is None  # other classes, though no more of them
    assert labels_as(labelled(("0", "1", "2", "3"), [0, 3]), names) is None
    assert labels_as(Pictures("a", some(), None, (), {}), names) is None


def test_beside_a_model_a_folder_is_read_as_its_data_were(tmp_path: Path) -> None:
    """At its size, cropped at the center, and in its colours: the very rows that the model's own data give."""
    for k in range(12):
        noise = np.random.default_rng(k).integers(0, 256, (36 + k % 2, 40, 3), dtype=np.uint8)
        (tmp_path / "p").mkdir(exist_ok=True)
        Image.fromarray(noise).save(tmp_path / "p" / f"{k:02d}.png")
    path = str(tmp_path / "p")
    own = Data("folder", path=path, size=16, channels=1, crop="random", held_out=6)
    splits = data.load(own)
    every = np.zeros((12, 16, 16, 1), np.uint8)
    every[[5, 11]] = splits.held_out.take(np.arange(2))["x"].numpy().transpose(0, 2, 3, 1)
    every[[k for k in range(12) if k not in (5, 11)]] = (
        splits.train.take(np.arange(10))["x"].numpy().transpose(0, 2, 3, 1)
    )
    beside = against(path, own)
    assert np.array_equal(beside.images, every)
    assert beside.name == f"{path}, 12 pictures read at --data.size 16"
    found = subject(path, own=own)
    assert isinstance(found, Pictures)
    assert np.array_equal(found.images, every)
    with pytest.raises(ValueError, match=r"pictures of 2 sizes came"):
        subject(path)
    (tmp_path / "p" / "bad.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="left out"):
        assert len(against(path, replace(own, skip_broken=True)).images) == 12


def test_the_folders_of_classes_have_their_names(tmp_path: Path) -> None:
    """Or numbers, where a name is none; either way they come back as the classes that they were."""
    labels = np.arange(24) % 3
    for k, (names, folders) in enumerate(
        (
            (("tri", "a round one", "é"), {"tri", "a round one", "é"}),
            (("7", "3", "5"), {"7", "3", "5"}),
            (("a/b", "c", "d"), {"0", "1", "2"}),
            ((".hid", "c", "d"), {"0", "1", "2"}),
            (("c", "C", "d"), {"0", "1", "2"}),
            (("c", "", "d"), {"0", "1", "2"}),
            (("c", "x" * 256, "d"), {"0", "1", "2"}),
            ((), {"0", "1", "2"}),
        )
    ):
        out = tmp_path / str(k)
        given = replace(samples(some(), labels), label_names=names)
        write(given, out)
        assert {path.name for path in out.iterdir() if path.is_dir()} == folders
        back = read_pictures(str(out))
        numbers = labels_as(back, names or ("0", "1", "2"))
        assert numbers is not None
        assert np.array_equal(
            back.images[np.argsort(numbers, kind="stable")], given.images()[np.argsort(labels, kind="stable")]
        )


def test_samples_know_the_names_of_their_models_classes() -> None:
    model = random_model(info=Info((1, 8, 8), "picture", 17, ("tri", "round")))
    assert generate(model, 2, steps=1).label_names == ("tri", "round")


@pytest.mark.parametrize(("count", "most"), [(200, 40), (10_000, 1000), (330, 60), (7, 9)])
def test_scattered_rows_are_spread_and_in_step_with_no_classes_in_turn(count: int, most: int) -> None:
    index, few = scattered(count, most), min(count, most)
    assert len(index) == few
    assert (np.arange(few) * count // few <= index).all()  # one of each equal part
    assert (index < np.arange(1, few + 1) * count // few).all()
    assert len(set(index % 10)) == min(10, few)
    if most >= count:
        assert np.array_equal(index, np.arange(count))


def test_grey_pictures_saved_in_colour_are_grey(tmp_path: Path) -> None:
    grey = some()[..., :1]
    np.savez(tmp_path / "rgb.npz", images=np.repeat(grey, 3, axis=3))
    assert np.array_equal(read_pictures(str(tmp_path / "rgb.npz")).images, grey)
    coloured = np.repeat(grey, 3, axis=3)
    coloured[0, 0, 0, 2] ^= 1
    np.savez(tmp_path / "coloured.npz", images=coloured)
    assert read_pictures(str(tmp_path / "coloured.npz")).images.shape[3] == 3
