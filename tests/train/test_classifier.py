"""Training a classifier: it learns what can be known, by times and noise that are functions of (seed, step)."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato import schedules
from sfumato.data import Data
from sfumato.nn import UNetConfig
from sfumato.train import Optimiser
from sfumato.train.classifier import ClassifierRun, ClassifierTraining, accuracy, moved, train_classifier

from ..tiny import checkpoint, different, silent

NETWORK = UNetConfig(channels=8, multipliers=(1, 2), blocks=1, groups=4, dropout=0.1)
WIDER = UNetConfig(channels=32, patch=2, multipliers=(1, 2), blocks=1, groups=8, adaptive=False)


def small(**changes: Any) -> ClassifierRun:
    usual: dict[str, Any] = {
        "data": Data("digits", held_out=5),
        "network": NETWORK,
        "optimiser": Optimiser(learning_rate=5e-3, warmup=10),
        "steps": 12,
        "batch": 16,
        "save_every": 4,
        "shift": 1,
    }
    return ClassifierRun(**{**usual, **changes})


def walked(run: ClassifierRun, out: Path, stop: int | None = None) -> ClassifierTraining:
    training = ClassifierTraining(run, out, silent)
    for step in train_classifier(training):
        if step.number % run.save_every == 0:
            training.save()
        if step.number == stop:
            break
    return training


@pytest.mark.parametrize("schedule", ["", "cosine:steps=50"], ids=["clean", "noisy"])
def test_a_training_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path, schedule: str) -> None:
    run = small(schedule=schedule, label_smoothing=0.1)
    walked(run, tmp_path / "whole")
    walked(run, tmp_path / "stopped", stop=6)  # two steps after its checkpoint
    walked(run, tmp_path / "stopped")
    whole, stopped = (checkpoint(tmp_path / name, 12) for name in ("whole", "stopped"))
    assert {name.split("/")[0] for name in whole} == {"net", "ema", "adam"}
    assert not different(whole, stopped)
    assert different(whole, checkpoint(tmp_path / "whole", 8))


def test_other_settings_do_not_go_on(tmp_path: Path) -> None:
    walked(small(), tmp_path, stop=4)
    with pytest.raises(ValueError, match=r"label_smoothing: 0.0 then, 0.2 now"):
        ClassifierTraining(small(label_smoothing=0.2), tmp_path, silent)


def test_the_first_loss_is_that_of_knowing_nothing(tmp_path: Path) -> None:
    training = ClassifierTraining(small(), tmp_path, silent, resume=False)
    assert next(train_classifier(training)).loss == pytest.approx(math.log(10), abs=1e-6)


@pytest.mark.slow
def test_digits_are_learned_in_seconds(tmp_path: Path) -> None:
    run = small(network=WIDER, steps=120, batch=64, shift=0)
    training = ClassifierTraining(run, tmp_path, silent, resume=False)
    for _ in train_classifier(training):
        pass
    assert accuracy(training.classifier(), training.splits.held_out) > 0.93  # 97.5 % measured


@pytest.mark.slow
def test_under_noise_it_learns_the_exact_posterior(tmp_path: Path) -> None:
    """Two labelled Gaussians of a signal: p(y | x_t) by Bayes, at every t that a guided sampler asks at.

    x_0 = y-dependent mean + 0.5 n with y at even odds, so log p(1|x_t)/p(0|x_t) is linear in x_t, with the variance
    0.25 alpha^2 + sigma^2.
    """
    generator = np.random.default_rng(0)
    mean = np.array([[0.8, -0.4, 0.4, 0.8]])
    label = generator.integers(0, 2, 4096)
    x = (2 * label - 1)[:, None, None] * mean + 0.5 * generator.standard_normal((4096, 1, 4))
    np.savez(tmp_path / "two.npz", images=x.astype(np.float32), labels=label)
    run = ClassifierRun(
        data=Data("file", path=str(tmp_path / "two.npz")),
        network=UNetConfig(channels=16, multipliers=(1,), blocks=1, groups=1),
        schedule="cosine",
        optimiser=Optimiser(learning_rate=3e-3, warmup=20),
        steps=300,
        batch=256,
    )
    training = ClassifierTraining(run, tmp_path, silent, resume=False)
    for _ in train_classifier(training):
        pass
    classifier = training.classifier()
    (spread,) = training.codec.std  # type: ignore[attr-defined]
    (offset,) = training.codec.mean  # type: ignore[attr-defined]
    schedule = schedules.cosine()
    for at in (0.1, 0.4, 0.7):
        t = torch.full((2048,), at, dtype=torch.float64)
        alpha, sigma = float(schedule.alpha(t[:1])), float(schedule.sigma(t[:1]))
        x_t = alpha * training.codec.encode(torch.from_numpy(x[:2048].astype(np.float32)))
        x_t = x_t + sigma * torch.from_numpy(generator.standard_normal(x_t.shape).astype(np.float32))
        variance = (alpha * 0.5 / spread) ** 2 + sigma**2
        centre, m = alpha * -offset / spread, alpha * torch.from_numpy(mean).float() / spread
        exact = torch.sigmoid(2 * ((x_t - centre) * m).sum((1, 2)) / variance)
        found = classifier.logits(x_t, t).softmax(1)[:, 1]
        assert (found - exact).abs().mean() < 0.03, at
        assert (exact - 0.5).abs().mean() > 0.1, at  # there is something to know


def test_moving_is_a_crop_of_the_padded_picture() -> None:
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 6, 7), dtype=np.uint8))
    draws = np.array([[0.0, 0.0], [0.999, 0.999], [0.5, 0.5], [0.3, 0.9], [0.7, 0.1]])
    by = [(0, 0), (4, 4), (2, 2), (1, 4), (3, 0)]  # of the 5 places from -2 to 2
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
    wanted = np.stack([padded[i, :, y : y + 6, z : z + 7] for i, (y, z) in enumerate(by)])
    assert np.array_equal(moved(x, 2, draws).numpy(), wanted)
    assert torch.equal(moved(x, 2, draws)[2], x[2])


def test_what_cannot_be_trained_is_answered_in_one_line(tmp_path: Path) -> None:
    for run, says in [
        (replace(small(), schedule="cosne"), "did you mean 'cosine'"),
        (replace(small(), schedule="blurring"), "unknown schedule 'blurring'"),
        (replace(small(), schedule="rectified"), "'index' needs a T-step schedule"),
        (replace(small(shift=0), data=Data("neuron")), "no labels"),
        (replace(small(), data=Data("breast_cancer")), "moves pictures"),
    ]:
        with pytest.raises(ValueError, match=says) as error:
            ClassifierTraining(run, tmp_path, silent)
        assert "\n" not in str(error.value)
    for options, says in [
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"shift": -1}, "shift"),
        ({"batch": 0}, "batch"),
    ]:
        with pytest.raises(ValueError, match=says):
            small(**options)
