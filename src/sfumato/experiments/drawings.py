"""Three grey pictures made by code: a spiral, a plane and a tank, at any size.

Each is a set of points of the square [-1, 1]^2 (x to the right, y downwards), drawn light on dark with 4x4 samples a
pixel, so that edges are smooth, and lit from above, so that there are many greys.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

NAMES = ("spiral", "plane", "tank")
SUBSAMPLES = 4
DARK, LIGHT = 20, 245
SHADE = 0.4  # of the light is lost from the top to the bottom


def _spiral(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The band around r = 0.06 + 0.28 (angle/2 pi + n), n = 0, 1, 2, ..., inside the unit circle."""
    r, turn = np.hypot(x, y), np.arctan2(y, x) / (2 * np.pi)
    phase = (r - 0.06) / 0.28 - turn
    return (np.abs(phase - np.round(phase)) < 0.24) & (r < 0.92)


def _ellipse(x: np.ndarray, y: np.ndarray, cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
    return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1


def _box(x: np.ndarray, y: np.ndarray, left: float, right: float, top: float, bottom: float) -> np.ndarray:
    return (x > left) & (x < right) & (y > top) & (y < bottom)


def _plane(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Seen from above, nose up: a fuselage, swept wings, a tail."""
    a = np.abs(x)
    fuselage = _ellipse(x, y, 0, 0, 0.13, 0.92)
    wings = (a < 0.92) & (y > -0.28 + 0.55 * a) & (y < 0.12 + 0.28 * a)
    tail = (a < 0.4) & (y > 0.58 + 0.45 * a) & (y < 0.76 + 0.25 * a)
    return fuselage | wings | tail


def _tank(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Seen from the side: tracks with their wheels cut out, hull, turret, gun to the right."""
    inner = np.clip(x, -0.6, 0.55)
    tracks = np.hypot(x - inner, y - 0.45) < 0.27
    wheels = np.zeros_like(tracks)
    for centre in np.linspace(-0.6, 0.55, 4):
        wheels |= np.hypot(x - centre, y - 0.45) < 0.13
    hull = (y > -0.1) & (y < 0.22) & (x > -0.85 + 0.3 * (0.22 - y)) & (x < 0.85 - 0.9 * (0.22 - y))
    turret = (y > -0.45) & (y <= -0.1) & (x > -0.5 + 0.25 * (-0.1 - y)) & (x < 0.22 - 0.5 * (-0.1 - y))
    gun = _box(x, y, 0.0, 0.95, -0.37, -0.26)
    return (tracks & ~wheels) | hull | turret | gun


_SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "spiral": _spiral,
    "plane": _plane,
    "tank": _tank,
}


def drawings(size: int = 32) -> np.ndarray:
    """The pictures of NAMES, uint8 (3, size, size)."""
    fine = (np.arange(size * SUBSAMPLES) + 0.5) / (size * SUBSAMPLES) * 2 - 1
    x, y = np.meshgrid(fine, fine)
    covered = np.stack([_SHAPES[name](x, y) for name in NAMES]).astype(np.float64)
    lit = covered * (1 - SHADE * (y + 1) / 2)
    share = lit.reshape(len(NAMES), size, SUBSAMPLES, size, SUBSAMPLES).mean((2, 4))
    return np.rint(DARK + (LIGHT - DARK) * share).astype(np.uint8)
