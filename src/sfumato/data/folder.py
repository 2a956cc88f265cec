"""A folder of pictures, of any sizes and modes.

Rows come in the order of their sorted paths.  Every file in the folder and below must be a picture, except hidden
ones, `metadata.jsonl`, and a `.txt` beside a picture of the same stem.  First-level sub-folders, if there are two or
more, are the classes, in sorted order; exactly the two sub-folders `train` and `test` are the two parts, and the
classes lie within.  A picture's caption is its line {"file_name": ..., "text" or "caption": ...} in the metadata.jsonl
of its folder, else of the nearest one above, else its `.txt`.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np

from sfumato.data import decoded
from sfumato.data.decoded import Complaints
from sfumato.data.pictures import View, decode, in_threads
from sfumato.data.rows import TableRows
from sfumato.data.source import Data, Info, Splits

CACHE_BYTES = 2**30  # decoded pictures are kept in memory when all of them fit in this
METADATA = "metadata.jsonl"


def folder(data: Data) -> Splits:
    """The pictures in `data.path`; each file is decoded once at the start, and all unusable ones named."""
    assert data.path is not None
    root, channels = Path(data.path), data.channels or 3
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; give the path of a folder of pictures")
    listed, metadata, complaints = listing(root)
    captions = caption_lines(root, listed, metadata, complaints)
    keep = None if data.cache is None else decoded.place(data.cache, root, listed, channels, data.size)
    names, shapes, cache = examine(root, listed, channels, data.size, complaints, keep)
    settle(root, complaints, data.skip_broken)
    shape = common_shape(root, names, shapes, channels, data.size)

    labels, label_names = classes(root, names)
    texts = caption_column(root, names, captions)
    held_out, rule = held_out_part(root, names, data)
    read = reader(root, names, channels, data.size, cache)
    view, index = View(data.size, data.crop, data.flip), np.arange(len(names))
    train, test = (TableRows(read, index[part], view, labels, texts) for part in (~held_out, held_out))
    return Splits(train, test, Info(shape, "picture", 256, label_names, f"the folder {root.resolve().name}", rule))


def listing(root: Path) -> tuple[list[str], list[str], Complaints]:
    """Sorted paths below `root` of what should be pictures, paths of each metadata.jsonl, texts without a picture."""
    files: list[PurePosixPath] = []
    for where, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = PurePosixPath(Path(where).relative_to(root).as_posix())
        files += [inside / name for name in names if not name.startswith(".")]
    metadata = [str(file) for file in sorted(files, key=lambda file: len(file.parts)) if file.name == METADATA]
    pictures = sorted(str(file) for file in files if file.suffix != ".txt" and file.name != METADATA)
    stems = {str(PurePosixPath(name).with_suffix("")) for name in pictures}
    texts = [file for file in files if file.suffix == ".txt" and str(file.with_suffix("")) not in stems]
    return pictures, metadata, [(str(text), "text without a picture of the same name") for text in sorted(texts)]


def examine(
    root: Path, listed: list[str], channels: int, size: int | None, complaints: Complaints, keep: Path | None = None
) -> tuple[list[str], list[tuple[int, ...]], list[np.ndarray] | decoded.Decoded | None]:
    """Decodes every file once: names and shapes of the good ones, their pixels if all fit in memory.

    keep: or into these files (`decoded`), from which they are taken if they are there already.
    """
    if keep is not None:
        if (found := decoded.read(keep)) is None:
            with decoded.writing(keep, complaints) as write:
                _each(root, listed, channels, size, complaints, write)
            found = decoded.read(keep)
            assert found is not None, keep
        else:
            complaints += found.complaints
        return found.names, found.shapes, found
    names: list[str] = []
    shapes: list[tuple[int, ...]] = []
    cache: list[np.ndarray] = []
    total = 0

    def remember(name: str, picture: np.ndarray) -> None:
        nonlocal total
        names.append(name)
        shapes.append(picture.shape)
        total += picture.nbytes
        if total <= CACHE_BYTES:
            cache.append(picture)
        else:
            cache.clear()

    _each(root, listed, channels, size, complaints, remember)
    return names, shapes, cache if total <= CACHE_BYTES else None


def _each(
    root: Path, listed: list[str], channels: int, size: int | None, complaints: Complaints, keep: decoded.Keep
) -> None:
    """Decodes every file, in threads, and gives the good ones to `keep` in their order."""

    def attempt(name: str) -> np.ndarray | str:
        try:
            path = root / name
            return "empty" if path.stat().st_size == 0 else decode(path, channels, size)
        except (OSError, ValueError) as error:
            return str(error)

    for name, outcome in zip(listed, in_threads(attempt, listed), strict=True):
        if isinstance(outcome, str):
            complaints.append((name, outcome))
        else:
            keep(name, outcome)


def settle(root: Path, complaints: Complaints, skip_broken: bool) -> None:
    """One line that names every unusable file: an error, or with `skip_broken` a warning."""
    if not complaints:
        return
    each = ", ".join(f"{name} ({wrong})" for name, wrong in sorted(complaints))
    line = f"{root}: cannot use {len(complaints)} file{'s' * (len(complaints) > 1)}: {each}"
    if not skip_broken:
        raise ValueError(
            f"{line}; allowed are pictures of at least 2x2 pixels; mend or remove these, or set skip_broken "
            "(in training: --data.skip-broken)"
        )
    warnings.warn(f"{line}; they are left out (skip_broken)", stacklevel=3)


def common_shape(
    root: Path, names: list[str], shapes: list[tuple[int, ...]], channels: int, size: int | None
) -> tuple[int, ...]:
    """One row's shape; ValueError if there is no row, or if rows differ and no size is set."""
    if not names:
        raise ValueError(f"{root}: no picture in this folder; give a folder that holds some, e.g. .png or .jpg")
    if size is not None:
        return (channels, size, size)
    sizes = sorted({(shape[2], shape[1]) for shape in shapes})
    if len(sizes) > 1:
        least, most = (f"{width}x{height}" for width, height in (sizes[0], sizes[-1]))
        came = f"pictures of {len(sizes)} sizes came, from {least} to {most}"
        raise ValueError(f"{root}: {came}; allowed is one size; set size, e.g. --data.size 64")
    return shapes[0]


def reader(
    root: Path, names: list[str], channels: int, size: int | None, cache: list[np.ndarray] | decoded.Decoded | None
) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Rows by number, from memory or decoded in threads."""

    def one(number: int) -> np.ndarray:
        try:
            return decode(root / names[number], channels, size)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{root / names[number]}: {error}; it was a good picture when the run began; mend it"
            ) from None

    if cache is not None:
        return lambda numbers: [cache[number] for number in numbers]
    return lambda numbers: list(in_threads(one, numbers))


def _inner(names: list[str]) -> list[PurePosixPath]:
    """The paths within their part: as they are, or below `train` and `test`."""
    paths = [PurePosixPath(name) for name in names]
    return [path.relative_to(path.parts[0]) for path in paths] if _has_parts(names) else paths


def _has_parts(names: list[str]) -> bool:
    return {PurePosixPath(name).parts[0] for name in names} == {"train", "test"}


def classes(root: Path, names: list[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels (N,) and the classes' names, from the first-level sub-folders; (None, ()) if there are fewer than two."""
    paths = _inner(names)
    found = tuple(sorted({path.parts[0] for path in paths if len(path.parts) > 1}))
    if len(found) < 2:
        return None, ()
    loose = [name for name, path in zip(names, paths, strict=True) if len(path.parts) == 1]
    if loose:
        came = f"{len(loose)} pictures, e.g. {loose[0]}, lie beside the class folders {', '.join(found)}"
        raise ValueError(f"{root}: {came}; allowed is all in class folders or none; move them")
    number = {name: k for k, name in enumerate(found)}
    return np.array([number[path.parts[0]] for path in paths]), found


def held_out_part(root: Path, names: list[str], data: Data) -> tuple[np.ndarray, str]:
    """Which rows are held out (N,) bool, and the rule."""
    if _has_parts(names):
        return np.array([name.startswith("test/") for name in names]), "the pictures of the sub-folder test"
    held_out = np.array([data.is_held_out(i) for i in range(len(names))])
    if not held_out.any():
        came = f"{len(names)} pictures are too few to hold out {data.rule}"
        raise ValueError(f"{root}: {came}; add some, or lower held_out (2 or more)")
    return held_out, f"{data.rule} of the sorted paths"


def caption_lines(root: Path, listed: list[str], metadata: list[str], complaints: Complaints) -> dict[str, str]:
    """Captions by relative path: each .txt beside a picture, then (stronger) each metadata.jsonl, the deepest last."""
    captions = {}
    for name in listed:
        text = (root / name).with_suffix(".txt")
        if text.is_file():
            captions[name] = _text(text).strip()
    known = set(listed)
    for file in metadata:
        for number, line in enumerate(_text(root / file).split("\n"), start=1):
            if line.strip():
                name, caption = _metadata(line, f"{root / file}, line {number}")
                name = str(PurePosixPath(file).parent / name)
                if name not in known:
                    complaints.append((name, f"named in {file}, line {number}, but not there"))
                elif caption is not None:
                    captions[name] = caption
    return captions


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not UTF-8 text; save it as UTF-8") from None


def _metadata(line: str, where: str) -> tuple[str, str | None]:
    """(file name, caption or None) of one line of metadata.jsonl."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f'{where}: no JSON ({error}); allowed is {{"file_name": "a.png", "text": "..."}}') from None
    caption = row.get("text", row.get("caption")) if isinstance(row, dict) else None
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str) or not isinstance(caption, str | None):
        raise ValueError(f'{where}: {line.strip()} came; allowed is {{"file_name": "a.png", "text": "..."}}')
    return row["file_name"], caption


def caption_column(root: Path, names: list[str], captions: dict[str, str]) -> np.ndarray | None:
    """Captions (N,), None if there are none; ValueError if some pictures have one and others not."""
    missing = [name for name in names if name not in captions]
    if len(missing) == len(names):
        return None
    if missing:
        came = f"{len(missing)} of {len(names)} pictures have no caption, e.g. {missing[0]}"
        raise ValueError(f"{root}: {came}; allowed is all or none; add them (an empty .txt means no words)")
    return np.array([captions[name] for name in names], dtype=object)
