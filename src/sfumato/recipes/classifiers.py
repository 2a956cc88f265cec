"""Classifiers: those whose features and labels score samples, and one that knows noise, for guidance.

    OUT/run.json  log.jsonl  tensorboard/  checkpoints/     what going on needs, and what happened
    OUT/model/                                              the classifier, averaged weights in half precision
    OUT/scores.json                                         its accuracy on the held-out part

To resume, give the same command again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sfumato.checkpoints import native
from sfumato.classifier import Classifier
from sfumato.data import Data
from sfumato.nn import UNetConfig
from sfumato.train import Optimiser
from sfumato.train.classifier import ClassifierRun, ClassifierTraining, accuracy, train_classifier
from sfumato.train.log import Log
from sfumato.train.stopping import waiting

NOISE_LEVELS = tuple(i / 10 for i in range(11))  # the times at which a noise-aware classifier is measured


def mnist_classifier() -> ClassifierRun:
    """28x28 digits, clean: the features of FD(mnist) and the judge of agreement; 99.5 % right."""
    return ClassifierRun(
        data=Data("mnist"),
        network=UNetConfig(channels=24, patch=2, multipliers=(1, 2, 3), blocks=1, adaptive=False, groups=8),
        optimiser=Optimiser(learning_rate=3e-3, warmup=100, weight_decay=0.02),
        label_smoothing=0.05,
        shift=2,
        steps=2800,
        batch=128,
    )


def mnist_noisy_classifier() -> ClassifierRun:
    """28x28 digits under the noise of the recipe mnist, told its time: for guidance; 8 minutes on one core."""
    return ClassifierRun(
        data=Data("mnist"),
        network=UNetConfig(channels=24, patch=2, multipliers=(1, 2, 3), blocks=1, groups=8),
        schedule="cosine",
        time="index",
        optimiser=Optimiser(learning_rate=3e-3, warmup=100, weight_decay=0.02),
        steps=2000,
        batch=128,
    )


def cifar10_classifier() -> ClassifierRun:
    """32x32 photographs of ten classes, clean: the features of FD(cifar10); 71 %, 11 minutes on one core."""
    return ClassifierRun(
        data=Data("cifar10", flip=True),
        network=UNetConfig(
            channels=32, patch=2, multipliers=(1, 2, 2), blocks=1, adaptive=False, groups=8, dropout=0.1
        ),
        optimiser=Optimiser(learning_rate=3e-3, warmup=200, weight_decay=0.05),
        label_smoothing=0.1,
        shift=4,
        steps=3000,
        batch=128,
    )


def emoji_classifier() -> ClassifierRun:
    """32x32 emoji of nine groups, clean: the features of FD(emoji); 71 %, 4 minutes on one core."""
    return ClassifierRun(
        data=Data("emoji", size=32),
        network=UNetConfig(
            channels=32, patch=2, multipliers=(1, 2, 2), blocks=1, adaptive=False, groups=8, dropout=0.2
        ),
        optimiser=Optimiser(learning_rate=3e-3, warmup=100, weight_decay=0.05),
        label_smoothing=0.1,
        shift=2,
        steps=1000,
        batch=128,
    )


CLASSIFIER_RECIPES: dict[str, Callable[[], ClassifierRun]] = {
    "mnist-classifier": mnist_classifier,
    "mnist-noisy-classifier": mnist_noisy_classifier,
    "cifar10-classifier": cifar10_classifier,
    "emoji-classifier": emoji_classifier,
}


def fit_classifier(
    run: ClassifierRun,
    out: Path,
    command: str,
    say: Callable[[str], None],
    report: Callable[[int, float, float], None],
) -> dict[str, Any]:
    """Train, or go on with a training, to its last step; OUT/model is then the classifier.  Returns its scores.

    report(step, loss, images a second) is called after every step.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("a classifier is trained by one process; give the command without accelerate or torchrun")
    training = ClassifierTraining(run, out, say)
    log = Log(out, training.step)
    begun, before, first = time.perf_counter(), training.seconds, training.step
    smooth, loss_sum, counted = None, 0.0, 0
    with waiting() as stopped:
        for step in train_classifier(training):
            training.seconds = before + time.perf_counter() - begun
            rate = (step.number - first) * run.batch / (training.seconds - before)
            smooth = step.loss if smooth is None else 0.98 * smooth + 0.02 * step.loss
            loss_sum, counted = loss_sum + step.loss, counted + 1
            report(step.number, smooth, rate)
            last = step.number == run.steps
            if step.number % run.log_every == 0 or last:
                log.write(
                    step.number, loss=loss_sum / counted, learning_rate=step.learning_rate, images_per_second=rate
                )
                loss_sum, counted = 0.0, 0
            if step.number % run.save_every == 0 or last or stopped():
                training.save()
            if stopped():
                raise KeyboardInterrupt
    log.close()
    scores = measure(_rounded(training.classifier()), training)
    kept = {key: getattr(run, key) for key in ("batch", "label_smoothing", "shift", "seed")}
    classifier = training.classifier(command=command, seconds=round(training.seconds, 1), run=kept, scores=scores)
    classifier.card = card(classifier)
    classifier.save(out / "model")
    native.write_json(out / "scores.json", scores)
    return scores


def _rounded(classifier: Classifier) -> Classifier:
    """The classifier with its weights in half precision, as its folder keeps them: what is measured is what is kept."""
    classifier.net.half().float()
    return classifier


def measure(classifier: Classifier, training: ClassifierTraining) -> dict[str, Any]:
    """Accuracy on the held-out part, and by t for a noise-aware classifier."""
    rows = training.splits.held_out
    scores: dict[str, Any] = {"accuracy": accuracy(classifier, rows), "n": len(rows)}
    if classifier.schedule is not None:
        scores["accuracy_by_t"] = {f"{t:g}": accuracy(classifier, rows, t) for t in NOISE_LEVELS[1:]}
    return scores


def card(classifier: Classifier) -> str:
    """Markdown, made from the config alone."""
    config, facts = classifier.config, classifier.config.training
    scores, run = facts["scores"], facts["run"]
    parameters = sum(p.numel() for p in classifier.net.parameters())
    noise = "clean pictures only" if config.schedule is None else f"noise of the schedule {config.schedule['name']}"
    lines = [
        f"# {config.data['name']}, a classifier",
        "",
        f"The encoder half of a UNet, {parameters:,} parameters: rows of shape {config.shape} into "
        f"{config.classes} classes by {classifier.net.width} features; {noise}.",
        "",
        f"- command: `{facts['command']}`",
        f"- trained for {facts['seconds'] / 60:.1f} minutes, {facts['step']} steps of {run['batch']} rows",
        f"- data: {config.data['source']}",
        f"- held out: {config.data['rule']}",
        f"- classes: {', '.join(config.label_names)}",
        f"- label smoothing {run['label_smoothing']:g}, dropout {config.options['dropout']:g}, "
        f"moved by up to {run['shift']} pixels, mirrored: {'yes' if config.data['flip'] else 'no'}, "
        f"EMA length {facts['ema']:g}",
        "",
        f"| accuracy on the {scores['n']:,} held-out rows | |",
        "|---|---|",
        f"| clean | {scores['accuracy']:.2%} |",
    ]
    lines += [f"| x_t at t = {t} | {share:.2%} |" for t, share in scores.get("accuracy_by_t", {}).items()]
    return "\n".join(lines) + "\n"
