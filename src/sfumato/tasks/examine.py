"""Examine: everything that `sfumato evaluate` says of models and of pictures, and how it was measured.

    examine_all(names, Asked(...))   an Evaluation each: the scores (JSON), and the pictures that a page shows

All that is sampled is sampled first, in as many processes as there are, and scored in one of them afterwards: what
fails there leaves nobody waiting.

What a model is worth by its own values is `evaluate.measure`; here are added the scores by features beside the floor
of as many real pictures, the score by number of steps, and the nearest training pictures.  `records` are all scores
once more, each alone with everything that says how it was measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from sfumato import data
from sfumato.guidance import Guide
from sfumato.metrics import EnergyDistance
from sfumato.model import Model
from sfumato.processes import ALONE, Share
from sfumato.tasks import by_steps
from sfumato.tasks import scores as by_features
from sfumato.tasks.asked import Asked, settled
from sfumato.tasks.evaluate import (
    BOUND_ROWS,
    GAUSSIAN_ROWS,
    Nearest,
    Say,
    agreement_of,
    lap,
    measure,
    nearest_of,
    summary,
)
from sfumato.tasks.generate import Samples, generate
from sfumato.tasks.records import records
from sfumato.tasks.subjects import PIXELS, Against, Lens, Pictures, Subject, alike, labels_as, scattered

BY_STEPS = (5, 10, 20, 50)  # numbers of steps that are scored unless others are asked for,
BY_STEPS_SAMPLES = 200  # by so many samples each
FEATURE_ROWS = 2_000  # training pictures whose features are searched for neighbours
UNSELECTED, CLOSEST, NEIGHBOURS = 8, 4, 3  # samples shown with neighbours: the first ones, the nearest ones; how many
ODE_ROWS = 100  # held-out rows of the ODE's likelihood, where a row has at most
ODE_VALUES = 256  # so many values
UNIT = "pixels, -1 to 1"  # of the energy distance
JUDGED = 5  # every so many-th training picture tries the judge that the others are fitted to


@dataclass(frozen=True)
class Made:
    """What is scored of a subject: its samples, some more by number of steps, and the wall-clock of all of them."""

    samples: Samples
    walks: Mapping[int, Samples]
    seconds: float


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


def examine_all(
    names: Sequence[str], asked: Asked, *, share: Share = ALONE, say: Say = lambda text: None
) -> list[Evaluation]:
    """Every subject against the same reference, which is of the first model's data unless it is another.

    In the processes that only help to sample the list is empty.  ValueError for what cannot be asked, before sampling.
    """
    plan = settled(names, asked)

    def whose(name: str) -> Say:
        return say if len(names) == 1 else lambda text: say(f"{name}: {text}")

    made = {
        name: chosen(one, asked, plan.held)
        if isinstance(one, Pictures)
        else sampled(one, plan.guides[name], asked, share, whose(name))
        for name, one in plan.subjects.items()
    }
    if not share.is_main:
        return []
    return [
        examine(name, one, made[name], asked, plan.held, plan.lens, share=share, say=whose(name))
        for name, one in plan.subjects.items()
    ]


# what is scored -------------------------------------------------------------------------------------------------------


def sampled(model: Model, guide: Guide, asked: Asked, share: Share = ALONE, say: Say = lambda text: None) -> Made:
    """The samples of a model, and fewer of them in each number of steps that is scored."""
    start = time.perf_counter()
    way: dict[str, Any] = {"seed": asked.seed, "sampler": asked.sampler, "share": share, "guidance": guide}
    say(f"{asked.n} samples")
    samples = generate(model, asked.n, steps=asked.steps, **way)
    few, walks = min(asked.n, BY_STEPS_SAMPLES), {}
    if counts := _counts(model, samples, asked):
        say(f"{few} samples in each of {', '.join(map(str, counts))} steps")
        walks = {steps: generate(model, few, steps=steps, **way) for steps in counts}
    return Made(samples, walks, time.perf_counter() - start)


def _counts(model: Model, samples: Samples, asked: Asked) -> tuple[int, ...]:
    """The numbers of steps that are scored; none for samplers that take steps of their own."""
    if samples.settings["steps"] is None:
        return ()
    most = model.denoiser.schedule.steps or max(BY_STEPS)
    return tuple(s for s in BY_STEPS if s <= most) if asked.by_steps is None else asked.by_steps


def chosen(pictures: Pictures, asked: Asked, held: Against | None) -> Made:
    """n pictures that nobody here made, evenly spread over all of them, in the reference's colours and classes."""
    assert held is not None
    index = scattered(every := len(pictures.images), asked.n)
    x = alike(pictures.images[index], held.images, pictures.name, held.name).transpose(0, 3, 1, 2)
    labels = labels_as(pictures, held.label_names or pictures.label_names)
    settings = {**pictures.settings, "n": len(x)}
    if len(x) < every:
        settings["chosen"] = f"{len(x):,} of {every:,}, evenly spread"
    return Made(Samples(x, None if labels is None else labels[index], settings, 0.0, "picture", 256), {}, 0.0)


# examining ------------------------------------------------------------------------------------------------------------


def examine(
    name: str,
    one: Subject,
    made: Made,
    asked: Asked,
    held: Against | None,
    lens: Lens | None,
    *,
    share: Share = ALONE,
    say: Say = lambda text: None,
) -> Evaluation:
    """One subject, examined by what was made; what `settled` refuses was refused before."""
    start = time.perf_counter()
    if isinstance(one, Pictures):
        assert held is not None
        found = _of_pictures(name, one, made.samples, held, lens, say)
    else:
        found = _of_model(name, one, made, asked, lens, say)
    if held is not None:
        images = alike(found.samples.images(), held.images, name, held.name)
        with lap(found.scores["seconds"], "energy"):
            found.scores["energy"] = energy_of(images, held, say)
        found = _with_features(found, images, held, lens, say)
    how = _how(found, held, lens, share)
    how["seconds"] = round(made.seconds + time.perf_counter() - start, 2)
    return replace(found, scores={**found.scores, "how": how, "records": records(found.scores, how)})


def _of_model(name: str, model: Model, made: Made, asked: Asked, lens: Lens | None, say: Say) -> Evaluation:
    """The scores by values, and by number of steps."""
    splits = data.load(model.config.trained_on)
    plain = model.config.gaussian and math.prod(model.config.shape) <= ODE_VALUES
    ode = (ODE_ROWS if plain else 0) if asked.ode is None else asked.ode
    judged = _judged(lens, made.samples.labels, model.config.label_names)
    scores, near = measure(model, splits, made.samples, ode=ode, judged=judged, say=say)
    if asked.ema is not None:
        scores["reference"]["ema"] = asked.ema
    if walks := made.walks:
        say("the score by number of steps")
        with lap(scores["seconds"], "by_steps"):
            scores["by_steps"] = by_steps.by_features(walks, lens) if lens else by_steps.by_values(model, splits, walks)
    return Evaluation(name, scores, made.samples, model.config.label_names, near)


def _of_pictures(
    name: str, pictures: Pictures, samples: Samples, held: Against, lens: Lens | None, say: Say
) -> Evaluation:
    """The scores by values, 0..255, of pictures that nobody here made."""
    x, labels = samples.x, samples.labels
    names = (held.label_names or pictures.label_names) if labels is not None else ()
    seconds: dict[str, float] = {}
    scores: dict[str, Any] = {"sampling": dict(samples.settings)}
    if "chosen" in samples.settings:
        say(samples.settings["chosen"])
    near = None
    if held.train is not None and held.held_out is not None:
        train = held.train.transpose(0, 3, 1, 2)
        say("nearest training rows")
        with lap(seconds, "nearest"):
            near = nearest_of(x, train, held.held_out.transpose(0, 3, 1, 2))
        scores["nearest"] = {**summary(near), "unit": PIXELS}
        told = held.train_labels
        if labels is not None and told is not None and len(np.unique(told)) > 1 and not _judged(lens, labels, names):
            say("agreement with the labels")
            tried = np.arange(len(train)) % JUDGED == JUDGED - 1
            rows = [
                {"x": torch.from_numpy(train[part]), "label": torch.from_numpy(told[part])} for part in (~tried, tried)
            ]
            with lap(seconds, "agreement"):
                scores["agreement"] = agreement_of(x, labels, *rows)
    scores["reference"] = {"n": len(x), "threads": torch.get_num_threads(), "ema": pictures.settings.get("ema")}
    scores["seconds"] = seconds
    return Evaluation(name, scores, samples, names, near)


def _judged(lens: Lens | None, labels: np.ndarray | None, names: tuple[str, ...]) -> bool:
    """Whether the feature network is a classifier of these very labels."""
    return lens is not None and lens.network.own_labels(labels, names) is not None


def energy_of(images: np.ndarray, held: Against, say: Say) -> dict[str, Any]:
    """The energy distance of pictures (N, H, W, C) to the reference, beside that of as many real ones of its source."""
    say(f"energy distance to {held.name}")
    few = images[scattered(len(images), GAUSSIAN_ROWS)]
    rows = held.images[scattered(len(held.images), BOUND_ROWS)]
    metric, found = EnergyDistance(_unit(rows)), []
    others = [] if held.real is None else [held.real(len(few))[0]]
    for x in (few, *others):
        metric.reset()
        metric.update(_unit(x))
        found.append(metric.compute())
    part = "" if len(rows) == len(held.images) else f", {len(rows):,} of them evenly spread"
    about = {"n": len(few), "rows": len(rows), "reference": held.name + part, "unit": UNIT}
    return {"value": found[0], **about, **({"real": found[1], "real_n": len(others[0])} if others else {})}


def _unit(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) / 127.5 - 1


def _with_features(found: Evaluation, images: np.ndarray, held: Against, lens: Lens | None, say: Say) -> Evaluation:
    """The same with the scores by features, and with the nearest training pictures of some samples."""
    samples, scores = found.samples, dict(found.scores)
    if lens is not None:
        network = lens.network
        say(f"scores by the features of {network.name}, against {held.name}")
        with lap(scores["seconds"], "by_features"):
            labels = network.own_labels(samples.labels, found.label_names)
            scores["by_features"] = by_features.score(images, lens.seen, network, labels)
        if held.real is not None:
            real, real_labels = held.real(len(images))
            say(f"the same of {len(real)} real {held.real_name} pictures")
            with lap(scores["seconds"], "floor"):
                labels = network.own_labels(real_labels, held.label_names)
                floor = by_features.floor(real, lens.seen, network, labels)
            scores["by_features"]["floor"] = {**floor, "of": f"{held.real_name} pictures"}
    if held.train is None:
        return replace(found, scores=scores)
    first = range(min(UNSELECTED, len(images)))
    closest = [] if found.near is None else np.argsort(found.near.samples)[:CLOSEST].tolist()
    shown = [*first, *(i for i in closest if i not in first)]
    rows = [_neighbours(PIXELS, images[shown], held.train, lambda x: x.reshape(len(x), -1).astype(np.float32))]
    if lens is not None:
        look, some = lens.network.look, held.train[scattered(len(held.train), FEATURE_ROWS)]
        rows.append(_neighbours(f"features of {lens.network.name}", images[shown], some, lambda x: look(x).features))
    return replace(found, scores=scores, shown=shown, neighbours=rows)


def _neighbours(by: str, images: np.ndarray, train: np.ndarray, look: Callable[[np.ndarray], np.ndarray]) -> Neighbours:
    from scipy.spatial.distance import cdist

    distances = cdist(look(images), look(train))
    nearest = np.argsort(distances, axis=1)[:, :NEIGHBOURS]
    among = f"{len(train):,} training pictures, evenly spread"
    return Neighbours(by, among, train[nearest], np.take_along_axis(distances, nearest, axis=1))


# what is stored -------------------------------------------------------------------------------------------------------


def _how(found: Evaluation, held: Against | None, lens: Lens | None, share: Share) -> dict[str, Any]:
    """How the samples were made and measured."""
    made, reference = found.samples.settings, found.scores["reference"]
    return {
        "subject": found.name,
        "n": len(found.samples.x),
        "chosen": made.get("chosen"),
        "reference": held.name if held is not None else f"held-out rows: {reference.get('held_out')}",
        "real_n": found.scores.get("by_features", {}).get("floor", {}).get("n"),
        **{name: made.get(name) for name in ("sampler", "steps", "grid", "seed", "guidance")},
        "ema": reference.get("ema"),
        "features": lens.network.name if lens else None,
        "weights": (lens.network.weights or None) if lens else None,
        "features_learned": (lens.network.learned or None) if lens else None,
        "training_step": reference.get("training_step"),
        "sampling_seconds": round(found.samples.seconds, 2) or None,  # of pictures that nobody here made
        "threads": torch.get_num_threads(),
        "processes": share.world,
        "sfumato": version("sfumato"),
        "torch": torch.__version__,
    }
