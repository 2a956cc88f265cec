"""Rows of the house's literal tables, named by a user: ``"ddim"``, ``"ddim:eta=0.5"``, ``"linear:steps=100"``.

A table maps a name to a function; a text ``name:option=value,option=value`` means that function with those options
fixed.  An unknown name is answered with the nearest one and the whole list, an unknown option likewise.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any


def unknown(kind: str, name: str, allowed: Iterable[str]) -> ValueError:
    """The error for a name that is in no table: what came, what is near, what is allowed."""
    names = sorted(allowed)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown {kind} {name!r}{hint} (allowed: {', '.join(names)})")


def install(extra: str) -> str:
    """How to come by one of the package's extras."""
    return f"install the extra: pip install 'sfumato[{extra}]' (in a clone: '.[{extra}]')"


def value(text: str) -> Any:
    """A number, tuple, True, False or None if the text reads as one, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def whole(what: str, given: Any, most: int | None = None) -> int:
    """A whole number from 1 to most, or ValueError."""
    if not isinstance(given, int) or isinstance(given, bool) or given < 1 or (most is not None and given > most):
        raise ValueError(
            f"{what} must be a whole number {'>= 1' if most is None else f'from 1 to {most}'}; got {given!r}"
        )
    return given


def above_zero(what: str, given: float) -> float:
    """A finite number above 0, or ValueError."""
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < math.inf:
        raise ValueError(f"option {what} is a number above 0; got {given!r}")
    return given


def split(text: str) -> tuple[str, dict[str, Any]]:
    """``"ddim:eta=0.5,clip=True"`` -> ``("ddim", {"eta": 0.5, "clip": True})``."""
    name, _, tail = text.partition(":")
    options = {}
    for part in filter(None, re.split(r",(?![^\[(]*[\])])", tail)):  # not at a comma inside brackets
        key, equals, given = part.partition("=")
        if not equals:
            raise ValueError(f"{text!r}: option {part!r} has no value; write {name}:{part}=VALUE")
        options[key.strip()] = value(given.strip())
    return name.strip(), options


def call_with(kind: str, text: str, table: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The table's function of that name, its options fixed; ValueError names the nearest name or option."""
    name, options = split(text)
    if name not in table:
        raise unknown(kind, name, table)
    function = table[name]
    if not options:
        return function
    parameters = inspect.signature(function).parameters.values()
    allowed = {p.name: p.default for p in parameters if p.default is not p.empty}
    for option, given in options.items():
        if option not in allowed:
            raise unknown(f"option of {kind} {name}", option, allowed)
        if isinstance(allowed[option], int | float) and not isinstance(given, int | float):
            raise ValueError(f"option {option} of {kind} {name} is a number, as {allowed[option]!r} is; got {given!r}")
        if isinstance(allowed[option], str) and not isinstance(given, str):
            raise ValueError(f"option {option} of {kind} {name} is a word, as {allowed[option]!r} is; got {given!r}")
    return partial(function, **options)
