"""Recipes: one run a function, returning a complete typed Run.

`sfumato train NAME` starts from a row of RECIPES, and any field of its Run can be set on the command line.
"""

from __future__ import annotations

from collections.abc import Callable

from sfumato.recipes import assumptions
from sfumato.recipes.classifiers import CLASSIFIER_RECIPES, fit_classifier
from sfumato.recipes.digits import digits
from sfumato.recipes.fit import finish, fit, plan
from sfumato.recipes.pictures import cifar10, emoji, fashion, mnist, mnist_weak, pictures
from sfumato.recipes.small import signal, vector, volume
from sfumato.train import Run

RECIPES: dict[str, Callable[[], Run]] = {
    "digits": digits,
    "mnist": mnist,
    "mnist-weak": mnist_weak,
    "fashion": fashion,
    "cifar10": cifar10,
    "emoji": emoji,
    "pictures": pictures,
    "signal": signal,
    "volume": volume,
    "vector": vector,
    "digits-flow": assumptions.flow,
    "digits-edm": assumptions.edm,
    "digits-meanflow": assumptions.meanflow,
    "digits-x0": assumptions.x0,
    "digits-blind": assumptions.blind,
    "digits-blur": assumptions.blur,
    "digits-cold": assumptions.cold,
    "digits-dit": assumptions.dit,
    "bridge": assumptions.bridge,
}

__all__ = ["CLASSIFIER_RECIPES", "RECIPES", "finish", "fit", "fit_classifier", "plan"]
