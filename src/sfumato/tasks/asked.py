"""What is asked of an evaluation, and what cannot be: said in one line before anything is sampled.

    Asked                   n, seed, sampler, reference, features, ...
    settled(names, asked)   Plan: the subjects, the guidance of each model, and what all of them are held against

Of every model the first step of one row is tried, so that what its sampler, its steps or its guidance refuse is said of
the last subject before the first one is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sfumato.classifier import ZOO
from sfumato.guidance import Guide
from sfumato.model import Model
from sfumato.options import split
from sfumato.samplers import SAMPLERS
from sfumato.samplers.loop import grid_of
from sfumato.tasks.evaluate import check_ode
from sfumato.tasks.features import feature_network
from sfumato.tasks.subjects import LEAST, Against, Lens, Pictures, Subject, against, alike, means_pictures, subject

LEAST_REFERENCE = 6  # of a reference seen by features: density looks for the fifth neighbour of each
SAMPLED = {"sampler": "--sampler", "steps": "--steps", "guide": "guidance", "ode": "--ode", "by_steps": "--by-steps"}


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
class Plan:
    """The subjects by name, the guidance of those that are models, and the reference and features of all of them."""

    subjects: Mapping[str, Subject]
    guides: Mapping[str, Guide]
    held: Against | None
    lens: Lens | None


def settled(names: Sequence[str], asked: Asked) -> Plan:
    """What is asked, with all that it needs loaded; the reference is of the first model's data unless it is another.

    ValueError for what cannot be asked of these subjects.
    """
    if len(set(names)) < len(names):
        raise ValueError(f"{', '.join(names)} came; a subject is compared with others, each named once")
    found = {name: subject(name, asked.ema) for name in names if not means_pictures(name)}
    models = {name: one for name, one in found.items() if isinstance(one, Model)}
    if not models and (came := [flag for name, flag in SAMPLED.items() if getattr(asked, name) is not None]):
        raise ValueError(f"{came[0]} is for models, and only pictures came, which are made already; leave it out")
    guides = {name: _checked(name, model, asked) for name, model in models.items()}
    own = next((model.config.trained_on for model in models.values()), None)
    subjects = {name: models.get(name) or subject(name, asked.ema, own) for name in names}
    held = reference_of(next(iter(models.values()), subjects[names[0]]), asked)
    for name, one in subjects.items():
        _fits(name, one, held)
    lens = lens_of(asked, held)
    if lens is not None:
        _enough(subjects, asked, lens.held)
    return Plan(subjects, guides, held, lens)


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
        network = feature_network(asked.features, asked.weights)
        network.look(held.images[:1])  # it may be of another size
        return Lens(network, held)
    if not held.data or not (ZOO / held.data / "config.json").is_file():
        return None
    network = feature_network(held.data)
    try:
        network.look(held.images[:1])
    except ValueError:  # the data were resized, and the classifier has its own size
        return None
    return Lens(network, held)


# what is refused ------------------------------------------------------------------------------------------------------


def _checked(name: str, model: Model, asked: Asked) -> Guide:
    """The guidance of a model of which all this can be asked; ValueError names the model."""
    try:
        _ = model.config.trained_on  # what it is scored against, if it says so
        check_ode(model, asked.ode or 0)
        sampler = asked.sampler or model.config.sampling.sampler
        row = SAMPLERS.get(split(sampler)[0])
        if asked.by_steps and row is not None and row.calls is None:
            raise ValueError(f"--by-steps came, and sampler {sampler} chooses its own steps; leave one of them out")
        for steps in asked.by_steps or ():
            grid_of(model.config.sampling.grid, model.denoiser.schedule, steps)
        guide = model.guide(None if asked.guide is None else asked.guide(model))
        labels = model.labels(asked.n)
        next(model.trajectory(range(1), labels, asked.seed, asked.sampler, asked.steps, guidance=guide))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return guide


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


def _enough(subjects: Mapping[str, Subject], asked: Asked, held: Against) -> None:
    """ValueError for fewer pictures than scores by features can be measured of."""
    need = "and scores by features need"
    for name, one in subjects.items():
        n = min(asked.n, len(one.images)) if isinstance(one, Pictures) else asked.n
        if n < LEAST:
            raise ValueError(f"{name}: {n} samples came, {need} {LEAST}; give -n {LEAST} or more")
    if (n := len(held.images)) < LEAST_REFERENCE:
        raise ValueError(
            f"--reference {asked.reference}: {n} pictures came, {need} {LEAST_REFERENCE}; take a larger one"
        )
