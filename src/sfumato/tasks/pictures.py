"""Samples as one picture, a grid, and the film of the reverse process as a GIF.

Grids are laid out in rows; with classes in turn, one row a class.  Small pictures are enlarged by whole factors,
so that a person can read them.  Signals are drawn as curves, vectors as points, volumes as their middle slices.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sfumato.model import Model
from sfumato.tasks.generate import Samples

READABLE = 48  # a picture in a grid has at least so many pixels a side,
FILMED = 32  # one in a film so many,
WIDEST = 2400  # and the whole at most so many


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


def picture(array: np.ndarray) -> Any:
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
        pictures.append(picture(sheet(frame, FILMED)).quantize(32))
    durations = [80] * (len(pictures) - 1) + [2500]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        pictures[0].save(out, save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True)
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror or error}; choose another --out") from error
