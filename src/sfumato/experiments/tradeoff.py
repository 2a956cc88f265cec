"""What guidance trades for what: scores by guidance scale as a curve, drawn, shown as pictures and put into words.

Nothing in the words is decided beforehand.  A sequence of values has a course, told apart from noise by `within`:

    level      max - min <= within
    falls, then rises     min inside, both ends above it by more than `within`;   rises, then falls likewise
    rises, falls          by its ends

A share of n samples has a standard error of at most 1/(2 sqrt(n)), and two of them are its noise (`shares`).  That of
a Frechet distance is twice the standard deviation among sets of as many real pictures, and at least NOISE of its least
value, since distances that are larger vary more (`Real.within`).  These sets have as many of each class as the samples
have, whose labels are asked for in turn.  Features of a classifier are clusters, one a class, and sets drawn blindly
differ by their shares of the classes more than by anything else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sfumato.experiments import figures
from sfumato.experiments.sampled import Bench, by_chance, in_codec_units

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOISE = 0.02
VALUES = (
    "n",
    "frechet",
    "kernel",
    "kernel_error",
    "classifier_score",
    "precision",
    "recall",
    "density",
    "coverage",
    "agreement",
    "evaluations",
    "milliseconds_per_sample",
)


@dataclass(frozen=True)
class Point:
    """One setting: the curve it lies on, its scale, its VALUES, some of its pictures, uint8 (K, H, W, C)."""

    curve: str
    scale: float
    values: Mapping[str, float | None]
    images: np.ndarray

    def __getitem__(self, name: str) -> float:
        value = self.values[name]
        assert value is not None
        return value

    def cells(self) -> list[Any]:
        """Its VALUES as cells of a CSV row."""
        return [self.values[name] for name in VALUES]


@dataclass(frozen=True)
class Real:
    """As many real training pictures: their VALUES, and what a Frechet distance may differ by for nothing."""

    values: Mapping[str, float | None]
    noise: float

    @property
    def frechet(self) -> float:
        value = self.values["frechet"]
        assert value is not None
        return value

    def within(self, points: Sequence[Point]) -> float:
        """The noise of the distances of some points."""
        return max(self.noise, NOISE * least(points)["frechet"])


def real_of(on: Bench, n: int) -> Real:
    """What n samples of a perfect model would have, by sets of real pictures with classes in turn."""
    found = on.floors(n)
    return Real(values_of(found[0]), 2 * by_chance(found)[1])


def values_of(scores: Mapping[str, Any]) -> dict[str, float | None]:
    """VALUES of what tasks.scores.score gives; what a set of real pictures has not is None."""
    inception = scores["inception_score"]
    plain = ("n", "frechet", "precision", "recall", "density", "coverage", "agreement")
    return {
        **{name: scores.get(name) for name in (*plain, "evaluations", "milliseconds_per_sample")},
        "kernel": scores["kernel"]["value"],
        "kernel_error": scores["kernel"]["standard_error"],
        "classifier_score": None if inception is None else inception["value"],
    }


def point(curve: str, scale: float, found: Mapping[str, Any]) -> Point:
    """What `sampled.measured` gave, as a point of a curve."""
    return Point(curve, scale, values_of(found), found["images"])


def of(points: Sequence[Point], curve: str) -> list[Point]:
    """The points of one curve, by scale."""
    return sorted((p for p in points if p.curve == curve), key=lambda p: p.scale)


def at(points: Sequence[Point], curve: str, scale: float) -> Point:
    """The one point of a curve at a scale."""
    (found,) = (p for p in points if (p.curve, p.scale) == (curve, scale))
    return found


def least(points: Sequence[Point]) -> Point:
    """The point of the least Frechet distance."""
    return min(points, key=lambda p: p["frechet"])


def shares(n: float) -> float:
    """What a share of n samples may differ by without saying anything."""
    return 1 / math.sqrt(n)


def course(values: Sequence[float], within: float) -> str:
    """level, rises, falls, "falls, then rises" or "rises, then falls"."""
    first, last, low, high = values[0], values[-1], min(values), max(values)
    if high - low <= within:
        return "stays level"
    if min(first, last) - low > within:
        return "falls, then rises"
    if high - max(first, last) > within:
        return "rises, then falls"
    return "rises" if last > first else "falls"


def told(points: Sequence[Point], name: str, shape: str = "{:.2f}") -> str:
    """A value along a curve: 0.95, 0.96, 0.97."""
    return ", ".join(shape.format(p[name]) for p in points)


def cell(value: float | None, shape: str) -> str:
    """A value for a person, "-" where there is none."""
    return "-" if value is None else shape.format(value)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def trade_off(axis: Axes, points: Sequence[Point], x: str, y: str, label: str, style: str) -> None:
    """A curve of one value over another, each point marked with its scale."""
    axis.plot([p[x] for p in points], [p[y] for p in points], style, markersize=4, linewidth=1, label=label)
    for p in points:
        axis.annotate(f"{p.scale:g}", (p[x], p[y]), xytext=(3, 3), textcoords="offset points", fontsize=7)


def strips(axis: Axes, points: Sequence[Point], names: Sequence[str], title: str) -> None:
    """A row of samples of every point; those of a column have one label and start from one noise."""
    x = in_codec_units(torch.from_numpy(np.stack([p.images for p in points])))
    figures.pictures(axis, x, names, [""] * x.shape[1], title)
