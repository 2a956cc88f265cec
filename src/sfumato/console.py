"""What the commands read and print: flags, help texts, tables, the bar of a training."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Say = Callable[[str], None]
Report = Callable[[int, float, float], None]  # (step, loss, images a second)
UNRECOGNISED = "Unrecognized options: "
# what tyro says of a value, and what this command says instead
VALUES = {
    r"Error parsing (--[\w.-]+): invalid literal for int[^:]*: (.*?);": "{0}: {1} came, allowed is a whole number",
    r"Error parsing (--[\w.-]+): could not convert string to float: (.*?);": "{0}: {1} came, allowed is a number",
    r"invalid choice (.*?) for argument '(--[\w.-]+)'\. Expected one of \((.*?)\)": "{1}: {0} came (allowed: {2})",
}


def listing(title: str, table: Mapping[str, str] | Sequence[str]) -> str:
    """A table's rows, for a help text."""
    if isinstance(table, Mapping):
        width = max(map(len, table), default=0)
        return f"{title}:\n" + "".join(f"  {name:{width}}  {text}\n" for name, text in table.items())
    return f"{title}: {', '.join(table)}\n"


def first_line(text: str | None) -> str:
    return (text or "").strip().split("\n")[0]


def parse(kind: Any, program: str, description: str, args: Sequence[str], default: Any = None) -> Any:
    """A dataclass from flags; --help prints the description with its tables as they are.

    What tyro says of a mistake, in a box, becomes one line.
    """
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind,
                args=list(args),
                prog=f"sfumato {program}",
                description=description,
                default=tyro.MISSING_NONPROP if default is None else default,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as end:
        if not end.code:
            raise
        line = _one_line(said.getvalue())
        raise ValueError(_unrecognised(line, program) if line.startswith(UNRECOGNISED) else _plain(line)) from None


def _one_line(box: str) -> str:
    """The words of a box, up to its second rule, as one line."""
    words = [line.strip("│╭╮╰╯─ ") for line in box.splitlines()[1:-1]]
    parts = " ".join(word if word.strip("-") else ";" for word in words).split(";")
    return "; ".join(part.strip() for part in parts if part.strip())


def _plain(line: str) -> str:
    """What tyro says of a value, in this command's own words."""
    for pattern, words in VALUES.items():
        if found := re.match(pattern, line):
            return words.format(*(word.replace("'", "") for word in found.groups()))
    return line


def _unrecognised(line: str, program: str) -> str:
    """The flags that no field has, without their values, each with the near one that tyro found."""
    came, _, advice = line.removeprefix(UNRECOGNISED).partition(";")
    words = [word.strip().partition("=")[0] for word in came.split(",")]
    flags = [word for word in words if re.match("--?[A-Za-z]", word)]
    if not flags:
        return f"{' '.join(words)} came where a flag was expected; sfumato {program} --help lists them"

    def named(flag: str) -> str:
        near = re.search(rf"(?:meant|similar to {re.escape(flag)}): .*?(--[A-Za-z][\w.-]*)", advice)
        return f"unknown flag {flag}" + (f"; did you mean {near[1]}?" if near else "")

    return f"{'; '.join(map(named, flags))} (sfumato {program} --help lists all)"


def name_first(args: Sequence[str], what: str, usage: str) -> tuple[str, list[str]]:
    """The NAME that a command begins with, and the rest."""
    if not args or args[0].startswith("-"):
        raise ValueError(f"{usage}: the first word is {what}, got {args[0] if args else 'nothing'}")
    return args[0], list(args[1:])


def value_of(args: Sequence[str], flag: str) -> str | None:
    """VALUE of `--flag VALUE` or `--flag=VALUE`, looked at before the other flags are."""
    for i, word in enumerate(args):
        if word == flag or word.startswith(f"{flag}="):
            return word.partition("=")[2] or next(iter(args[i + 1 :]), "")
    return None


def show(title: str, rows: Sequence[tuple[str, ...]], heads: Sequence[str] = ()) -> None:
    from rich.console import Console
    from rich.table import Table

    sheet = Table(title=title, show_header=bool(heads), title_justify="left")
    names = bool(heads) and not any(" " in row[0] for row in rows)  # stay whole; scores give way to their values
    for k, head in enumerate(heads or [""] * len(rows[0])):
        sheet.add_column(head, no_wrap=names and k == 0)
    for row in rows:
        sheet.add_row(*row)
    usual = Console(soft_wrap=True)
    Console(soft_wrap=True, width=max(usual.width, 132 if len(heads) > 6 else 0)).print(sheet, highlight=False)


@contextlib.contextmanager
def progress(steps: int, batch: int) -> Iterator[tuple[Say, Report]]:
    """A training on the terminal: what writes a line above its bar, and what moves the bar after every step.

    Where there is no terminal, a line at every twentieth of the training stands for the bar.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console()
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TextColumn("{task.fields[rate]:.0f} images/s"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    say = lambda text: console.print(text, highlight=False, markup=False)  # noqa: E731
    alone = os.environ.get("RANK", "0") == "0"  # of several processes the first has the bar
    with Progress(*columns, console=console, disable=not (console.is_terminal and alone)) as bars:
        bar = bars.add_task("training", total=steps, loss=float("nan"), rate=0.0)

        def report(step: int, loss: float, rate: float) -> None:
            bars.update(bar, completed=step, loss=loss, rate=rate)
            if not console.is_terminal and (step % max(steps // 20, 1) == 0):
                left = (steps - step) * batch / max(rate, 1e-9)
                say(f"step {step}/{steps}  loss {loss:.4f}  {rate:.0f} images/s  ETA {left:.0f} s")

        yield say, report
