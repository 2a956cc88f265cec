"""Data in arrays: any .npz or .npy file, and what the named data sets are made of.

Names in an .npz: `train_images`, `train_labels`, `train_captions`, and for the held-out part `test_images`,
`test_labels`, `test_captions`; or, without a test part, `images` (or `x`), `labels`, `captions`; in both `label_names`
or `class_names`.  An .npy file holds the images alone.  What the rows are follows from dtype and rank:

    uint8   (N, H, W), (N, H, W, 1), (N, H, W, 3)    pictures
    float   (N, D)                                   vectors
            (N, C, L)                                signals
            (N, C, D, H, W)                          volumes

All else is refused.  In particular a float array of rank 4 could be pictures or volumes without their channel, so it
must say which: uint8, or (N, 1, D, H, W).
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from sfumato.data.pictures import View, recolour, resize_array
from sfumato.data.rows import TableRows
from sfumato.data.source import Data, Info, Kind, Splits

FLOAT_KINDS: dict[int, Kind] = {2: "vector", 3: "signal", 5: "volume"}
ALLOWED = (
    "allowed: uint8 pictures (N, H, W) or (N, H, W, 1 or 3), float vectors (N, D), signals (N, C, L), "
    "volumes (N, C, D, H, W)"
)


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
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error):
            wrong = "holds pickled objects (dtype object), which are never read, or is no array file"
            raise ValueError(f"{path}: {wrong}; save plain arrays with np.savez or np.save") from None
        raise ValueError(f"{path}: cannot be read ({error}); write it anew with np.savez or np.save") from None


def from_arrays(
    data: Data,
    arrays: Mapping[str, np.ndarray],
    *,
    where: str,
    source: str,
    order: str = "the file's order",
    levels: int = 256,
) -> Splits:
    """Splits of arrays under the names above; `where` opens each error line, `levels` is for pictures."""
    names = [name for name in ("train_images", "test_images") if name in arrays]
    if "train_images" not in names:
        names = [next((name for name in ("images", "x") if name in arrays), "")]
    if not names[0]:
        came = ", ".join(arrays) or "nothing"
        raise ValueError(f"{where}: holds {came}; allowed is 'images' (or 'x'), or 'train_images' and 'test_images'")
    prefixes = [name.removesuffix("images") if name.endswith("images") else "" for name in names]
    parts = [parse(arrays[name], f"{where}, {name}") for name in names]
    kind = parts[0][1]
    shapes = [rows.shape[1:] for rows, _ in parts]
    if any(part[1] != kind for part in parts) or len(set(shapes)) > 1:
        raise ValueError(
            f"{where}: training rows of shape {shapes[0]} and test rows of {shapes[1]} came; make them alike"
        )
    rows = np.concatenate([part for part, _ in parts]) if len(parts) > 1 else parts[0][0]
    sizes = {prefix: len(part) for prefix, (part, _) in zip(prefixes, parts, strict=True)}
    labels = column(arrays, "labels", sizes, where, parse_labels)
    captions = column(arrays, "captions", sizes, where, parse_captions)
    label_names = () if labels is None else class_names(arrays, labels, where)

    rows, view = _edited(rows, kind, data, levels, where)
    index = np.arange(len(rows))
    if len(parts) == 2:
        held_out, rule = index >= len(parts[0][0]), f"the set's own test part, {len(parts[1][0]):,} rows"
    else:
        held_out, rule = np.array([data.is_held_out(i) for i in range(len(rows))]), f"{data.rule} of {order}"
    if not held_out.any():
        raise ValueError(
            f"{where}: {len(rows)} rows are too few to hold out {rule}; add some, or lower held_out (2 or more)"
        )
    train, test = (TableRows(rows.__getitem__, index[part], view, labels, captions) for part in (~held_out, held_out))
    shape = view(rows[:1]).shape[1:]
    return Splits(train, test, Info(shape, kind, levels if kind == "picture" else None, label_names, source, rule))


def _edited(rows: np.ndarray, kind: Kind, data: Data, levels: int, where: str) -> tuple[np.ndarray, View]:
    """Rows in the colour and size asked for, and the view that crops and mirrors them."""
    if kind != "picture":
        if data.edits_pictures:
            raise ValueError(
                f"{where}: size, crop, flip or channels came for {kind}s, allowed are pictures; leave them out"
            )
        return rows, View()
    rows = recolour(rows, data.channels)
    if data.size is not None and data.size != min(rows.shape[-2:]):
        rows = np.stack([resize_array(row, data.size, levels) for row in rows])
    return rows, View(data.size, data.crop, data.flip)


def parse(rows: np.ndarray, where: str) -> tuple[np.ndarray, Kind]:
    """Pictures as (N, C, H, W) uint8, all else as finite float32; and what they are by the table above."""
    came = f"{where}: {rows.dtype} of shape {rows.shape} came"
    if 0 in rows.shape or rows.ndim < 2:
        raise ValueError(f"{came}, without rows or without values; {ALLOWED}; a column of numbers is x.reshape(-1, 1)")
    if rows.dtype == np.uint8:
        return parse_pictures(rows, came), "picture"
    if rows.dtype.kind != "f":
        raise ValueError(f"{came}; {ALLOWED}; convert it with .astype(np.uint8) or .astype(np.float32)")
    if rows.ndim == 4:
        ways = "save pictures as uint8 0..255, volumes as (N, 1, D, H, W)"
        raise ValueError(f"{came}, which could be pictures or volumes; {ways}")
    if rows.ndim not in FLOAT_KINDS:
        raise ValueError(f"{came}; {ALLOWED}; reshape it")
    with np.errstate(over="ignore"):
        rows = rows.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))
    if len(bad):
        wrong = f"{len(bad)} of {len(rows)} rows hold NaN or infinity (or overflow float32): {some(bad)}"
        raise ValueError(f"{where}: {wrong}; allowed are finite numbers; fill or remove those rows")
    return rows, FLOAT_KINDS[rows.ndim]


def parse_pictures(rows: np.ndarray, came: str) -> np.ndarray:
    """(N, C, H, W) from (N, H, W) or (N, H, W, C)."""
    if rows.ndim == 4 and rows.shape[3] not in (1, 3) and rows.shape[1] in (1, 3):
        raise ValueError(f"{came}, allowed are pictures with their channels last; save images.transpose(0, 2, 3, 1)")
    if rows.ndim not in (3, 4) or (rows.ndim == 4 and rows.shape[3] not in (1, 3)):
        raise ValueError(f"{came}; {ALLOWED}; reshape it, or convert it with .astype(np.float32)")
    if min(rows.shape[1:3]) < 2:
        raise ValueError(
            f"{came}, allowed are pictures of at least 2x2 pixels; reshape it, or save it as float vectors"
        )
    return rows[:, None] if rows.ndim == 3 else np.ascontiguousarray(rows.transpose(0, 3, 1, 2))


def column(
    arrays: Mapping[str, np.ndarray],
    name: str,
    sizes: Mapping[str, int],
    where: str,
    parse_one: Callable[[np.ndarray, str], np.ndarray],
) -> np.ndarray | None:
    """One value a row for all parts (their prefixes and sizes), or None where there are none."""
    wanted = {f"{prefix}{name}": size for prefix, size in sizes.items()}
    there = [key for key in wanted if key in arrays]
    if not there:
        return None
    if len(there) < len(wanted):
        raise ValueError(
            f"{where}: {there[0]} came without its like; allowed is all or none of {', '.join(wanted)}; add it"
        )
    parsed = []
    for key, size in wanted.items():
        values = arrays[key].reshape(-1) if arrays[key].shape[1:] == (1,) else arrays[key]
        if values.shape != (size,):
            raise ValueError(
                f"{where}: {key} of shape {values.shape} came for {size} rows, allowed is ({size},); one a row"
            )
        parsed.append(parse_one(values, f"{where}, {key}"))
    return np.concatenate(parsed)


def parse_captions(captions: np.ndarray, where: str) -> np.ndarray:
    """Captions (N,) of numpy's text dtype."""
    if captions.dtype.kind != "U":
        raise ValueError(f"{where}: dtype {captions.dtype} came, allowed is text; save np.array(list_of_str)")
    return captions


def parse_labels(labels: np.ndarray, where: str) -> np.ndarray:
    """Labels (N,) int64, none negative."""
    if labels.dtype.kind not in "iu":
        raise ValueError(
            f"{where}: dtype {labels.dtype} came, allowed are integers 0, 1, ...; convert it with .astype(np.int64)"
        )
    bad = np.flatnonzero(labels < 0)
    if len(bad):
        wrong = f"{len(bad)} negative labels, down to {labels.min()} ({some(bad)})"
        raise ValueError(f"{where}: {wrong} came, allowed is 0 and above; renumber them or remove those rows")
    return labels.astype(np.int64)


def class_names(arrays: Mapping[str, np.ndarray], labels: np.ndarray, where: str) -> tuple[str, ...]:
    """The file's names of the classes, else "0", "1", ... up to the largest label."""
    for key in ("label_names", "class_names"):
        if key in arrays:
            names = tuple(str(name) for name in arrays[key].reshape(-1))
            bad = np.flatnonzero(labels >= len(names))
            if len(bad):
                wrong = f"{len(bad)} labels out of range, up to {labels.max()} ({some(bad)})"
                allowed = f"allowed is 0 to {len(names) - 1} by its {len(names)} {key}"
                raise ValueError(f"{where}: {wrong} came, {allowed}; mend the labels or add names")
            return names
    if labels.max() >= max(len(labels), 1000):
        wrong = f"labels up to {labels.max()} came for {len(labels)} rows, allowed is 0 to (number of classes - 1)"
        raise ValueError(f"{where}: {wrong}; renumber them with np.unique(labels, return_inverse=True)[1]")
    return tuple(str(label) for label in range(int(labels.max()) + 1))


def some(rows: np.ndarray, most: int = 5) -> str:
    """The first few of these row numbers: "rows 3, 8, 11, 12, 20, ..."."""
    first = ", ".join(map(str, rows[:most]))
    return ("rows " if len(rows) > 1 else "row ") + first + (", ..." if len(rows) > most else "")
