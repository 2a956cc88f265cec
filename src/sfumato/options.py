"""Rows of the house's literal tables, named by a user: ``"ddim"``, ``"ddim:eta=0.5"``, ``"linear:steps=100"``.

A table maps a name to a function; a text ``name:option=value,option=value`` means that function with those options
fixed.  An unknown name is answered with the nearest one and the whole list, an unknown option likewise.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any


def unknown(kind: str, name: str, allowed: Iterable[str]) -> ValueError:
    """The error for a name that is in no table: what came, what is near, what is allowed."""
    names = sorted(allowed)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown {kind} {name!r}{hint} (allowed: {', '.join(names)})")


def value(text: str) -> Any:
    """A number, tuple, True, False or None if the text reads as one, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def split(text: str) -> tuple[str, dict[str, Any]]:
    """``"ddim:eta=0.5,clip=True"`` -> ``("ddim", {"eta": 0.5, "clip": True})``."""
    name, _, tail = text.partition(":")
    options = {}
    for part in filter(None, tail.split(",")):
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
    allowed = [p.name for p in inspect.signature(function).parameters.values() if p.default is not p.empty]
    for option in options:
        if option not in allowed:
            raise unknown(f"option of {kind} {name}", option, allowed)
    return partial(function, **options)
