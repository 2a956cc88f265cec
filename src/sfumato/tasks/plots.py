"""Plots as SVG text: lines, histograms and bars that stand in a page, readable on light and dark grounds.

Colours are the page's: a series k is drawn in the class `c0`, `c1`, ...; what is real is given apart, as `real`, and
drawn in the class of that name, dashed, so that it is told apart without colours too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from types import MappingProxyType

import numpy as np

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 44
BINS = 24
COLOURS = 6
REAL = "real"  # the class of series of real pictures

Points = Sequence[tuple[float, float]]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, within [low, high]."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _span(values: Sequence[float]) -> tuple[float, float]:
    finite = [v for v in values if math.isfinite(v)] or [0.0]
    low, high = min(finite), max(finite)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _svg(body: Sequence[str], told: str, height: float = HEIGHT) -> str:
    box = f'viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(told)}"'
    return f"<svg {box}><title>{escape(told)}</title>{''.join(body)}</svg>"


def _text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _colours(n: int, real: int) -> list[str]:
    """The classes of n series, and of those of real pictures behind them."""
    return [*(f"c{k % COLOURS}" for k in range(n)), *[REAL] * real]


def _key(names: Sequence[str], colours: Sequence[str], top: float) -> list[str]:
    """The series' names, one below the other, each behind a piece of its line."""
    found = []
    for k, (name, colour) in enumerate(zip(names, colours, strict=True)):
        y = top + 16 * k
        found.append(f'<path class="line {colour}" d="M{LEFT} {y - 4:.0f}h24"/>')
        found.append(_text(LEFT + 32, y, name, "start"))
    return found


def lines(
    series: Mapping[str, Points],
    x_name: str,
    y_name: str,
    told: str,
    *,
    real: Mapping[str, Points] = MappingProxyType({}),
    log_x: bool = False,
) -> str:
    """Series of (x, y) as lines, the y axis from 0 if that is near; log_x puts x on a logarithmic axis."""
    drawn = [*series.items(), *real.items()]
    colours = _colours(len(series), len(real))
    xs = [x for _, points in drawn for x, _ in points]
    (left, right), (low, high) = _span(xs), _span([y for _, points in drawn for _, y in points])
    low = min(low, 0.0) if low < 0.5 * high else low
    marks = sorted(set(xs)) if log_x else ticks(left, right)
    scale = math.log if log_x else float
    first, last = scale(left if left > 0 or not log_x else 1.0), scale(right)
    bottom = HEIGHT - BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (scale(x) - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        return across, bottom - (y - low) / (high - low) * (bottom - TOP)

    body = [f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}"/>']
    for y in ticks(low, high):
        body.append(f'<path class="grid" d="M{LEFT} {at(left, y)[1]:.1f}H{WIDTH - RIGHT}"/>')
        body.append(_text(LEFT - 6, at(left, y)[1] + 4, f"{y:g}", "end"))
    body += [_text(at(x, low)[0], bottom + 16, f"{x:g}") for x in marks]
    body.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_name))
    middle = (TOP + bottom) / 2
    body.append(_text(14, middle, y_name, more=f' transform="rotate(-90 14 {middle:.0f})"'))
    for (_, points), colour in zip(drawn, colours, strict=True):
        where = [at(x, y) for x, y in points if math.isfinite(y)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in where)
        body.append(f'<path class="line {colour}" d="M{path}"/>' if where else "")
        if log_x and colour != REAL:
            body += [f'<circle class="dot {colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in where]
    below = HEIGHT + 8
    key = _key([name for name, _ in drawn], colours, below + 4)
    return _svg([*body, *key], told, below + 16 * len(drawn))


def histogram(series: Mapping[str, np.ndarray], x_name: str, told: str, real: Mapping[str, np.ndarray]) -> str:
    """The share of each set of numbers in equal bins, as outlines."""
    low, high = _span(np.concatenate([*series.values(), *real.values()]).tolist())
    edges = np.linspace(low, high, BINS + 1)

    def outline(values: np.ndarray) -> Points:
        share = np.histogram(values, edges)[0] / max(len(values), 1)
        inner = zip(edges.repeat(2)[1:-1].tolist(), share.repeat(2).tolist(), strict=True)
        return [(low, 0.0), *inner, (high, 0.0)]

    made, held = ({name: outline(values) for name, values in some.items()} for some in (series, real))
    return lines(made, x_name, "share", told, real=held)


def bars(groups: Mapping[str, Mapping[str, float]], told: str, real: Mapping[str, float], real_name: str) -> str:
    """For each group (such as "precision") a bar from 0 for each series, its value behind it, and one for `real`."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    colours = _colours(len(names), 1 if real else 0)
    values = [*(v for group in groups.values() for v in group.values()), *real.values()]
    most = max([1.0, *(v for v in values if math.isfinite(v))])
    left, right = 96, 56
    body, y = [], TOP
    for title, group in groups.items():
        drawn = [(colours[names.index(name)], value) for name, value in group.items()]
        drawn += [(REAL, real[title])] if title in real else []
        body.append(_text(left - 8, y + 9 * len(drawn) + 3, title, "end"))
        for colour, value in drawn:
            width = max(0.0, value) / most * (WIDTH - left - right)
            body.append(f'<rect class="bar {colour}" x="{left}" y="{y + 3}" width="{width:.1f}" height="12"/>')
            body.append(_text(left + width + 5, y + 13, f"{value:.3f}", "start"))
            y += 18
        y += 8
    names += [real_name] if real else []
    return _svg([*body, *_key(names, colours, y + 12)], told, y + 12 + 16 * len(names))
