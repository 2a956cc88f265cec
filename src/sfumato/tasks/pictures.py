"""Samples on disk: a PNG grid, a folder of pictures, an .npz, and the film of the reverse process as a GIF.

Grids are laid out in rows; with classes in turn, one row a class.  Small pictures are enlarged by whole factors,
so that a person can read them.  Signals are drawn as curves, vectors as points, volumes as their middle slices.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.model import Model
from sfumato.tasks.generate import Samples

READABLE = 48  # a picture in a grid has at least so many pixels a side,
FILMED = 32  # one in a film so many,
WIDEST = 2400  # and the whole at most so many
LONGEST = 255  # bytes of a folder's name


def tile(images: np.ndarray, columns: int, readable: int = READABLE) -> np.ndarray:
    """uint8 (N, H, W, C) -> one picture (H', W', C), two pixels apart, enlarged by a whole factor."""
    n, h, w, c = images.shape
    factor = max(1, min(-(-readable // min(h, w)), WIDEST // (columns * w)))
    images = images.repeat(factor, 1).repeat(factor, 2)
    h, w = h * factor + 2, w * factor + 2
    rows = -(-n // columns)
    sheet = np.full((rows * h + 2, columns * w + 2, c), 96, dtype=np.uint8)
    for i, image in enumerate(images):
        y, x = 2 + (i // columns) * h, 2 + (i % columns) * w
        sheet[y : y + h - 2, x : x + w - 2] = image
    return sheet


def layout(samples: Samples) -> tuple[np.ndarray, int]:
    """The order of samples on a sheet and its columns: a row a class if the classes come in turn, else a square."""
    n, labels = len(samples.x), samples.labels
    if labels is not None and n > 1:
        classes = int(labels.max()) + 1
        if 1 < classes <= 20 and n % classes == 0 and np.array_equal(labels, np.arange(n) % classes):
            return np.arange(n).reshape(-1, classes).T.reshape(-1), n // classes
    return np.arange(n), min(n, max(1, round(n**0.5)))


def _picture(array: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def sheet(samples: Samples, readable: int = READABLE) -> np.ndarray:
    """The samples as one picture, uint8 (H, W, C), whatever they are."""
    order, columns = layout(samples)
    if samples.kind == "picture":
        return tile(samples.images()[order], columns, readable)
    if samples.kind == "volume":
        x = samples.x[:, :, samples.x.shape[2] // 2]
        low, high = x.min(), x.max()
        grey = np.rint(255 * (x - low) / max(float(high - low), 1e-9)).astype(np.uint8)
        return tile(grey[order, :1].transpose(0, 2, 3, 1), columns, readable)
    return _plot(samples)


def _plot(samples: Samples) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), dpi=100)
    canvas = FigureCanvasAgg(figure)
    if samples.kind == "signal":
        order, side = layout(samples)
        axes = figure.subplots(-(-len(samples.x) // side), side, squeeze=False, sharex=True, sharey=True)
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, signal in zip(axes.flat, samples.x[order], strict=False):
            axis.plot(signal.T, linewidth=0.8)
    else:
        axis = figure.subplots()
        x = samples.x if samples.x.shape[1] > 1 else np.concatenate([samples.x, np.zeros_like(samples.x)], 1)
        axis.scatter(x[:, 0], x[:, 1], c=samples.labels, s=8)
        axis.set(xlabel="value 0", ylabel="value 1")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


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
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".npz":
            _write_npz(samples, out)
        elif out.suffix == ".png":
            _picture(sheet(samples)).save(out, optimize=True)
        else:
            _write_folder(samples, out)
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror or error}; choose another --out") from error


def _write_npz(samples: Samples, out: Path) -> None:
    arrays: dict[str, Any] = {"images": samples.images()} if samples.kind == "picture" else {"samples": samples.x}
    if samples.labels is not None:
        arrays["labels"] = samples.labels
    np.savez_compressed(out, **arrays, settings=np.array(json.dumps(samples.settings)))


def class_folders(names: Sequence[str], classes: int) -> tuple[str, ...]:
    """A folder for each class: its name; its number if the name of any class is none that a folder can have."""

    def fits(name: str) -> bool:
        return not re.search(r"^[.\s]|[/\\:\x00-\x1f]|\s$", name) and 0 < len(name.encode()) <= LONGEST

    taken = {name.casefold() for name in names}  # not every disk tells `a` from `A`
    usable = len(taken) == len(names) >= classes and all(map(fits, names)) and taken != {"train", "test"}
    return tuple(names) if usable else tuple(map(str, range(classes)))


def _write_folder(samples: Samples, out: Path) -> None:
    labels = samples.labels
    folders = () if labels is None else class_folders(samples.label_names, int(labels.max()) + 1)
    for i, image in enumerate(samples.images()):
        where = out if labels is None else out / folders[labels[i]]
        where.mkdir(parents=True, exist_ok=True)
        _picture(image).save(where / f"{i:06d}.png")
    (out / "settings.json").write_text(json.dumps(samples.settings, indent=1) + "\n")


def film(model: Model, out: Path, n: int = 100, seed: int = 0, frames: int = 24) -> None:
    """The reverse process of n samples as a GIF: x_t at each step, one picture every few steps, the last one held."""
    labels = model.labels(n)
    states = [x for _, x, _ in model.trajectory(range(n), labels, seed)]
    visited = sorted({round(i) for i in np.linspace(0, len(states) - 1, min(frames, len(states)))})
    levels = model.config.codec.get("levels")
    pictures = []
    for k in visited:
        x = model.codec.decode(states[k]).cpu().numpy()
        frame = Samples(x, None if labels is None else labels.numpy(), {}, 0.0, model.config.kind, levels)
        pictures.append(_picture(sheet(frame, FILMED)).quantize(32))
    durations = [80] * (len(pictures) - 1) + [2500]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        pictures[0].save(out, save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True)
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror or error}; choose another --out") from error
