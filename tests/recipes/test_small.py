"""The tiny recipes, cut short, know more of their data than a fitted Gaussian: the UNet in 1-D and 3-D, and the MLP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sfumato import data
from sfumato.recipes import RECIPES
from sfumato.recipes.small import signal, vector, volume
from sfumato.tasks import generate
from sfumato.tasks.gaussian import beside_gaussian
from sfumato.train import Run, Training, train


def test_they_are_in_the_table() -> None:
    assert (RECIPES["signal"], RECIPES["volume"], RECIPES["vector"]) == (signal, volume, vector)


@pytest.mark.parametrize(("recipe", "axes"), [(signal, 1), (volume, 3), (vector, 0)])
def test_each_has_data_of_its_kind(recipe: Callable[[], Run], axes: int) -> None:
    if recipe is volume:
        pytest.importorskip("nibabel")
    info = data.load(recipe().data).info
    assert (info.kind, len(info.shape)) == (recipe.__name__, axes + 1)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "steps"), [(signal, 300), (volume, 150), (vector, 600)])
def test_each_beats_a_fitted_gaussian(recipe: Callable[[], Run], steps: int, tmp_path: Path) -> None:
    """On the same held-out rows, times and noise; and its samples are nearer to held-out rows."""
    if recipe is volume:
        pytest.importorskip("nibabel")
    training = Training(replace(recipe(), steps=steps), tmp_path, say=lambda text: None)
    for _ in train(training):
        pass
    splits, model = training.splits, training.model()
    rows = splits.train.take(np.arange(min(len(splits.train), 10_000)))
    held_out = splits.held_out.take(np.arange(min(len(splits.held_out), 1_000)))
    scores = beside_gaussian(model, rows, held_out, generate(model, 300, steps=25))
    assert scores["loss"]["model"] < scores["loss"]["gaussian"]
    assert scores["energy"]["model"] < scores["energy"]["gaussian"]
