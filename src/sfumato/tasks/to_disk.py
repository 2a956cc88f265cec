"""Samples on disk: FILE.png (a grid), FILE.npz, or a folder with a PNG each.

`write` takes samples at hand; `stream` takes a `Draw`, whose blocks go to the disk as they are made.  Both leave the
same files.  An .npz is a zip of arrays, each of them a header that says how many rows come, and the rows; it is written
beside its place and renamed into it, so what bears its name is whole.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.tasks.generate import Draw, Samples, spread
from sfumato.tasks.pictures import picture, sheet

LONGEST = 255  # bytes of a folder's name

Blocks = Iterable[np.ndarray]  # (M, ...) each: images (M, H, W, C) uint8, other samples, or labels (M,)


def check_out(out: Path, kind: str) -> None:
    """ValueError if samples of that kind cannot be written as `out`; asked before they are made."""
    if out.suffix not in (".png", ".npz", ""):
        raise ValueError(f"{out}: cannot write {out.suffix!r}; allowed are FILE.png, FILE.npz or a folder")
    if not out.suffix and kind != "picture":
        raise ValueError(f"a folder holds pictures, and these samples are {kind}s; write FILE.npz or FILE.png")
    if out.suffix and out.is_dir():
        raise ValueError(f"{out} is a folder; choose another --out")
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not os.access(there, os.W_OK) or (there != out and not there.is_dir()):
        raise ValueError(f"cannot write {out}: {there} is no folder that may be written; choose another --out")


def write(samples: Samples, out: Path) -> None:
    """To FILE.png (a grid), FILE.npz (images or samples, labels, settings), or a folder with a PNG each."""
    check_out(out, samples.kind)
    x = samples.images() if samples.kind == "picture" else samples.x
    labels = None if samples.labels is None else [samples.labels]
    classes = 0 if samples.labels is None else int(samples.labels.max()) + 1
    folders = class_folders(samples.label_names, classes)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".png":
            picture(sheet(samples)).save(out, optimize=True)
        else:
            _put(out, samples.kind, len(x), [x], labels, samples.settings, folders)
    except OSError as error:
        raise _unwritable(out, error) from error


def stream(draw: Draw, out: Path, more: Mapping[str, Any]) -> None:
    """Make samples and write them, as `write` does; `more` is stored beside the draw's settings.

    All but a grid goes to the disk block by block.  Of several processes, which all take part, the first one writes.
    """
    config, kind = draw.model.config, draw.model.config.kind
    check_out(out, kind)
    if out.suffix == ".png":
        samples = draw.samples()
        samples.settings.update(more)
        if draw.share.is_main:
            write(samples, out)
        return
    blocks = draw.blocks()
    made = itertools.chain([next(blocks)], blocks)  # so that a mistake in sampling comes before anything is written
    if not draw.share.is_main:
        for _ in made:
            pass
        return
    shown = (spread(x, config.codec["levels"]) for x in made) if kind == "picture" else made
    labels = (told.numpy() for rows in draw.rows() if (told := draw.labels(rows)) is not None)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        settings = {**draw.settings(), **more}
        folders = class_folders(config.label_names, config.conditions.classes)
        _put(out, kind, draw.n, shown, labels if config.conditions.classes else None, settings, folders)
    except OSError as error:
        raise _unwritable(out, error) from error


def _unwritable(out: Path, error: OSError) -> ValueError:
    return ValueError(f"cannot write {out}: {error.strerror or error}; choose another --out")


def class_folders(names: Sequence[str], classes: int) -> tuple[str, ...]:
    """A folder for each class: its name; its number if the name of any class is none that a folder can have."""

    def fits(name: str) -> bool:
        return not re.search(r"^[.\s]|[/\\:\x00-\x1f]|\s$", name) and 0 < len(name.encode()) <= LONGEST

    taken = {name.casefold() for name in names}  # not every disk tells `a` from `A`
    usable = len(taken) == len(names) >= classes and all(map(fits, names)) and taken != {"train", "test"}
    return tuple(names) if usable else tuple(map(str, range(classes)))


def _put(
    out: Path,
    kind: str,
    n: int,
    x: Blocks,
    labels: Blocks | None,
    settings: Mapping[str, Any],
    folders: Sequence[str],
) -> None:
    """n rows, which come in blocks, to FILE.npz or a folder."""
    if not out.suffix:
        _folder(out, x, labels, settings, folders)
        return
    fresh = out.with_name(f".{out.name}.writing")
    try:
        with zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED) as file:
            if labels is not None:
                _array(file, "labels", n, iter(labels))
            _array(file, "images" if kind == "picture" else "samples", n, iter(x))
            with file.open("settings.npy", "w") as member:
                np.lib.format.write_array(member, np.array(json.dumps(settings)), allow_pickle=False)
        fresh.replace(out)
    finally:
        fresh.unlink(missing_ok=True)


def _array(file: zipfile.ZipFile, name: str, n: int, blocks: Iterator[np.ndarray]) -> None:
    """An array of n rows in a zip, as np.savez would write it."""
    first = next(blocks)
    descr = np.lib.format.dtype_to_descr(first.dtype)
    header = {"descr": descr, "fortran_order": False, "shape": (n, *first.shape[1:])}
    with file.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for block in itertools.chain([first], blocks):
            member.write(block.tobytes())


def _folder(out: Path, x: Blocks, labels: Blocks | None, settings: Mapping[str, Any], folders: Sequence[str]) -> None:
    number = itertools.count()
    for images, told in zip(x, itertools.repeat(None) if labels is None else labels, strict=False):
        for i, image in enumerate(images):
            where = out if told is None else out / folders[told[i]]
            where.mkdir(parents=True, exist_ok=True)
            picture(image).save(where / f"{next(number):06d}.png")
    (out / "settings.json").write_text(json.dumps(settings, indent=1) + "\n")
