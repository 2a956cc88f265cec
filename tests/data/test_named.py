"""Sets known by name, the variable SFUMATO_DATA, and what a wrong name or setting is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from sfumato import data
from sfumato.data import DATASETS, Data, load

stored = pytest.mark.skipif("SFUMATO_DATA" not in os.environ, reason="SFUMATO_DATA is unset: no real data")


def test_digits() -> None:
    from sklearn.datasets import load_digits

    splits, bunch = load(Data("digits", held_out=5)), load_digits()
    info = splits.info
    assert (info.shape, info.levels, info.kind) == ((1, 8, 8), 17, "picture")
    assert info.label_names == tuple("0123456789")
    assert info.rule == "rows with index % 5 == 4 of scikit-learn's order"
    assert "CC BY 4.0" in info.source
    whole = np.arange(1797)
    for part, rows in ((whole[whole % 5 != 4], splits.train), (whole[whole % 5 == 4], splits.held_out)):
        taken = rows.take(np.arange(len(rows)))
        assert taken["x"].dtype == torch.uint8
        assert np.array_equal(taken["x"][:, 0].numpy(), bunch.images[part])
        assert np.array_equal(taken["label"].numpy(), bunch.target[part])
    assert splits.train.take(np.arange(len(splits.train)))["x"].max() == 16


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_digits_are_never_mirrored(name: str) -> None:
    with pytest.raises(ValueError, match=f"flip came for {name}.*leave flip out"):
        load(Data(name, flip=True))


@stored
@pytest.mark.parametrize(
    ("name", "shape", "classes", "rows"),
    [("mnist", (1, 28, 28), 10, 10_000), ("cifar10", (3, 32, 32), 10, 4_000), ("emoji", (3, 64, 64), 9, 260)],
)
def test_stored_sets(name: str, shape: tuple[int, ...], classes: int, rows: int) -> None:
    splits = load(Data(name))
    with np.load(Path(os.environ["SFUMATO_DATA"]) / f"{name}.npz") as arrays:
        x, labels = arrays["test_images"], arrays["test_labels"]
    assert splits.info.shape == shape
    assert len(splits.info.label_names) == classes
    assert len(splits.held_out) == rows
    taken = splits.held_out.take(np.arange(rows))
    assert np.array_equal(taken["x"].permute(0, 2, 3, 1).squeeze(-1).numpy(), x)
    assert np.array_equal(taken["label"].numpy(), labels)
    assert ("caption" in taken) == (name == "emoji")


def fake_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    """A loader of torchvision's shape that fetches nothing."""

    def loader(root: str, train: bool, download: bool) -> Any:
        assert download
        assert Path(root).is_dir()
        n = 30 if train else 20
        pixels = np.full((n, *shape), 200 if train else 100, np.uint8)
        return SimpleNamespace(data=pixels, targets=[i % 10 for i in range(n)], classes=[f"{i} - c" for i in range(10)])

    monkeypatch.setattr(torchvision.datasets, name, loader)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "loader", "shape"),
    [("mnist", "MNIST", (28, 28)), ("fashion", "FashionMNIST", (28, 28)), ("cifar10", "CIFAR10", (32, 32, 3))],
)
@pytest.mark.parametrize("elsewhere", [True, False])
def test_fetched_sets(
    name: str, loader: str, shape: tuple[int, ...], elsewhere: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if elsewhere:
        monkeypatch.setenv("SFUMATO_DATA", str(tmp_path))  # set, but without this set
    else:
        monkeypatch.delenv("SFUMATO_DATA", raising=False)
    fake_set(monkeypatch, tmp_path, loader, shape)
    splits = load(Data(name))
    assert splits.held_out.take([0])["x"].unique().tolist() == [100]
    assert splits.train.take([0])["x"].unique().tolist() == [200]
    assert (len(splits.train), len(splits.held_out), len(splits.info.label_names)) == (30, 20, 10)


def test_a_fetch_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*args: object, **options: object) -> None:
        raise RuntimeError("Error downloading\nname not known")

    monkeypatch.delenv("SFUMATO_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", offline)
    with pytest.raises(ValueError, match=r"Error downloading name not known.*set SFUMATO_DATA to .* fashion\.npz"):
        load(Data("fashion"))


def test_any_name_in_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SFUMATO_DATA", str(tmp_path))
    np.savez(
        tmp_path / "flowers.npz", train_images=np.zeros((8, 4, 4), np.uint8), test_images=np.ones((2, 4, 4), np.uint8)
    )
    assert len(load(Data("flowers")).held_out) == 2
    with pytest.raises(ValueError, match=r"unknown data set 'flower'; did you mean 'flowers'\?.*flower\.npz"):
        load(Data("flower"))
    with pytest.raises(ValueError, match=r"emoji: no file, and no loader .*put emoji\.npz into"):
        load(Data("emoji"))


def test_unknown_names_and_a_wrong_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SFUMATO_DATA", raising=False)
    with pytest.raises(ValueError, match=r"unknown data set 'mnits'; did you mean 'mnist'\?.*set SFUMATO_DATA to"):
        load(Data("mnits"))
    with pytest.raises(ValueError, match=r"emoji: no file.*set SFUMATO_DATA"):
        load(Data("emoji"))
    monkeypatch.setenv("SFUMATO_DATA", "/no/such/folder")
    with pytest.raises(ValueError, match="SFUMATO_DATA is '/no/such/folder', which is no folder"):
        load(Data("mnist"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Data("folder"), "without a path"),
        (Data("digits", path="a"), "'digits' reads no path"),
        (Data(held_out=1), "held_out is 1, allowed is 2 or more"),
        (Data(size=1), "size is 1"),
        (Data(channels=2), "channels is 2"),
        (Data(crop="left"), "crop is 'left'"),
        (Data(crop="random"), "crop 'random' came without a size"),
    ],
)
def test_wrong_settings(wrong: Data, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(wrong)


def test_every_row_of_the_table_says_what_it_is() -> None:
    assert all(function.__doc__ for function in DATASETS.values())


@pytest.mark.slow
def test_importing_the_room_is_cheap() -> None:
    heavy = "PIL sklearn torchvision datasets scipy"
    code = f"import sys, sfumato.data; print([m for m in '{heavy}'.split() if m in sys.modules])"
    folder = str(Path(data.__file__).parents[2])
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": folder},
    )
    assert out.stdout.strip() == "[]"
