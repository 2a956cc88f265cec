"""Real signals, volumes and vectors that come inside libraries: nothing is fetched.

Profiles and patches are windows cut from one map or one scan, and windows that overlap share their values.  So what
is held out is a block of the map or scan itself, with a gap around it: no held-out value, nor a close neighbour of
one, is ever trained on.  Rows come spread over the place they were cut from, so that the first few are like the rest.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from sfumato.data.arrays import from_arrays
from sfumato.data.source import Data, Splits

PROFILE = 64  # samples of a profile
PROFILE_STRIDE = 4  # between the beginnings of neighbouring profiles
STRIP = slice(136, 208)  # rows of the map that are held out
STRIP_GAP = 4  # rows on either side of them that are left out

PATCH = 8  # voxels a side
PATCH_STRIDE = 2
SLAB = slice(72, 88)  # sagittal planes of the scan that are held out
SLAB_GAP = 2

SPREAD = 37  # prime, so in step with no stride


def terrain(data: Data) -> Splits:
    """Elevation profiles of 64 samples, in metres, from a real map of hills and plains; embedded in matplotlib."""
    from matplotlib import cbook

    path = cbook.get_sample_data("jacksboro_fault_dem.npz", asfileobj=False)
    with np.load(path, allow_pickle=False) as arrays:
        elevation = arrays["elevation"].astype(np.float32)
    train = (elevation[: STRIP.start - STRIP_GAP], elevation[STRIP.stop + STRIP_GAP :])
    source = (
        "elevations around the Jacksboro fault, Tennessee, on a grid of 3 arc seconds: sample data of matplotlib "
        "(jacksboro_fault_dem.npz), given under matplotlib's licence"
    )
    rule = (
        f"windows inside rows {STRIP.start}-{STRIP.stop - 1} of the map's {len(elevation)}; training windows keep "
        f"{STRIP_GAP} rows away from them"
    )
    return _own_parts(data, [profiles(part) for part in train], [profiles(elevation[STRIP])], source, rule)


def profiles(elevation: np.ndarray) -> np.ndarray:
    """Windows along the rows and columns of a map (H, W): (N, 1, PROFILE)."""
    along_rows = sliding_window_view(elevation, PROFILE, axis=1)[:, ::PROFILE_STRIDE]
    along_columns = sliding_window_view(elevation, PROFILE, axis=0)[::PROFILE_STRIDE]
    return np.concatenate([windows.reshape(-1, 1, PROFILE) for windows in (along_rows, along_columns)])


def brain(data: Data) -> Splits:
    """Patches of 8x8x8 voxels from a real magnetic resonance scan of a head; embedded in nibabel (an extra)."""
    try:
        import nibabel
    except ImportError:
        raise ValueError(
            "brain: its scan comes with nibabel, which is missing; pip install 'sfumato[volumes]'"
        ) from None

    with resources.as_file(resources.files("nibabel") / "tests" / "data" / "example4d.nii.gz") as path:
        image: Any = nibabel.load(path)
        scan = np.asarray(image.dataobj, dtype=np.float32).transpose(3, 2, 1, 0)  # (time, z, y, x)
    train = (scan[..., : SLAB.start - SLAB_GAP], scan[..., SLAB.stop + SLAB_GAP :])
    source = "a functional MRI scan of a head, 2 x 2 x 2.2 mm: example4d.nii.gz of nibabel, MIT"
    rule = (
        f"patches inside sagittal planes {SLAB.start}-{SLAB.stop - 1} of the scan's {scan.shape[3]}; training patches "
        f"keep {SLAB_GAP} planes away from them"
    )
    return _own_parts(data, [patches(part) for part in train], [patches(scan[..., SLAB])], source, rule)


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


def _own_parts(data: Data, train: list[np.ndarray], held_out: list[np.ndarray], source: str, rule: str) -> Splits:
    arrays = {"train_images": spread(np.concatenate(train)), "test_images": spread(np.concatenate(held_out))}
    splits = from_arrays(data, arrays, where=data.name, source=source)
    return replace(splits, info=replace(splits.info, rule=rule))


def spread(rows: np.ndarray) -> np.ndarray:
    """The same rows: 0, SPREAD, 2 SPREAD, ..., then 1, 1 + SPREAD, ..."""
    return np.concatenate([rows[start::SPREAD] for start in range(SPREAD)])
