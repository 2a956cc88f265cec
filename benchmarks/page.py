"""From bench.json to a page: tables with ratios, and a plot a part.

Of N rounds a side has the median m, and beside it the least and the greatest.  How many times as fast the side of a
column is as that of a row is m_row / m_column (the other way round where more is better); beside it stand the least and
the greatest ratio of answers of one same round, which a disturbance of the machine has met alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

Rounds = Sequence[Mapping[str, Mapping[str, Any]]]

PREAMBLE = (
    "The numbers of a table were measured in one run on the machine that its part names: each side is a process of its "
    "own, and all do the same task in turn, round by round; more than one date says that the run was stopped between "
    "rounds and went on. A cell is the median, then the least and the greatest round. "
    "A ratio N says how the side above it compares with the side to its left; its range is that of single rounds. "
    "No test asserts a timing: other machines, and other days, have other numbers. "
)
COMMAND = "`make bench` measures it again; `make bench ARGS='forward --again'` one part."


def values(rounds: Rounds, side: str, value: str) -> list[float]:
    """The answers of a side, round by round."""
    return [float(one[side][value]) for one in rounds if value in one.get(side, {})]


def ratio(rounds: Rounds, value: str, better: str, row: str, column: str) -> tuple[float, float, float] | None:
    """How many times as good `column` is as `row`: by the medians, and the least and greatest of single rounds."""
    both = [one for one in rounds if value in one.get(row, {}) and value in one.get(column, {})]
    if not both:
        return None
    over, under = (row, column) if better == "less" else (column, row)
    pairs = [one[over][value] / one[under][value] for one in both]
    middle = median(values(both, over, value)) / median(values(both, under, value))
    return middle, min(pairs), max(pairs)


def spread(middle: float, low: float, high: float) -> str:
    """1.42 (1.38..1.50), or one number if they are all the same."""
    return f"{middle:.3g}" if low == high else f"{middle:.3g} ({low:.3g}..{high:.3g})"


def _cell(found: Sequence[float]) -> str:
    return spread(median(found), min(found), max(found)) if found else "-"


def _plain(x: Any) -> str:
    return "-" if x is None else f"{x:,}" if isinstance(x, int) else f"{x:.3g}" if isinstance(x, float) else str(x)


def table(kept: Mapping[str, Any]) -> list[str]:
    """A measure as Markdown: a side a row."""
    about, rounds = kept["about"], kept["rounds"]
    value, better = about["value"], about["better"]
    names = [side["name"] for side in about["sides"]]
    columns = [name for name in about["columns"] if name in names]
    titles = ["", about["unit"], *(f"{name} is N times as {about['word']}" for name in columns), *about["more"]]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name in names:
        held = (ratio(rounds, value, better, name, column) for column in columns)
        ratios = [
            "1" if column == name else spread(*one) if one else "-" for column, one in zip(columns, held, strict=True)
        ]
        last = {key: x for one in rounds for key, x in {**kept["facts"].get(name, {}), **one.get(name, {})}.items()}
        more = [_plain(last.get(key)) for key in about["more"]]
        lines.append(f"| {' | '.join([name, _cell(values(rounds, name, value)), *ratios, *more])} |")
    return lines


def page(document: Mapping[str, Any], stem: str = "bench") -> str:
    """The whole page as Markdown; its plots are STEM-PART.png."""
    lines = ["# sfumato beside its peers", "", PREAMBLE + COMMAND, ""]
    for part, found in document["parts"].items():
        about = "; ".join(f"{key} {x}" for key, x in found["machine"].items())
        lines += [f"## {part}", "", f"*{about}*", ""]
        for name, kept in found["measures"].items():
            asked, done = kept["about"]["rounds"], len(kept["rounds"])
            threads = sorted({facts["threads"] for facts in kept["facts"].values() if "threads" in facts})
            how = [f"{done} of {asked} rounds" if done < asked else f"{done} rounds" if done > 1 else "once"]
            how += [f"threads: {' or '.join(map(str, threads))}"] if threads else []
            how += [", ".join(kept["dates"])] if kept.get("dates") else []
            lines += [f"### {name}", "", f"{'; '.join(how)}. {kept['about']['note']}".strip(), "", *table(kept), ""]
        lines += [f"![{part}]({stem}-{part}.png)", ""]
    return "\n".join(lines)


def plot(found: Mapping[str, Any], path: Path) -> None:
    """A part as bars: a panel a measure, a bar a side, its median with the least and the greatest round."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measures = list(found["measures"].values())
    heights = [1.2 + 0.32 * len(kept["about"]["sides"]) for kept in measures]
    figure = Figure(figsize=(8, sum(heights)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(measures), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (name, kept) in zip(axes, found["measures"].items(), strict=True):
        about = kept["about"]
        names = [side["name"] for side in about["sides"]]
        bars = [(side, values(kept["rounds"], side, about["value"])) for side in names]
        bars = [(side, found) for side, found in reversed(bars) if found]
        if not bars:
            continue
        middles = [median(found) for _, found in bars]
        below = [middle - min(found) for middle, (_, found) in zip(middles, bars, strict=True)]
        above = [max(found) - middle for middle, (_, found) in zip(middles, bars, strict=True)]
        colours = ["tab:orange" if side.startswith("sfumato") else "tab:blue" for side, _ in bars]
        axis.barh([side for side, _ in bars], middles, xerr=[below, above], color=colours, capsize=3)
        if max(middles) > 30 * min(middles) > 0:
            axis.set_xscale("log")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel(f"{about['unit']} ({about['better']} is better)", fontsize=8)
        axis.tick_params(labelsize=8)
    figure.savefig(path)


def write(document: Mapping[str, Any], path: Path) -> None:
    """The page at `path`, its plots beside it."""
    path.write_text(page(document, path.stem) + "\n")
    for part, found in document["parts"].items():
        plot(found, path.with_name(f"{path.stem}-{part}.png"))
