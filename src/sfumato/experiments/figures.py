"""Figures: sheets of pictures with named rows and columns, PNG and GIF under a size that a repository can keep."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LIMIT = 300_000  # bytes of a PNG or GIF


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that draws without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def grey_levels(x: Tensor) -> np.ndarray:
    """x in [-1, 1], codec units, any shape -> uint8; what lies outside is cut off."""
    return ((x.detach().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().numpy()


def sheet(x: Tensor, gap: int) -> np.ndarray:
    """(R, K, C, H, W) in [-1, 1] -> one picture, uint8 (R (H + gap) - gap, K (W + gap) - gap, C), white in the gaps."""
    rows, columns, channels, height, width = x.shape
    tiles = np.full((rows, height + gap, columns, width + gap, channels), 255, dtype=np.uint8)
    tiles[:, :height, :, :width] = grey_levels(x).transpose(0, 3, 1, 4, 2)
    return tiles.reshape(rows * (height + gap), columns * (width + gap), channels)[: -gap or None, : -gap or None]


def pictures(axis: Axes, x: Tensor, rows: Sequence[str], columns: Sequence[str], title: str = "") -> None:
    """Draw x (R, K, C, H, W) on an axis, its rows and columns named at their middles."""
    height, width = x.shape[-2:]
    gap = max(1, height // 16)
    drawn = sheet(x, gap)
    axis.imshow(
        drawn if drawn.shape[-1] == 3 else drawn[..., 0], cmap="gray", vmin=0, vmax=255, interpolation="nearest"
    )
    axis.set_yticks(np.arange(len(rows)) * (height + gap) + (height - 1) / 2, rows)
    axis.set_xticks(np.arange(len(columns)) * (width + gap) + (width - 1) / 2, columns)
    axis.tick_params(length=0, labelsize=8)
    axis.set_frame_on(False)
    axis.set_title(title, fontsize=10)


def png(drawn: Figure) -> bytes:
    """The figure as a PNG of 256 colours under LIMIT bytes; its resolution falls until it fits."""
    from PIL import Image

    for dpi in (150, 120, 100, 80, 60, 40):
        raw, small = io.BytesIO(), io.BytesIO()
        drawn.savefig(raw, format="png", dpi=dpi)
        Image.open(raw).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
        if small.tell() < LIMIT:
            break
    return small.getvalue()


def gif(frames: Sequence[np.ndarray]) -> bytes:
    """Grey frames (H, W), uint8, as a film that holds its last frame; its grey levels fall until it has LIMIT bytes."""
    from PIL import Image

    for levels in (64, 32, 16, 8, 4):
        found = io.BytesIO()
        grey = [np.rint(frame / 255 * (levels - 1)).astype(np.uint8) for frame in frames]
        images = [Image.fromarray(np.rint(g * (255 / (levels - 1))).astype(np.uint8)) for g in grey]
        durations = [120] * (len(images) - 1) + [2500]
        images[0].save(found, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True)
        if found.tell() < LIMIT:
            break
    return found.getvalue()
