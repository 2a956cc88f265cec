"""What an experiment is asked, and what it leaves behind.

    OUT/NAME.png     the figure, under 300 KB            OUT/NAME.csv   every number behind it
    OUT/NAME.json    the same numbers with all that they rest on: command, seed, seconds, features, reference, weights
    OUT/README.md    the page: what is shown, from which weights and data, by which command, and the main numbers
    OUT/unfinished/  blocks of a run that was stopped; gone when the page is written

Every file is written beside its place and renamed into it, the page last.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sfumato.checkpoints import native
from sfumato.classifier import Classifier
from sfumato.experiments import figures
from sfumato.model import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNFINISHED = "unfinished"


@dataclass(frozen=True)
class Request:
    """What is asked: the experiment's name, where its report goes, how thoroughly, of which MODEL.

    usual: the model that a command without --model looks at.
    """

    name: str
    out: Path
    quick: bool = False
    model: str = "digits"
    seed: int = 0
    say: Callable[[str], None] = lambda text: None
    usual: str = "digits"

    @property
    def command(self) -> str:
        """The command line that asks the same."""
        words = ["sfumato", "reproduce", self.name, *(["--quick"] if self.quick else [])]
        usual = Request(self.name, Path("reports") / self.name, model=self.usual)
        for flag in ("model", "seed", "out"):
            if (given := getattr(self, flag)) != getattr(usual, flag):
                words += [f"--{flag}", str(given)]
        return shlex.join(words)


@dataclass(frozen=True)
class Report:
    """What an experiment gives: its text, its figure, its numbers.

    shown: what is computed and by which formula; see: what one should see in it (both Markdown).
    basis: lines about the model, the data and how much of it; facts: what all rows have in common, for the JSON.
    numbers: the main ones, a table under `heads`.
    columns, rows: the CSV.  film: uint8 frames (H, W), if there is one.
    """

    title: str
    shown: str
    see: str
    basis: Sequence[str]
    numbers: Sequence[Sequence[str]]
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    figure: Figure
    film: Sequence[np.ndarray] = ()
    heads: Sequence[str] = ("what", "value")
    facts: Mapping[str, Any] = field(default_factory=dict)


def digest(model: Model | Classifier) -> str:
    """The first 16 hexadecimal digits of the sha256 of a model's weights: names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name, x in sorted(model.net.state_dict().items()):
        found.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        found.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def remembered(
    request: Request, key: Mapping[str, Any], block: str, compute: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """compute(), or what it gave before this run was stopped.

    key is all that the block depends on (weights, sizes, seed); a block of another key, or a torn one, is made anew.
    """
    folder = request.out / UNFINISHED / block
    document = json.loads(json.dumps({"seed": request.seed, **key}))
    if folder.exists():
        try:
            tensors, found = native.read_state(folder)
            if found.get("key") == document:
                return tensors
        except ValueError as error:
            request.say(f"{block} is computed anew: {error}")
    tensors = compute()
    native.write_folder(folder, "state", tensors, {"key": document})
    return tensors


def number(value: Any) -> str:
    """A CSV cell: floats with nine digits, None empty."""
    return "" if value is None else f"{value:.9g}" if isinstance(value, float) else str(value)


def _csv(report: Report) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(report.columns)
    for row in report.rows:
        assert len(row) == len(report.columns)
        writer.writerow([number(value) for value in row])
    return text.getvalue().encode()


def _json(request: Request, report: Report, seconds: float) -> bytes:
    document = {
        "experiment": request.name,
        "command": request.command,
        "quick": request.quick,
        "seed": request.seed,
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        **report.facts,
        "made_from": list(report.basis),
        "rows": [dict(zip(report.columns, row, strict=True)) for row in report.rows],
    }
    return (json.dumps(native.finite(document), indent=1, allow_nan=False) + "\n").encode()


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _page(request: Request, report: Report, seconds: float) -> bytes:
    if request.quick:
        kind = "**Quick run** (`--quick`): fewer rows and steps than the full run, so the numbers are coarser."
    else:
        kind = "**Full run.**"
    lines = [
        f"# {report.title}",
        "",
        f"{kind} Made by `{request.command}` in {seconds:.0f} s on {torch.get_num_threads()} thread(s).",
        "",
        report.shown.strip("\n"),
        "",
        f"![{report.title}]({request.name}.png)",
        "",
        *([f"![the film]({request.name}.gif)", ""] if report.film else []),
        "## What one should see",
        "",
        report.see.strip("\n"),
        "",
        "## Numbers",
        "",
        f"All are in [{request.name}.csv]({request.name}.csv), with what they rest on in"
        f" [{request.name}.json]({request.name}.json): {len(report.rows)} rows of"
        f" {', '.join(f'`{name}`' for name in report.columns)}. The main ones:",
        "",
        _line(report.heads),
        _line(["---"] * len(report.heads)),
        *(_line(row) for row in report.numbers),
        "",
        "## Made from",
        "",
        *(f"- {line}" for line in report.basis),
        f"- seed {request.seed}",
    ]
    return ("\n".join(lines) + "\n").encode()


def write(request: Request, report: Report, seconds: float) -> None:
    """Write the report to request.out; ValueError if that cannot be written."""
    files = {f"{request.name}.png": figures.png(report.figure), f"{request.name}.csv": _csv(report)}
    files[f"{request.name}.json"] = _json(request, report, seconds)
    if report.film:
        files[f"{request.name}.gif"] = figures.gif(report.film)
    files["README.md"] = _page(request, report, seconds)
    try:
        request.out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (request.out / f".{name}.writing").write_bytes(content)
        for name in files:
            os.replace(request.out / f".{name}.writing", request.out / name)
    except OSError as error:
        raise ValueError(f"cannot write {request.out}: {error.strerror or error}; choose another --out") from error
