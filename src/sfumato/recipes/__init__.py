"""Recipes: one run a function, returning a complete typed Run.

`sfumato train NAME` starts from a row of RECIPES, and any field of its Run can be set on the command line.
"""

from __future__ import annotations

from collections.abc import Callable

from sfumato.recipes.digits import digits
from sfumato.recipes.fit import finish, fit, plan
from sfumato.recipes.pictures import cifar10, emoji, fashion, mnist, pictures
from sfumato.recipes.small import signal, vector, volume
from sfumato.train import Run

RECIPES: dict[str, Callable[[], Run]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion": fashion,
    "cifar10": cifar10,
    "emoji": emoji,
    "pictures": pictures,
    "signal": signal,
    "volume": volume,
    "vector": vector,
}

__all__ = ["RECIPES", "finish", "fit", "plan"]
