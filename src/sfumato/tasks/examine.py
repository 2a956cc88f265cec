"""Examine: everything that `sfumato evaluate` says of a model or of pictures, and how it was measured.

    Asked              how: n, seed, sampler, reference, features, ...
    examine(...)       Evaluation: the scores (JSON), and the pictures that a page shows

What a model is worth by its own values is `evaluate.measure`; here are added the scores by features beside the floor
of as many real pictures, the score by number of steps, and the nearest training pictures.  `records` are all scores
once more, each alone with everything that says how it was measured:

    name value error real better n reference features sampler steps grid seed guidance ema seconds sampling_seconds
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from sfumato import data
from sfumato.classifier import ZOO
from sfumato.guidance import Guide
from sfumato.metrics import EnergyDistance
from sfumato.model import Model
from sfumato.samplers.loop import grid_of
from sfumato.tasks import by_steps
from sfumato.tasks import scores as by_features
from sfumato.tasks.evaluate import (
    BOUND_ROWS,
    GAUSSIAN_ROWS,
    Nearest,
    Say,
    agreement_of,
    check_ode,
    lap,
    measure,
    nearest_of,
    summary,
)
from sfumato.tasks.features import feature_network
from sfumato.tasks.generate import ALONE, Samples, Share, generate
from sfumato.tasks.records import records
from sfumato.tasks.subjects import Against, Lens, Pictures, Subject, against, alike, labels_as, subject

BY_STEPS = (5, 10, 20, 50)  # numbers of steps that are scored unless others are asked for,
BY_STEPS_SAMPLES = 200  # by so many samples each
FEATURE_ROWS = 2_000  # training pictures whose features are searched for neighbours
UNSELECTED, CLOSEST, NEIGHBOURS = 8, 4, 3  # samples shown with neighbours: the first ones, the nearest ones; how many
SAMPLED = {"sampler": "--sampler", "steps": "--steps", "guide": "guidance", "ode": "--ode", "by_steps": "--by-steps"}
ODE_ROWS = 100  # held-out rows of the ODE's likelihood, where a row has at most
ODE_VALUES = 256  # so many values


@dataclass(frozen=True)
class Asked:
    """How subjects are examined; what is None is as the model, or its data, says."""

    n: int = 1000
    seed: int = 0
    sampler: str | None = None
    steps: int | None = None
    guide: Callable[[Model], Guide] | None = None
    ode: int | None = None
    ema: float | None = None
    reference: str = "test"
    features: str | None = None
    weights: str | None = None
    by_steps: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Neighbours:
    """The nearest training pictures of the shown samples: (S, K, H, W, C) and distances (S, K), nearest first."""

    by: str
    among: str
    pictures: np.ndarray
    distances: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """What was measured, ready for JSON, and what a page shows beside it.

    shown: numbers of the samples whose neighbours are shown, the first ones and then the nearest of all.
    """

    name: str
    scores: dict[str, Any]
    samples: Samples
    label_names: tuple[str, ...] = ()
    near: Nearest | None = None
    shown: Sequence[int] = ()
    neighbours: Sequence[Neighbours] = ()


# what is held against what --------------------------------------------------------------------------------------------


def reference_of(one: Subject, asked: Asked) -> Against | None:
    """The reference asked for; None for models of anything but pictures, which have none."""
    if isinstance(one, Pictures):
        return against(asked.reference, None)
    if one.config.kind == "picture":
        return against(asked.reference, one.config.trained_on)
    if asked.features is not None or asked.reference != "test":
        came = "--reference" if asked.features is None else "--features"
        raise ValueError(f"{came} is for pictures, and this model makes {one.config.kind}s; leave it out")
    return None


def lens_of(asked: Asked, held: Against | None) -> Lens | None:
    """The features asked for; else the zoo's classifier of the reference's data, if there is one that takes them."""
    if asked.weights is not None and asked.features is None:
        raise ValueError(f"--weights {asked.weights} came without --features; say whose they are")
    if held is None:
        return None
    if asked.features is not None:
        return Lens(feature_network(asked.features, asked.weights), held)
    if not held.data or not (ZOO / held.data / "config.json").is_file():
        return None
    network = feature_network(held.data)
    try:
        network.look(held.images[:1])
    except ValueError:  # the data were resized, and the classifier has its own size
        return None
    return Lens(network, held)


def check(subjects: Sequence[Subject], asked: Asked) -> None:
    """ValueError, before anything is measured, for what cannot be asked of these subjects."""
    models = [one for one in subjects if isinstance(one, Model)]
    if not models and (came := [flag for name, flag in SAMPLED.items() if getattr(asked, name) is not None]):
        raise ValueError(f"{came[0]} is for models, and only pictures came, which are made already; leave it out")
    for model in models:
        _ = model.config.trained_on  # what it is scored against, if it says so
        check_ode(model, asked.ode or 0)
        for steps in asked.by_steps or ():
            grid_of(model.config.sampling.grid, model.denoiser.schedule, steps)


# examining ------------------------------------------------------------------------------------------------------------


def examine_all(
    names: Sequence[str], asked: Asked, *, share: Share = ALONE, say: Say = lambda text: None
) -> list[Evaluation]:
    """Every subject against the same reference, which is of the first model's data unless it is another.

    In the processes that only help to sample the list is empty.  ValueError for what cannot be asked, before sampling.
    """
    if len(set(names)) < len(names):
        raise ValueError(f"{', '.join(names)} came; a subject is compared with others, each named once")
    subjects = [subject(name, asked.ema) for name in names]
    check(subjects, asked)
    held = reference_of(next((one for one in subjects if isinstance(one, Model)), subjects[0]), asked)
    for name, one in zip(names, subjects, strict=True):
        _fits(name, one, held)
    lens = lens_of(asked, held)
    found = []
    for name, one in zip(names, subjects, strict=True):
        say(name) if len(names) > 1 else None
        found.append(examine(name, one, asked, held, lens, share=share, say=say))
    return [one for one in found if one is not None]


def _fits(name: str, one: Subject, held: Against | None) -> None:
    """ValueError for a subject of another kind or size than the reference's."""
    if isinstance(one, Pictures):
        if held is None:
            raise ValueError(f"{name} is pictures, which cannot be compared with models of anything else")
        alike(one.images[:1], held.images, name, held.name)
    elif (one.config.kind == "picture") != (held is not None):
        raise ValueError(f"{name} makes {one.config.kind}s; only models of one kind can be compared")
    elif held is not None:
        channels, height, width = one.config.shape
        alike(np.zeros((1, height, width, channels), np.uint8), held.images, name, held.name)


def examine(
    name: str,
    one: Subject,
    asked: Asked,
    held: Against | None,
    lens: Lens | None,
    *,
    share: Share = ALONE,
    say: Say = lambda text: None,
) -> Evaluation | None:
    """One subject, examined; None in the processes that only help to sample.

    held, lens: `reference_of` and `lens_of`, which several subjects share.  What `check` refuses was refused before.
    """
    start = time.perf_counter()
    if isinstance(one, Pictures):
        assert held is not None
        found: Evaluation | None = _of_pictures(name, one, asked, held, lens, say) if share.is_main else None
    else:
        found = _of_model(name, one, asked, held, lens, share, say)
    if found is None:
        return None
    if held is not None:
        found = _with_features(found, held, lens, say)
    how = _how(found, held, lens, share)
    how["seconds"] = round(time.perf_counter() - start, 2)
    return replace(found, scores={**found.scores, "how": how, "records": records(found.scores, how)})


def _of_model(
    name: str,
    model: Model,
    asked: Asked,
    held: Against | None,
    lens: Lens | None,
    share: Share,
    say: Say,
) -> Evaluation | None:
    """The scores by values, and by number of steps; all that is sampled is sampled first."""
    way: dict[str, Any] = {"seed": asked.seed, "sampler": asked.sampler, "share": share}
    way["guidance"] = None if asked.guide is None else asked.guide(model)
    say(f"{asked.n} samples")
    samples = generate(model, asked.n, steps=asked.steps, **way)
    few, walks = min(asked.n, BY_STEPS_SAMPLES), {}
    if counts := _counts(model, samples, asked):
        say(f"{few} samples in each of {', '.join(map(str, counts))} steps")
        walks = {steps: generate(model, few, steps=steps, **way) for steps in counts}
    if not share.is_main:
        return None
    splits = data.load(model.config.trained_on)
    plain = model.config.gaussian and math.prod(model.config.shape) <= ODE_VALUES
    ode = (ODE_ROWS if plain else 0) if asked.ode is None else asked.ode
    scores, near = measure(model, splits, samples, ode=ode, say=say)
    if asked.ema is not None:
        scores["reference"]["ema"] = asked.ema
    if walks:
        say("the score by number of steps")
        with lap(scores["seconds"], "by_steps"):
            scores["by_steps"] = by_steps.by_features(walks, lens) if lens else by_steps.by_values(model, splits, walks)
    return Evaluation(name, scores, samples, model.config.label_names, near)


def _counts(model: Model, samples: Samples, asked: Asked) -> tuple[int, ...]:
    """The numbers of steps that are scored; none for samplers that take steps of their own."""
    if samples.settings["steps"] is None:
        return ()
    most = model.denoiser.schedule.steps or max(BY_STEPS)
    return tuple(s for s in BY_STEPS if s <= most) if asked.by_steps is None else asked.by_steps


def _of_pictures(name: str, pictures: Pictures, asked: Asked, held: Against, lens: Lens | None, say: Say) -> Evaluation:
    """The scores by values, 0..255, of pictures that nobody here made: the first n of them."""
    x = alike(pictures.images[: asked.n], held.images, pictures.name, held.name).transpose(0, 3, 1, 2)
    names = held.label_names or pictures.label_names
    every = labels_as(pictures, names)
    labels = None if every is None else every[: asked.n]
    real = held.images[:BOUND_ROWS].transpose(0, 3, 1, 2)
    seconds: dict[str, float] = {}
    scores: dict[str, Any] = {"sampling": {**pictures.settings, "n": len(x)}}
    near, train = None, None
    if held.train is not None and held.held_out is not None:
        train = held.train.transpose(0, 3, 1, 2)
        say("nearest training rows")
        with lap(seconds, "nearest"):
            near = nearest_of(x, train, held.held_out.transpose(0, 3, 1, 2))
        scores["nearest"] = summary(near)
    if (
        labels is not None
        and train is not None
        and held.train_labels is not None
        and not (lens and lens.network.classes)
    ):
        say("agreement with the labels")
        cut = len(train) * 4 // 5  # the judge is fitted to these and tried on the others
        rows = [
            {"x": torch.from_numpy(train[part]), "label": torch.from_numpy(held.train_labels[part])}
            for part in (slice(cut), slice(cut, None))
        ]
        with lap(seconds, "agreement"):
            scores["agreement"] = agreement_of(x, labels, *rows)
    say("energy distance to the reference")
    with lap(seconds, "energy"):
        metric = EnergyDistance(_unit(real))
        metric.update(_unit(x))
        scores["energy"] = {"value": metric.compute(), "n": min(len(x), GAUSSIAN_ROWS), "rows": len(real)}
    scores["reference"] = {"n": len(x), "threads": torch.get_num_threads(), "ema": pictures.settings.get("ema")}
    scores["seconds"] = seconds
    samples = Samples(x, labels, dict(scores["sampling"]), 0.0, "picture", 256)
    return Evaluation(name, scores, samples, names if labels is not None else (), near)


def _unit(x: np.ndarray) -> np.ndarray:
    return x[:GAUSSIAN_ROWS].astype(np.float32) / 127.5 - 1


def _with_features(found: Evaluation, held: Against, lens: Lens | None, say: Say) -> Evaluation:
    """The same with the scores by features, and with the nearest training pictures of some samples."""
    samples, scores = found.samples, dict(found.scores)
    images = alike(samples.images(), held.images, found.name, held.name)
    if lens is not None:
        network = lens.network
        say(f"scores by the features of {network.name}, against {held.name}")
        fits = network.classes == len(found.label_names)  # the labels are of the classes that it knows
        with lap(scores["seconds"], "by_features"):
            scores["by_features"] = by_features.score(images, lens.seen, network, samples.labels if fits else None)
        if held.real is not None:
            real = held.real(len(images))
            say(f"the same of {len(real)} real {held.real_name} pictures")
            with lap(scores["seconds"], "floor"):
                scores["by_features"]["floor"] = by_features.floor(real, lens.seen, network)
            scores["by_features"]["floor"]["of"] = f"{held.real_name} pictures"
    if held.train is None:
        return replace(found, scores=scores)
    first = range(min(UNSELECTED, len(images)))
    closest = [] if found.near is None else np.argsort(found.near.samples)[:CLOSEST].tolist()
    shown = [*first, *(i for i in closest if i not in first)]
    rows = [
        _neighbours("pixels, 0 to 255", images[shown], held.train, lambda x: x.reshape(len(x), -1).astype(np.float32))
    ]
    if lens is not None:
        look, some = lens.network.look, held.train[:FEATURE_ROWS]
        rows.append(_neighbours(f"features of {lens.network.name}", images[shown], some, lambda x: look(x).features))
    return replace(found, scores=scores, shown=shown, neighbours=rows)


def _neighbours(by: str, images: np.ndarray, train: np.ndarray, look: Callable[[np.ndarray], np.ndarray]) -> Neighbours:
    from scipy.spatial.distance import cdist

    distances = cdist(look(images), look(train))
    nearest = np.argsort(distances, axis=1)[:, :NEIGHBOURS]
    among = f"the first {len(train):,} training pictures"
    return Neighbours(by, among, train[nearest], np.take_along_axis(distances, nearest, axis=1))


# what is stored -------------------------------------------------------------------------------------------------------


def _how(found: Evaluation, held: Against | None, lens: Lens | None, share: Share) -> dict[str, Any]:
    """How the samples were made and measured."""
    made, reference = found.samples.settings, found.scores["reference"]
    return {
        "subject": found.name,
        "n": len(found.samples.x),
        "reference": held.name if held is not None else f"held-out rows: {reference.get('held_out')}",
        **{name: made.get(name) for name in ("sampler", "steps", "grid", "seed", "guidance")},
        "ema": reference.get("ema"),
        "features": lens.network.name if lens else None,
        "training_step": reference.get("training_step"),
        "sampling_seconds": round(found.samples.seconds, 2),
        "threads": torch.get_num_threads(),
        "processes": share.world,
        "sfumato": version("sfumato"),
        "torch": torch.__version__,
    }
