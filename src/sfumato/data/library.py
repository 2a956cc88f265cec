"""Real signals, volumes and vectors that come inside libraries: nothing is fetched.

Pieces and patches are windows cut from one recording or one scan, and windows that overlap share their values.  So
what is held out is a block of the recording or scan itself, with a gap around it: no held-out value, nor a close
neighbour of one, is ever trained on.  Rows come spread over what they were cut from, so that the first few are like
the rest.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from sfumato.data.arrays import from_arrays
from sfumato.data.source import Data, Splits
from sfumato.options import install

WINDOW = 64  # samples of a piece of the recording
FIRING = (1000, 11000)  # samples in which the neuron is driven; it rests before and after
BLOCK = 1000  # of every five blocks of so many samples the last is held out
BLOCK_GAP = 16  # samples on either side of it that are left out

PATCH = 8  # voxels a side
PATCH_STRIDE = 2
SLAB = slice(72, 88)  # sagittal planes of the scan that are held out
SLAB_GAP = 2

SPREAD = 37  # prime, so in step with no stride


def neuron(data: Data) -> Splits:
    """Pieces of 64 samples of a real neuron's membrane potential while it fires; embedded in matplotlib."""
    from matplotlib import cbook

    potential = np.fromfile(cbook.get_sample_data("membrane.dat", asfileobj=False), dtype="<f4")
    where = np.arange(len(potential))
    firing = (where >= FIRING[0]) & (where < FIRING[1])
    held_out = where // BLOCK % 5 == 4
    near = np.convolve(held_out, np.ones(2 * BLOCK_GAP + 1), "same") > 0.5
    source = "membrane potential of a firing neuron: sample data of matplotlib (membrane.dat), under its licence"
    rule = f"windows inside samples 4000-4999 and 9000-9999; training windows keep {BLOCK_GAP} samples away from them"
    parts = [pieces(potential, firing & part) for part in (~near, held_out)]
    return _own_parts(data, parts[0], parts[1], source, rule)


def pieces(signal: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The windows of a signal (L,) that lie in samples which are all `allowed` (L,): (N, 1, WINDOW)."""
    whole = sliding_window_view(allowed, WINDOW).all(axis=1)
    return sliding_window_view(signal, WINDOW)[whole, None]


def brain(data: Data) -> Splits:
    """Patches of 8x8x8 voxels from a real magnetic resonance scan of a head; embedded in nibabel (an extra)."""
    try:
        import nibabel
    except ImportError:
        raise ValueError(f"brain: its scan comes with nibabel, which is missing; {install('volumes')}") from None

    with resources.as_file(resources.files("nibabel") / "tests" / "data" / "example4d.nii.gz") as path:
        image: Any = nibabel.load(path)
        scan = np.asarray(image.dataobj, dtype=np.float32).transpose(3, 2, 1, 0)  # (time, z, y, x)
    train = (scan[..., : SLAB.start - SLAB_GAP], scan[..., SLAB.stop + SLAB_GAP :])
    source = "a functional MRI scan of a head, 2 x 2 x 2.2 mm: example4d.nii.gz of nibabel, MIT"
    rule = (
        f"patches inside sagittal planes {SLAB.start}-{SLAB.stop - 1} of the scan's {scan.shape[3]}; training patches "
        f"keep {SLAB_GAP} planes away from them"
    )
    return _own_parts(data, np.concatenate([patches(part) for part in train]), patches(scan[..., SLAB]), source, rule)


def patches(scan: np.ndarray) -> np.ndarray:
    """Cubes of a scan (time, z, y, x) of which at least half is head (not zero): (N, 1, PATCH, PATCH, PATCH)."""
    windows = sliding_window_view(scan, (PATCH,) * 3, axis=(1, 2, 3))[:, ::PATCH_STRIDE, ::PATCH_STRIDE, ::PATCH_STRIDE]
    cubes = windows.reshape(-1, 1, PATCH, PATCH, PATCH)
    return cubes[(cubes != 0).mean(axis=(1, 2, 3, 4)) >= 0.5]


def breast_cancer(data: Data) -> Splits:
    """569 tumours by 30 measures of their cells' nuclei, malignant or benign; embedded in scikit-learn."""
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    arrays = {"x": bunch.data, "labels": bunch.target, "label_names": bunch.target_names.astype(str)}
    source = (
        "Breast Cancer Wisconsin, diagnostic (W. Wolberg, N. Street, O. Mangasarian, UCI 1995), CC BY 4.0, "
        "through scikit-learn"
    )
    return from_arrays(data, arrays, where="breast_cancer", source=source, order="scikit-learn's order")


def _own_parts(data: Data, train: np.ndarray, held_out: np.ndarray, source: str, rule: str) -> Splits:
    arrays = {"train_images": spread(train), "test_images": spread(held_out)}
    splits = from_arrays(data, arrays, where=data.name, source=source)
    return replace(splits, info=replace(splits.info, rule=rule))


def spread(rows: np.ndarray) -> np.ndarray:
    """The same rows: 0, SPREAD, 2 SPREAD, ..., then 1, 1 + SPREAD, ..."""
    return np.concatenate([rows[start::SPREAD] for start in range(SPREAD)])
