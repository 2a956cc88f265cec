"""Samples of a trained model at one setting, their score and what they cost; remembered, so that a stopped run goes on.

    bench     the model, its data, the features by which pictures are compared, the reference and its floor
    setting   sampler, steps, grid, guidance, n
    measured  (bench, setting) -> scores, evaluations, seconds, some of the pictures

A score of n samples means little by itself: the distance of two sets of n and m pictures of one distribution is not 0.
So every score stands beside the floor, the same score of as many real training pictures against the same reference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.data import Splits
from sfumato.denoiser import NetworkDenoiser
from sfumato.experiments.report import Request, remembered
from sfumato.experiments.trained import Trained, trained
from sfumato.guidance.guide import Guide
from sfumato.metrics.features import FeatureNetwork
from sfumato.model import Model
from sfumato.tasks.features import feature_network
from sfumato.tasks.generate import generate
from sfumato.tasks.scores import SMALL, Reference, floor, pictures_of, real_pictures, reference, score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REFERENCE_ROWS = 10_000  # held-out rows, evenly spread over them, that samples are compared with
FLOOR_ROWS = 1_000  # training rows of the floor
SETS = 5  # at most so many disjoint sets of real pictures, whose scores differ by chance alone
SHOWN = 10  # pictures that are usually kept of a setting: the first, with classes in turn one of each
ERROR = "frechet_standard_error"
BLOCKS = 5  # of a jackknife
# data set -> the features its pictures are compared by: the zoo's classifier of it, where there is one
FEATURES = {"mnist": "mnist", "cifar10": "cifar10", "emoji": "emoji"}
OTHER_FEATURES = "efficientnet-lite0"


@dataclass(frozen=True)
class Setting:
    """How n samples are made, and how many of their pictures are kept; None is as the model's card says."""

    sampler: str
    steps: int
    grid: str | None = None
    guidance: float | Guide | None = None
    n: int = 1000
    kept: int = SHOWN
    reuse: int = 1

    def document(self) -> dict[str, Any]:
        """The setting as JSON."""
        told = self.guidance.document() if isinstance(self.guidance, Guide) else self.guidance
        way = {"sampler": self.sampler, "steps": self.steps, "grid": self.grid, "guidance": told, "n": self.n}
        return way if self.reuse == 1 else {**way, "reuse": self.reuse}


@dataclass(frozen=True)
class Bench:
    """What every setting of an experiment has in common.  floor: the score of FLOOR_ROWS real training pictures."""

    subject: Trained
    network: FeatureNetwork
    reference: Reference
    floor: dict[str, Any]

    @property
    def model(self) -> Model:
        return self.subject.model

    @property
    def splits(self) -> Splits:
        return self.subject.splits

    def floors(self, n: int) -> list[dict[str, Any]]:
        """`floors` of n pictures, which are higher where n is smaller."""
        return floors(self.splits, n, self.reference, self.network)

    @property
    def key(self) -> dict[str, Any]:
        """What every remembered block depends on: weights, data, features, and the reference as they see it."""
        seen = hashlib.sha256(np.ascontiguousarray(self.reference.seen.features).tobytes()).hexdigest()[:16]
        by = {"features": self.network.name, "features_weights": self.network.weights}
        return {**self.subject.key, **by, "reference": seen}

    @property
    def facts(self) -> dict[str, Any]:
        """What every score of a page rests on, for its JSON."""
        config = self.model.config
        return {
            "weights": self.subject.digest,
            "data": dict(config.data),
            "ema": config.training.get("ema"),
            "features": self.network.name,
            "features_title": self.network.title,
            "features_weights": self.network.weights,
            "reference": self.reference.name,
            "reference_n": len(self.reference.images),
            "floor": {name: self.floor[name] for name in ("n", "frechet", "precision", "recall")},
            "usual_sampling": asdict(config.sampling),
        }

    @property
    def basis(self) -> list[str]:
        """Lines for a page: model, data, features, reference, floor."""
        real = self.floor
        return [
            *self.subject.basis,
            f"{self.network.title} by the features of `{self.network.name}`, weights sha256 "
            f"`{self.network.weights or 'unknown'}`, against the {self.reference.name}",
            f"floor: {real['n']:,} real training pictures against the same reference have {self.network.title} "
            f"{real['frechet']:.3g}, kernel distance {real['kernel']['value']:.2g}, precision {real['precision']:.3f}, "
            f"recall {real['recall']:.3f}",
            *(
                [
                    f"the features were learned from {self.network.learned}, the floor's pictures among them, of which "
                    "they say too much good"
                ]
                if self.network.learned
                else []
            ),
        ]


def bench(request: Request, features: str | FeatureNetwork | None = None) -> Bench:
    """The request's MODEL on its data; features: a name of tasks.features, FEATURES' for the data set if None."""
    subject = trained(request)
    data = subject.model.config.trained_on.name
    chosen = features or FEATURES.get(data, OTHER_FEATURES)
    network = feature_network(chosen) if isinstance(chosen, str) else chosen
    rows = min(len(subject.splits.held_out), REFERENCE_ROWS)
    request.say(f"the features of {rows:,} held-out pictures by {network.name}")
    held_out = pictures_of(subject.splits.held_out, rows, subject.splits.info.levels)
    against = reference(held_out, f"held-out rows of {data}, {rows:,}", network)
    (real,) = floors(subject.splits, FLOOR_ROWS, against, network, sets=1)
    return Bench(subject, network, against, real)


def floors(
    splits: Splits, n: int, against: Reference, network: FeatureNetwork, sets: int = SETS
) -> list[dict[str, Any]]:
    """The scores of at most so many disjoint sets of n real training pictures.

    They differ by chance alone, and so may cells by as much.  The sets have their labels in turn, as samples have: of
    rows taken as they come the counts of the classes differ, and that is more than a good model's whole distance.
    """
    names, real = splits.info.label_names, real_pictures(splits.train, splits.info, n, sets)
    return [floor(images, against, network, network.own_labels(labels, names)) for images, labels in real]


def by_chance(real: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Mean and standard deviation of the Frechet distances of `floors`; 0 where rows suffice for one set only."""
    found = [scores["frechet"] for scores in real]
    return float(np.mean(found)), float(np.std(found, ddof=1)) if len(found) > 1 else 0.0


@final
class Counter:
    """How many rows networks were asked for."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, net: nn.Module, given: tuple[Any, ...]) -> None:
        self.rows += len(given[0])


@contextmanager
def counting(*nets: nn.Module) -> Iterator[Counter]:
    """Counts the rows that these networks are asked for, whoever asks them."""
    counter = Counter()
    hooks = [net.register_forward_pre_hook(counter) for net in nets]
    try:
        yield counter
    finally:
        for hook in hooks:
            hook.remove()


def measured(request: Request, bench: Bench, setting: Setting, name: str) -> dict[str, Any]:
    """The score of a setting's samples, from the block `name` of a stopped run if that was of the same setting.

    That of tasks.scores.score, and "frechet_standard_error" (`standard_error`), "seconds", "milliseconds_per_sample",
    "evaluations" (rows a sample that the network, and a weaker one that guides it, were asked for; the rows of guidance
    count, a classifier's do not), "sampling" (how they were made), "images" (uint8 (kept, H, W, C), the first samples;
    the only entry that is no JSON).
    """
    key = {**bench.key, **setting.document(), "kept": setting.kept}
    found = remembered(request, key, name, lambda: _measure(request, bench, setting))
    scores = _read(found["scores"])
    request.say(
        f"{name}: {scores['title']} {scores['frechet']:.3g}, {how_many(setting.n)}, "
        f"{scores['evaluations']:g} evaluations, {scores['milliseconds_per_sample']:.1f} ms a sample"
    )
    return {**scores, "images": found["images"].numpy()}


def _measure(request: Request, bench: Bench, setting: Setting) -> dict[str, Tensor]:
    with counting(*_networks(bench.model, setting.guidance)) as counter:
        samples = generate(
            bench.model,
            setting.n,
            sampler=setting.sampler,
            steps=setting.steps,
            grid=setting.grid,
            seed=request.seed,
            guidance=setting.guidance,
            reuse=setting.reuse,
        )
    how = {"seed": request.seed, "ema": bench.model.config.training.get("ema"), "threads": torch.get_num_threads()}
    images = samples.images()
    labels = bench.network.own_labels(samples.labels, bench.model.config.label_names)
    scores = score(images, bench.reference, bench.network, labels)
    scores |= {
        ERROR: standard_error(bench, images),
        "seconds": samples.seconds,
        "milliseconds_per_sample": 1000 * samples.seconds / setting.n,
        "evaluations": counter.rows / setting.n,
        "sampling": {**setting.document(), **how},
    }
    return {"scores": _written(scores), "images": torch.from_numpy(images[: setting.kept].copy())}


def standard_error(bench: Bench, images: np.ndarray) -> float:
    """Of the Frechet distance of these samples: how much it would differ for others of the same model, by jackknife,

        sqrt((G - 1)/G sum_k (d_k - mean d)^2),    d_k the distance without the k-th of G blocks of neighbours

    so that each block has its classes in turn.  Of few samples it is a tenth to a quarter too large.  A few pictures
    that miss their class are most of it.
    """
    features = bench.network.look(images).features
    frechet, *_ = bench.reference.metrics
    found = []
    for block in np.array_split(np.arange(len(images)), BLOCKS):
        frechet.reset()
        frechet.update(np.delete(features, block, 0))
        found.append(frechet.compute())
    return float(np.sqrt((BLOCKS - 1) * np.var(found)))


def _networks(model: Model, guidance: float | Guide | None) -> list[nn.Module]:
    """The networks whose rows are evaluations; ValueError for a weaker one that is no network and so is not counted."""
    if not isinstance(guidance, Guide) or guidance.weak is None:
        return [model.net]
    weak = guidance.weak.net if isinstance(guidance.weak, NetworkDenoiser) else None
    if not isinstance(weak, nn.Module):
        raise ValueError(
            f"evaluations of the weaker {type(guidance.weak).__name__} cannot be counted; give a model's denoiser"
        )
    return [model.net, weak]


def _written(scores: dict[str, Any]) -> Tensor:
    """JSON as bytes, (N,) uint8, for a block of tensors."""
    return torch.frombuffer(bytearray(json.dumps(scores).encode()), dtype=torch.uint8)


def _read(written: Tensor) -> dict[str, Any]:
    found = json.loads(written.numpy().tobytes())
    assert isinstance(found, dict)
    return found


def frechet(found: Mapping[tuple[str, int], Mapping[str, Any]]) -> dict[tuple[str, int], float]:
    """The Frechet distances of a table of scores."""
    return {cell: scores["frechet"] for cell, scores in found.items()}


def errors(found: Mapping[tuple[str, int], Mapping[str, Any]]) -> dict[tuple[str, int], float]:
    """Their standard errors."""
    return {cell: scores[ERROR] for cell, scores in found.items()}


def in_codec_units(images: Tensor) -> Tensor:
    """uint8 (..., H, W, C) -> (..., C, H, W) in [-1, 1], as `figures` draws pictures."""
    return images.movedim(-1, -3).float() / 127.5 - 1


def heat(
    axis: Axes, values: Sequence[Sequence[float | None]], rows: Sequence[str], columns: Sequence[str], title: str
) -> None:
    """A table with its numbers in it, coloured by their logarithms; a dash where there is None."""
    shown = np.array([[np.nan if x is None else x for x in row] for row in values], dtype=np.float64)
    logs = np.log(np.maximum(shown, 1e-9))
    axis.imshow(logs, aspect="auto", cmap="viridis_r")
    middle = (np.nanmin(logs) + np.nanmax(logs)) / 2
    for (i, j), x in np.ndenumerate(shown):
        colour = "black" if np.isnan(x) or logs[i, j] < middle else "white"
        axis.text(j, i, "-" if np.isnan(x) else f"{x:.3g}", ha="center", va="center", color=colour, fontsize=8)
    axis.set_xticks(range(len(columns)), columns, fontsize=8)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.set_title(title, fontsize=10)


def how_many(n: int) -> str:
    """n as it stands beside a score."""
    return f"n = {n:,}" + (f" (fewer than {SMALL:,})" if n < SMALL else "")
