"""Real signals, volumes and vectors from libraries: what they are, and that nothing held out is ever trained on."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from sfumato.data import Data, Rows, load
from sfumato.data.library import SLAB, patches, pieces, spread


def whole(rows: Rows) -> np.ndarray:
    x = rows.take(np.arange(len(rows)))["x"]
    assert isinstance(x, torch.Tensor)
    assert x.dtype == torch.float32
    return x.numpy()


def recording() -> np.ndarray:
    from matplotlib import cbook

    return np.fromfile(cbook.get_sample_data("membrane.dat", asfileobj=False), dtype="<f4")


def windows(first: int, after: int) -> set[bytes]:
    """Every 64 neighbouring samples of recording()[first:after]."""
    return {window.tobytes() for window in sliding_window_view(recording()[first:after], 64)}


def test_neuron() -> None:
    splits = load(Data("neuron"))
    assert (splits.info.shape, splits.info.kind, splits.info.levels) == ((1, 64), "signal", None)
    assert (len(splits.train), len(splits.held_out)) == (7_747, 1_874)
    assert "matplotlib" in splits.info.source
    assert "samples 4000-4999 and 9000-9999" in splits.info.rule
    assert rows_of(splits.held_out) == windows(4000, 5000) | windows(9000, 10_000)
    assert rows_of(splits.train) == windows(1000, 3984) | windows(5016, 8984) | windows(10_016, 11_000)


def rows_of(part: Rows) -> set[bytes]:
    return {row.tobytes() for row in whole(part)}


def test_no_training_piece_touches_what_is_held_out() -> None:
    """A window that meets a held-out sample, or one of the 16 on either side, is no training row."""
    train = rows_of(load(Data("neuron")).train)
    for first, after in ((4000, 5000), (9000, 10_000)):
        assert not train & windows(first - 16 - 63, after + 16 + 63)


def test_pieces_by_hand() -> None:
    allowed = np.ones(140, bool)
    allowed[70] = False
    cut = pieces(np.arange(140.0), allowed)
    assert np.array_equal(cut[:, 0, 0], [*range(7), *range(71, 77)])
    assert np.array_equal(cut[1, 0], np.arange(1, 65))


def test_brain() -> None:
    pytest.importorskip("nibabel")
    splits = load(Data("brain"))
    assert (splits.info.shape, splits.info.kind, splits.info.levels) == ((1, 8, 8, 8), "volume", None)
    assert (len(splits.train), len(splits.held_out)) == (12_687, 3_590)
    assert "MIT" in splits.info.source
    assert "sagittal planes 72-87 of the scan's 128" in splits.info.rule
    for rows in (splits.train, splits.held_out):
        assert ((whole(rows) != 0).mean(axis=(1, 2, 3, 4)) >= 0.5).all()


def test_no_training_patch_touches_the_slab() -> None:
    """Lines of 8 voxels across the planes tell where in the scan a patch lay."""
    nibabel = pytest.importorskip("nibabel")
    from importlib import resources

    with resources.as_file(resources.files("nibabel") / "tests/data/example4d.nii.gz") as path:
        scan = np.asarray(nibabel.load(path).dataobj, dtype=np.float32)
    splits = load(Data("brain"))
    lines = sliding_window_view(scan[SLAB.start - 2 - 7 : SLAB.stop + 2 + 7], 8, axis=0)
    touching = {line.tobytes() for line in lines.reshape(-1, 8) if (line > 0).all()}  # background says nothing
    trained = whole(splits.train).reshape(-1, 8)
    trained = trained[(trained > 0).all(1)]
    assert len(trained) > 100_000
    assert sum(line.tobytes() in touching for line in trained[::7]) <= 2  # the same 8 numbers by chance
    held_out = whole(splits.held_out).reshape(-1, 8)
    inside = {line.tobytes() for line in sliding_window_view(scan[SLAB], 8, axis=0).reshape(-1, 8)}
    assert all(line.tobytes() in inside for line in held_out[::7])


def test_patches_keep_the_order_of_the_axes() -> None:
    scan = np.arange(1, 1 + 2 * 8 * 10 * 8, dtype=np.float32).reshape(2, 8, 10, 8)
    cut = patches(scan)
    assert cut.shape == (4, 1, 8, 8, 8)
    assert np.array_equal(cut[1, 0], scan[0, :, 2:10])
    scan[1] = 0
    assert len(patches(scan)) == 2  # background alone is no patch


def test_without_nibabel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(
        ValueError, match=r"nibabel, which is missing; install the extra: pip install 'sfumato\[volumes\]'"
    ):
        load(Data("brain"))


def test_breast_cancer() -> None:
    from sklearn.datasets import load_breast_cancer

    splits, bunch = load(Data("breast_cancer", held_out=5)), load_breast_cancer()
    assert (splits.info.shape, splits.info.kind) == ((30,), "vector")
    assert splits.info.label_names == ("malignant", "benign")
    assert splits.info.rule == "rows with index % 5 == 4 of scikit-learn's order"
    assert np.array_equal(whole(splits.held_out), bunch.data[4::5].astype(np.float32))
    assert np.array_equal(splits.held_out.take(np.arange(113))["label"], bunch.target[4::5])


@pytest.mark.parametrize("n", [1, 36, 37, 38, 1000])
def test_spread_keeps_every_row_once(n: int) -> None:
    rows = spread(np.arange(n)[:, None])
    assert sorted(rows[:, 0]) == list(range(n))


def test_the_first_rows_are_like_the_rest() -> None:
    """Scores and codecs look at the first rows: their mean is that of all to a tenth of a standard deviation."""
    for part in (load(Data("neuron")).train, load(Data("neuron")).held_out):
        x = whole(part)
        assert abs(x[:1000].mean() - x.mean()) < 0.1 * x.std()


def test_pictures_edits_are_refused() -> None:
    with pytest.raises(ValueError, match="came for signals, allowed are pictures"):
        load(Data("neuron", flip=True))
