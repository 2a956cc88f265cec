"""The classifiers' recipes: small enough to ship, and what a training leaves behind."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from sfumato.checkpoints import native
from sfumato.classifier import load_classifier
from sfumato.data import Data
from sfumato.nn import UNetConfig
from sfumato.nn.classifier import ClassifierNet
from sfumato.recipes import mnist
from sfumato.recipes.classifiers import CLASSIFIER_RECIPES, fit_classifier
from sfumato.train import state
from sfumato.train.classifier import ClassifierRun
from sfumato.train.log import read

from ..tiny import silent

SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "emoji": (3, 32, 32)}


@pytest.mark.parametrize("name", CLASSIFIER_RECIPES)
def test_every_recipe_is_small(name: str) -> None:
    run = CLASSIFIER_RECIPES[name]()
    net = ClassifierNet(run.network, SHAPES[run.data.name], 10)
    assert sum(p.numel() for p in net.parameters()) < 500_000
    assert 64 <= net.width <= 192
    assert bool(run.schedule) == ("noisy" in name)


def test_the_noisy_one_is_of_the_noise_that_mnist_has() -> None:
    ours, theirs = CLASSIFIER_RECIPES["mnist-noisy-classifier"](), mnist()
    assert (ours.data, ours.schedule, ours.time) == (theirs.data, theirs.schedule, theirs.time)


@pytest.mark.parametrize("schedule", ["", "cosine:steps=50"], ids=["clean", "noisy"])
def test_what_a_training_leaves_behind(tmp_path: Path, schedule: str) -> None:
    run = ClassifierRun(
        data=Data("digits", held_out=5),
        network=UNetConfig(channels=8, multipliers=(1, 2), blocks=1, groups=4),
        schedule=schedule,
        steps=4,
        batch=16,
        log_every=2,
        save_every=2,
    )
    seen: list[int] = []
    scores = fit_classifier(run, tmp_path, "sfumato train it", silent, lambda step, loss, rate: seen.append(step))
    assert seen == [1, 2, 3, 4]
    assert scores["n"] == 359
    assert ("accuracy_by_t" in scores) == bool(schedule)
    assert scores == native.read_json(tmp_path / "scores.json")
    assert [line["step"] for line in read(tmp_path / "log.jsonl")] == [2, 4]
    classifier = load_classifier(tmp_path)
    assert classifier.config.training["scores"] == scores
    assert f"| clean | {scores['accuracy']:.2%} |" in classifier.card
    assert "command: `sfumato train it`" in classifier.card
    assert "UCI 1998" in classifier.card

    # the same command again: nothing is left to train, and the folder is the same
    again = fit_classifier(run, tmp_path, "sfumato train it", silent, silent)
    assert again == scores
    assert seen == [1, 2, 3, 4]


def test_a_training_that_is_stopped_has_saved_its_step(tmp_path: Path) -> None:
    run = ClassifierRun(network=UNetConfig(channels=8, multipliers=(1,), blocks=1, groups=4), steps=3, batch=8)

    def stop(step: int, loss: float, rate: float) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit_classifier(run, tmp_path, "c", silent, stop)
    assert state.goes_on(tmp_path) == "the same command goes on from step 2"


def test_a_longer_training_goes_on(tmp_path: Path) -> None:
    run = ClassifierRun(network=UNetConfig(channels=8, multipliers=(1,), blocks=1, groups=4), steps=2, batch=8)
    fit_classifier(run, tmp_path, "c", silent, silent)
    seen: list[int] = []
    fit_classifier(replace(run, steps=3), tmp_path, "c", silent, lambda step, loss, rate: seen.append(step))
    assert seen == [3]
