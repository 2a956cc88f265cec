"""Data in arrays: any .npz or .npy file, and what the named data sets are made of.

Names in an .npz: `train_images`, `train_labels`, `test_images`, `test_labels` (the held-out part), `train_captions`,
`test_captions`; or, without a test part, `images` (or `x`), `labels`, `captions`; `label_names` or `class_names` in both.
An .npy file holds the images alone.  What the rows are follows from dtype and rank:

    uint8   (N, H, W), (N, H, W, 1), (N, H, W, 3)    pictures
    float   (N, D)                                   vectors
            (N, C, L)                                signals
            (N, C, D, H, W)                          volumes

All else is refused.  In particular a float array of rank 4 could be pictures or volumes without their channel, so it
must say which: uint8, or (N, 1, D, H, W).
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sfumato.data.pictures import View, recolour, resize_array
from sfumato.data.rows import TableRows
from sfumato.data.source import Data, Info, Kind, Splits

FLOAT_KINDS: dict[int, Kind] = {2: "vector", 3: "signal", 5: "volume"}
ALLOWED = "allowed: uint8 pictures (N, H, W) or (N, H, W, 1 or 3), float vectors (N, D), signals (N, C, L), volumes (N, C, D, H, W)"


def file(data: Data) -> Splits:
    """The data in `data.path`, an .npz or .npy file."""
    assert data.path is not None
    return from_arrays(data, read_file(Path(data.path)), where=data.path, source=f"the file {Path(data.path).name}")


def read_file(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz or .npy file by name; no pickle is read."""
    if path.suffix not in (".npz", ".npy"):
        raise ValueError(f"{path}: a file's name must end in .npz or .npy (for a folder of pictures set name 'folder')")
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the path of an .npz or .npy file")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"images": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        if "pickle" in str(error):
            raise ValueError(
                f"{path}: holds pickled objects (dtype object), which are never read; save plain arrays with np.savez"
            ) from None
        raise ValueError(f"{path}: cannot be read ({error}); write it anew with np.savez or np.save") from None


def from_arrays(
    data: Data, arrays: Mapping[str, np.ndarray], *, where: str, source: str, order: str = "the file's order", levels: int = 256
) -> Splits:
    """Splits of arrays under the names above; `where` opens each error line, `levels` is for pictures."""
    parts = ("train_", "test_") if "train_images" in arrays else ("",)
    own_test = "test_images" in arrays and len(parts) == 2
    parts = parts if own_test else parts[:1]
    images = [_images(arrays, part, where) for part in parts]
    rows, kind = _joined(images, where)
    labels = _column(arrays, [f"{part}labels" for part in parts], images, where)
    captions = _column(arrays, [f"{part}captions" for part in parts], images, where)
    if captions is not None and captions.dtype.kind != "U":
        raise ValueError(f"{where}: captions of dtype {captions.dtype} came, allowed is text (numpy's U); np.array(list_of_str)")
    if labels is not None:
        labels = _checked_labels(labels, where)
    names = _label_names(arrays, labels, where)

    if kind == "picture":
        rows = recolour(rows, data.channels)
        if data.size is not None and data.size != min(rows.shape[-2:]):
            rows = np.stack([resize_array(row, data.size, levels) for row in rows])
        view = View(data.size, data.crop, data.flip)
    elif data.edits_pictures:
        raise ValueError(f"{where}: size, crop, flip and channels are for pictures, and these are {kind}s; leave them out")
    else:
        view = View()

    index = np.arange(len(rows))
    if own_test:
        held_out, rule = index >= len(images[0]), f"the set's own test part, {len(images[1]):,} rows"
    else:
        held_out, rule = np.array([data.is_held_out(i) for i in range(len(rows))]), f"{data.rule} of {order}"
    if not held_out.any() or held_out.all():
        raise ValueError(
            f"{where}: {len(rows)} rows leave nothing to train on or nothing to hold out by {data.rule!r}; "
            f"give more rows, or a held_out of 2 to {len(rows)}"
        )
    train, test = (TableRows(rows.__getitem__, index[part], view, labels, captions) for part in (~held_out, held_out))
    shape = train.take(np.zeros(1, dtype=np.int64))["x"].shape[1:]  # type: ignore[union-attr]
    info = Info(tuple(shape), kind, levels if kind == "picture" else None, names, source, rule)
    return Splits(train, test, info)


def _images(arrays: Mapping[str, np.ndarray], part: str, where: str) -> np.ndarray:
    names = [f"{part}images"] if part else ["images", "x"]
    for name in names:
        if name in arrays:
            return arrays[name]
    came = ", ".join(arrays) or "nothing"
    raise ValueError(f"{where}: holds {came}, but no images; name the array 'images' (or 'x'), or 'train_images' and 'test_images'")


def _joined(parts: list[np.ndarray], where: str) -> tuple[np.ndarray, Kind]:
    """All parts as one array, pictures as (N, C, H, W) uint8, all else as finite float32; and what they are."""
    first = parts[0]
    for part in parts:
        if part.ndim < 1 or len(part) == 0:
            raise ValueError(f"{where}: an array of shape {part.shape} came, without a row; {ALLOWED}")
        if part.shape[1:] != first.shape[1:] or part.dtype != first.dtype:
            raise ValueError(
                f"{where}: train rows are {first.dtype} {first.shape[1:]} and test rows {part.dtype} {part.shape[1:]}; make them alike"
            )
    rows = np.concatenate(parts) if len(parts) > 1 else first
    came = f"{where}: {rows.dtype} of shape {rows.shape} came"
    if rows.dtype == np.uint8:
        return _pictures(rows, came), "picture"
    if rows.dtype.kind != "f":
        raise ValueError(f"{came}; {ALLOWED}; convert with .astype(np.uint8) or .astype(np.float32)")
    if rows.ndim == 4:
        raise ValueError(f"{came}, which could be pictures or volumes; save pictures as uint8 0..255, volumes as (N, 1, D, H, W)")
    if rows.ndim not in FLOAT_KINDS or 0 in rows.shape:
        raise ValueError(f"{came}; {ALLOWED}; reshape it")
    with np.errstate(over="ignore"):
        rows = rows.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{where}: {len(bad)} of {len(rows)} rows hold NaN or infinity ({_some(bad)}), allowed are finite numbers; fill or remove those rows"
        )
    return rows, FLOAT_KINDS[rows.ndim]


def _pictures(rows: np.ndarray, came: str) -> np.ndarray:
    """(N, C, H, W) from (N, H, W) or (N, H, W, C)."""
    if rows.ndim == 4 and rows.shape[3] not in (1, 3) and rows.shape[1] in (1, 3):
        raise ValueError(f"{came}; pictures have their channels last; save images.transpose(0, 2, 3, 1)")
    if rows.ndim not in (3, 4) or (rows.ndim == 4 and rows.shape[3] not in (1, 3)):
        raise ValueError(f"{came}; {ALLOWED}; reshape it, or convert it with .astype(np.float32)")
    if min(rows.shape[1:3]) < 2:
        raise ValueError(f"{came}, allowed are pictures of at least 2x2 pixels; reshape it")
    return rows[:, None] if rows.ndim == 3 else np.ascontiguousarray(rows.transpose(0, 3, 1, 2))


def _column(arrays: Mapping[str, np.ndarray], names: list[str], images: list[np.ndarray], where: str) -> np.ndarray | None:
    """One value a row (labels, captions) for all parts, or None where the file has none."""
    there = [name for name in names if name in arrays]
    if not there:
        return None
    if there != names:
        raise ValueError(f"{where}: holds {there[0]} but not all of {', '.join(names)}; add what is missing or leave out both")
    columns = [arrays[name].reshape(-1) if arrays[name].shape[1:] == (1,) else arrays[name] for name in names]
    for name, column, rows in zip(names, columns, images, strict=True):
        if column.shape != (len(rows),):
            raise ValueError(f"{where}: {name} of shape {column.shape} came for {len(rows)} rows, allowed is ({len(rows)},)")
    return np.concatenate(columns)


def _checked_labels(labels: np.ndarray, where: str) -> np.ndarray:
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{where}: labels of dtype {labels.dtype} came, allowed are integers 0, 1, ...; convert with .astype(np.int64)")
    negative = np.flatnonzero(labels < 0)
    if len(negative):
        low = labels[negative].min()
        raise ValueError(f"{where}: {len(negative)} labels are negative, down to {low} ({_some(negative)}), allowed is 0 and above; renumber them")
    return labels.astype(np.int64)


def _label_names(arrays: Mapping[str, np.ndarray], labels: np.ndarray | None, where: str) -> tuple[str, ...]:
    """The file's names of the classes, or "0", "1", ... up to the largest label; () without labels."""
    if labels is None:
        return ()
    for key in ("label_names", "class_names"):
        if key in arrays:
            names = tuple(str(name) for name in arrays[key].reshape(-1))
            bad = np.flatnonzero(labels >= len(names))
            if len(bad):
                raise ValueError(
                    f"{where}: {len(bad)} labels are out of range, up to {labels.max()} ({_some(bad)}), allowed is 0 to {len(names) - 1} "
                    f"by the {len(names)} {key}; mend the labels or add names"
                )
            return names
    if labels.max() >= max(len(labels), 1000):
        raise ValueError(
            f"{where}: labels up to {labels.max()} came for {len(labels)} rows, allowed is 0 to (number of classes - 1); "
            f"renumber them with np.unique(labels, return_inverse=True)[1]"
        )
    return tuple(str(label) for label in range(int(labels.max()) + 1))


def _some(rows: np.ndarray, most: int = 5) -> str:
    """ "rows 3, 8, 11, ..." """
    return ("rows " if len(rows) > 1 else "row ") + ", ".join(map(str, rows[:most])) + (", ..." if len(rows) > most else "")
