"""The learning curve of a training: the score of its averaged weights at every snapshot, beside the floor of real data.

Every point is measured alike: n samples of the same seeds and labels, sampled as the model's config says, against the
same reference pictures.  The floor is the score of as many real training pictures, which no model should be below.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.checkpoints import native
from sfumato.model import Model
from sfumato.tasks import generate, scores
from sfumato.tasks.features import feature_network
from sfumato.train import Training
from sfumato.train.log import read

POINT_SAMPLES = 1000
REFERENCE_ROWS = 10_000  # held-out pictures of the reference, at most


def seconds_at(log: Path, step: int) -> float:
    """The seconds of training up to a step, from the lines of its log."""
    lines = [(line["step"], line["seconds"]) for line in read(log) if "seconds" in line]
    at, seconds = zip(*lines, strict=True) if lines else ((), ())
    return float(np.interp(step, [0, *at], [0.0, *seconds]))


def check_features(training: Training) -> None:
    """ValueError if the run's features cannot look at its pictures, which would else be said at the end."""
    levels = training.splits.info.levels
    feature_network(training.run.features).look(scores.pictures_of(training.splits.held_out, 1, levels))


def learning_curve(training: Training, say: Callable[[str], None], n: int = POINT_SAMPLES) -> dict[str, Any]:
    """How every point is measured, "floor", and "points": [{"step", "seconds", "frechet"}, ...]."""
    run, splits, levels = training.run, training.splits, training.splits.info.levels or 256
    network = feature_network(run.features)
    held_out = scores.pictures_of(splits.held_out, REFERENCE_ROWS, levels)
    against = scores.reference(held_out, f"held-out part of {run.data.name}, {len(held_out):,} rows", network)
    ((real, _),) = scores.real_pictures(splits.train, splits.info, n)
    floor = scores.floor(real, against, network)
    points = []
    for folder in sorted((training.out / "ema").glob("step-*")):
        samples = generate(_model_of(training, folder), n)
        found = scores.score(samples.images(), against, network)
        step = int(folder.name.removeprefix("step-"))
        seconds = round(seconds_at(training.out / "log.jsonl", step), 1)
        points.append({"step": step, "seconds": seconds, "frechet": found["frechet"]})
        say(f"after {seconds / 60:.0f} minutes, step {step}: {network.title} {found['frechet']:.3f}, n = {n:,}")
    return {
        "title": network.title,
        "features": network.name,
        "features_weights": network.weights,
        "n": n,
        "reference": against.name,
        "sampling": {**asdict(run.sampling), "seed": 0},
        "ema": run.ema[0],
        "floor": floor["frechet"],
        "points": points,
    }


def _model_of(training: Training, snapshot: Path) -> Model:
    """The model of a snapshot's shortest average, which is the run's own."""
    tensors, _ = native.read_state(snapshot)
    length = f"{training.run.ema[0]}/"
    weights = {name.removeprefix(length): x.float() for name, x in tensors.items() if name.startswith(length)}
    net = copy.deepcopy(training.averaged)
    native.fill(net, weights, str(snapshot))
    return Model(training.config, net, "", training.run.precision)


def lines(curve: dict[str, Any]) -> list[str]:
    """The curve as Markdown: a table, and the floor."""
    rows = [f"| {p['seconds'] / 60:.0f} | {p['step']} | {p['frechet']:.3f} |" for p in curve["points"]]
    return [
        f"Learning curve: {curve['title']} of {curve['n']:,} samples against the {curve['reference']}; "
        f"as many real training pictures have {curve['floor']:.3f}. {scores.caution(curve['n'])}".strip(),
        "",
        f"| minutes | step | {curve['title']} |",
        "|---|---|---|",
        *rows,
    ]
