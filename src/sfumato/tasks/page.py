"""The page of an evaluation: one HTML file that needs no other, and the scores as JSON beside it.

    DIR/index.html     samples by class, the scores beside those of real pictures, the score by number of steps, plots,
                       nearest training pictures, and how everything was measured; one subject or several side by side
    DIR/scores.json    the same numbers and all others

Pictures stand inside as PNG, plots as SVG; there is no script, and every text is escaped.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.checkpoints import native
from sfumato.tasks import plots
from sfumato.tasks.evaluate import table
from sfumato.tasks.examine import Evaluation
from sfumato.tasks.generate import Samples
from sfumato.tasks.pictures import sheet, tile
from sfumato.tasks.records import FOUND, best, cautions, shown, side_by_side, told

CLASSES, OF_EACH, UNLABELLED = 20, 10, 60  # classes on a page, samples of each; samples where there are no classes
EDGE = 64  # a picture in the table of neighbours has at least so many pixels a side

STYLE = """
:root { color-scheme: light dark; --ground: #fdfdfb; --ink: #1d1d1f; --faint: #6a6a70; --rule: #d5d5d2; --mark: #fff3c4;
  --c0: #1f5fa8; --c1: #b3541e; --c2: #2f7d4f; --c3: #8a3a86; --c4: #8c6d00; --c5: #36747d; }
@media (prefers-color-scheme: dark) { :root { --ground: #17181b; --ink: #e8e8e6; --faint: #a3a3a8; --rule: #3a3b40;
  --mark: #4d4318; --c0: #7db4f0; --c1: #f0a06a; --c2: #7ccf9b; --c3: #d99ad5; --c4: #dcc35a; --c5: #84c7d1; } }
body { background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
  padding: 1rem; max-width: 62rem; }
h1, p, code { overflow-wrap: anywhere; } h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.25rem; margin-top: 2.2rem; } h3 { font-size: 1.05rem; }
img { max-width: 100%; height: auto; image-rendering: pixelated; vertical-align: middle; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem .25rem 0; text-align: left; border-bottom: 1px solid var(--rule); }
thead th { color: var(--faint); font-weight: 600; } tbody th { font-weight: 400; } td.number { white-space: nowrap; }
td.best { background: var(--mark); font-weight: 700; }
.caution { border-left: 4px solid var(--c1); padding-left: .8rem; }
.faint, figcaption { color: var(--faint); font-size: .9rem; } figure { margin: 0 0 1rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem 2rem; }
svg { width: 100%; height: auto; max-width: 40rem; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
.axis { stroke: var(--faint); fill: none; } .grid { stroke: var(--rule); } .line { fill: none; stroke-width: 2; }
.line.real { stroke: var(--faint); stroke-dasharray: 6 4; } .bar.real { fill: var(--faint); }
"""
COLOURS = "".join(
    f".line.c{k} {{ stroke: var(--c{k}); }} .dot.c{k}, .bar.c{k} {{ fill: var(--c{k}); }}\n"
    for k in range(plots.COLOURS)
)


def png(picture: np.ndarray, told: str) -> str:
    """uint8 (H, W, C) as an <img> that holds its PNG."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(data, "PNG", optimize=True)
    text = base64.b64encode(data.getvalue()).decode()
    size = f'width="{picture.shape[1]}" height="{picture.shape[0]}"'
    return f'<img {size} alt="{escape(told)}" src="data:image/png;base64,{text}">'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already; the first of a row is its head, a cell that begins with <td stays."""
    top = "".join(f'<th scope="col">{head}</th>' for head in heads)
    lines = []
    for first, *rest in rows:
        cells = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>" if any(parts) else ""


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"


def _head(evaluation: Evaluation, among: Sequence[Evaluation]) -> str:
    """The subject's name above its part, where there are several."""
    return f"<h3>{escape(evaluation.name)}</h3>" if len(among) > 1 else ""


# the parts of a page --------------------------------------------------------------------------------------------------


def _samples(evaluation: Evaluation) -> str:
    samples, names = evaluation.samples, evaluation.label_names
    if samples.kind != "picture":
        some = sheet(_first(evaluation, UNLABELLED))
        return _figure(png(some, f"{samples.kind}s made by {evaluation.name}"), "The first samples.")
    images = samples.images()
    if samples.labels is None:
        strip = tile(images[:UNLABELLED], OF_EACH)
        return _figure(png(strip, f"the first samples of {evaluation.name}"), "The first samples, unselected.")
    rows = []
    for label in np.unique(samples.labels)[:CLASSES].tolist():
        name = names[label] if label < len(names) else str(label)
        of_it = images[samples.labels == label][:OF_EACH]
        rows.append((escape(name), png(tile(of_it, OF_EACH), f"{len(of_it)} samples of class {name}")))
    more = len(np.unique(samples.labels)) - CLASSES
    caption = f"The first {OF_EACH} of each class, unselected" + (f"; {more} more classes." if more > 0 else ".")
    return _table(("class", "samples"), rows) + f'<p class="faint">{caption}</p>'


def _first(evaluation: Evaluation, most: int) -> Samples:
    samples = evaluation.samples
    labels = None if samples.labels is None else samples.labels[:most]
    return replace(samples, x=samples.x[:most], labels=labels)


def _number(row: Mapping[str, Any] | None, mark: bool = False) -> str:
    text = "–" if row is None else shown(row["value"], row["error"])
    kind = "number best" if mark else "number"
    return f'<td class="{kind}">{text}{" (best)" if mark else ""}</td>'


def _real(row: Mapping[str, Any] | None) -> str:
    """The score of real pictures, with their number where it is not that of the samples."""
    if row is None:
        return shown(None)
    return shown(row["real"]) + (f" (n = {row['real_n']:,})" if row["real_n"] not in (None, row["n"]) else "")


def _scores(evaluations: Sequence[Evaluation]) -> str:
    """The table of scores: beside those of real pictures, n and the reference; or side by side."""
    compared = side_by_side([one.scores for one in evaluations])
    rows = []
    for name, found in compared:
        there = next(row for row in found if row is not None)
        which = best(found)
        real = next((row for row in found if row is not None and row["real"] is not None), None)
        about = [f'<td class="number">{_real(real)}</td>', escape(there["better"] or "near the real")]
        about += [f'<td class="number">{there["n"]:,}</td>', escape(there["reference"] or "")]
        rows.append((escape(name), *(_number(row, k == which) for k, row in enumerate(found)), *about))
    subjects = [escape(one.name) for one in evaluations] if len(evaluations) > 1 else ["samples"]
    return _table(("score", *subjects, "real data", "better", "n", "against"), rows)


def _plots(evaluations: Sequence[Evaluation]) -> str:
    found = [_steps_plot(evaluations), _precision_plot(evaluations)]
    for one in evaluations:
        whose = f" of {one.name}" if len(evaluations) > 1 else ""
        if one.near is not None:
            about = f"Distance{whose} to the nearest training row"
            real = {"real held-out rows": one.near.held_out}
            axis = f"Euclidean distance of {one.scores['nearest']['unit']}"
            plot = plots.histogram({"samples": one.near.samples}, axis, about, real)
            found.append(_figure(plot, f"{about}: samples far to the left of real rows would be copies."))
        if "loss" in one.scores.get("gaussian", {}):
            by_t = one.scores["gaussian"]["loss"]["by_t"]
            names = {"model": "model", "gaussian": "fitted Gaussian"}
            parts = {names[key]: [((k + 0.5) / len(v), loss) for k, loss in enumerate(v)] for key, v in by_t.items()}
            about = f"Denoising loss{whose} by t"
            plot = plots.lines(parts, "t (0 is data, 1 is noise)", "mean square of the eps error", about)
            found.append(_figure(plot, f"{about}, on held-out rows: lower is better."))
    return f'<div class="plots">{"".join(found)}</div>' if any(found) else ""


def _steps_plot(evaluations: Sequence[Evaluation]) -> str:
    all_steps = [(one.name, one.scores["by_steps"]) for one in evaluations if "by_steps" in one.scores]
    if not all_steps:
        return ""
    first = all_steps[0][1]
    alike = [(name, found) for name, found in all_steps if found["score"] == first["score"]]
    series = {name: [(p["steps"], p["value"]) for p in found["points"]] for name, found in alike}
    ends = [x for points in series.values() for x, _ in points]
    real = {}
    if first["real"] is not None:
        its = "" if first["real_n"] == first["n"] else f", n = {first['real_n']:,}"
        real[f"real data{its}"] = [(min(ends), first["real"]), (max(ends), first["real"])]
    about = f"{first['score']} by number of steps, n = {first['n']:,}, against {first['reference']}"
    plot = plots.lines(series, "steps", first["score"], about, real=real, log_x=True)
    return _figure(plot, f"{about}: lower is better; compare only at this n.")


def _precision_plot(evaluations: Sequence[Evaluation]) -> str:
    seen = [(one.name, one.scores["by_features"]) for one in evaluations if "by_features" in one.scores]
    if len(evaluations) == 1:
        seen = [("samples", found) for _, found in seen]
    if not seen:
        return ""
    groups = {name: {who: found[name] for who, found in seen} for name in FOUND}
    floor = seen[0][1].get("floor", {})
    real = {name: floor[name] for name in FOUND if floor}
    about = f"Precision, recall, density and coverage by the features of {seen[0][1]['features']}"
    plot = plots.bars(groups, about, real, "real pictures")
    return _figure(plot, f"{about}: as high as real pictures is as good as it gets.")


def _neighbours(evaluation: Evaluation) -> str:
    if not evaluation.neighbours:
        return ""
    images = evaluation.samples.images()
    heads = ["sample", *(escape(f"nearest by {by.by}") for by in evaluation.neighbours)]
    rows = []
    for k, i in enumerate(evaluation.shown):
        cells = [f"{png(tile(images[i : i + 1], 1, EDGE), f'sample {i}')} <span class='faint'>{i}</span>"]
        for by in evaluation.neighbours:
            far = ", ".join(f"{d:,.0f}" if d >= 100 else f"{d:.3g}" for d in by.distances[k])
            pictures = by.pictures[k]
            strip = png(tile(pictures, len(pictures), EDGE), f"training pictures nearest to sample {i} by {by.by}")
            cells.append(f"{strip}<br><span class='faint'>{far}</span>")
        rows.append(cells)
    among = "; ".join(f"by {by.by} among {by.among}" for by in evaluation.neighbours)
    say = f"The first samples, then the ones nearest of all to a training picture; {among}; distances below."
    return _table(heads, rows) + f'<p class="faint">{escape(say)}</p>'


def _how(evaluations: Sequence[Evaluation]) -> str:
    hows = [one.scores["how"] for one in evaluations]
    rows = [(escape(name.replace("_", " ")), *(escape(told(how[name])) for how in hows)) for name in hows[0]]
    return _table(["", *(escape(one.name) for one in evaluations)], rows)


# the page -------------------------------------------------------------------------------------------------------------


def html(evaluations: Sequence[Evaluation], command: str = "") -> str:
    """The page of one evaluation, or of several side by side."""
    names = [one.name for one in evaluations]
    title = f"Evaluation of {names[0]}" if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]} compared"
    parts = [
        *(f'<p class="caution">{escape(line)}.</p>' for line in _notes(evaluations)),
        _section("Samples", *(_head(one, evaluations) + _samples(one) for one in evaluations)),
        _section("Scores", _scores(evaluations)),
        _section("Plots", _plots(evaluations)),
        _section("Nearest training pictures", *(_near(one, evaluations) for one in evaluations)),
        _section("How it was measured", f"<p><code>{escape(command)}</code></p>" if command else "", _how(evaluations)),
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{COLOURS}</style>"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n'
        f"<body><main><h1>{escape(title)}</h1>\n" + "\n".join(filter(None, parts)) + "\n</main></body></html>\n"
    )


def _notes(evaluations: Sequence[Evaluation]) -> list[str]:
    """What must be said beside the scores."""
    said = cautions([one.scores["how"] for one in evaluations])
    if evaluations[0].samples.kind == "picture" and "by_features" not in evaluations[0].scores:
        said.append("no scores by features: --features efficientnet-lite0 measures them, or a classifier of this size")
    return said


def _near(evaluation: Evaluation, among: Sequence[Evaluation]) -> str:
    found = _neighbours(evaluation)
    return _head(evaluation, among) + found if found else ""


@dataclass(frozen=True)
class Printed:
    """The scores for a terminal: a table, and what must be said of it."""

    title: str
    rows: list[tuple[str, ...]]
    heads: list[str]
    notes: list[str]


def printed(evaluations: Sequence[Evaluation]) -> Printed:
    """One subject's scores, or several side by side."""
    notes = _notes(evaluations)
    if len(evaluations) == 1:
        own = table(evaluations[0].scores)
        told_already = {text for _, text in own}
        return Printed(evaluations[0].name, list(own), [], [note for note in notes if note not in told_already])
    rows = []
    for name, found in side_by_side([one.scores for one in evaluations]):
        which = best(found)
        cells = ("–" if row is None else shown(row["value"], row["error"]) for row in found)
        rows.append((name, *(f"{cell} *" if k == which else cell for k, cell in enumerate(cells))))
    return Printed(
        "side by side, the best marked * unless within its error",
        rows,
        ["score", *(one.name for one in evaluations)],
        notes,
    )


def document(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """scores.json: the scores of one subject, or of several by their names."""
    if len(evaluations) == 1:
        return evaluations[0].scores
    return {"compared": {one.name: one.scores for one in evaluations}}


def folder_of(names: Sequence[str]) -> Path:
    """Where a page goes unless it is said: evaluations/NAME, or evaluations/NAME-vs-NAME."""
    short = []
    for name in names:
        path = Path(name.partition(".npz")[0])
        parts = [part for part in path.parts if part not in ("..", path.anchor)]
        own = [part for part in parts if part != "model"] or ["pictures"]
        short.append("-".join(own[-2:] if own[-1] == "best" else own[-1:]))
    return Path("evaluations") / "-vs-".join(short)


def check_folder(folder: Path) -> None:
    """ValueError if no page can be written there; asked before anything is measured."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"cannot write {folder}: {there} is no folder that may be written; choose another --page")


def write(folder: Path, evaluations: Sequence[Evaluation], command: str = "") -> None:
    """index.html and scores.json into `folder`."""
    text = html(evaluations, command)
    native.write_json(folder / "scores.json", document(evaluations))
    native.write_text(folder / "index.html", text)
