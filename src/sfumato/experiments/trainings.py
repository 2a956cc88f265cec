"""Small trainings that an experiment makes itself, and one score for all that come out of them.

A training lies under OUT/unfinished until the report is written; a stopped one goes on.  Scored are samples in data
units, against the digits' held-out rows:

    agreement   the share that a classifier, fitted to the training rows, reads as the asked-for label
    energy      energy distance to the held-out rows, in codec units
    nearest     the median distance to the nearest training row, which for a model that learns by heart is small

Beside them stand the same numbers of real training rows, of held-out rows, and of one Gaussian a class, the best that a
denoiser linear in x_t could do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sfumato import data
from sfumato.codecs import Codec, PixelCodec
from sfumato.experiments.report import UNFINISHED, Request
from sfumato.metrics import EnergyDistance, LabelAgreement, NearestNeighbour, fit_judge
from sfumato.model import Model
from sfumato.tasks.gaussian import fit
from sfumato.testbed import GaussianMixture
from sfumato.train import Run, Training, train

SAVE_EVERY = 100  # steps
SCORES = ("agreement", "energy", "nearest")

References = dict[str, dict[str, float | None]]  # whose -> SCORES, None where a score says nothing


def trained_here(request: Request, name: str, plan: Run) -> Model:
    """The model of a Run, averaged weights; the training goes on where it was stopped."""
    told = hashlib.sha256(json.dumps(plan.document(), sort_keys=True).encode()).hexdigest()[:12]
    training = Training(plan, request.out / UNFINISHED / f"{name}-{told}", None, request.say)
    for step in train(training):
        if step.number % SAVE_EVERY == 0 or step.number == plan.steps:
            training.save()
            request.say(f"training {name}: step {step.number} of {plan.steps}, loss {step.loss:.4f}")
    return training.model()


@dataclass(frozen=True)
class Judged:
    """Scores of samples of labelled pictures, data units, against the rows of some data."""

    splits: data.Splits
    codec: Codec

    @cached_property
    def train(self) -> dict[str, np.ndarray]:
        return _every(self.splits.train)

    @cached_property
    def held_out(self) -> dict[str, np.ndarray]:
        return _every(self.splits.held_out)

    @cached_property
    def judge(self) -> LabelAgreement:
        return LabelAgreement(fit_judge(self.train["x"], self.train["label"]))

    @cached_property
    def distance(self) -> EnergyDistance:
        return EnergyDistance(self._encoded(self.held_out["x"]).numpy())

    @cached_property
    def near(self) -> NearestNeighbour:
        return NearestNeighbour(self.train["x"])

    @cached_property
    def gaussians(self) -> list[GaussianMixture]:
        """One Gaussian a class, of the encoded training rows."""
        x, labels = self._encoded(self.train["x"]), torch.from_numpy(self.train["label"])
        return [fit(x, labels == label) for label in range(len(self.splits.info.label_names))]

    def encoded_held_out(self, n: int) -> tuple[Tensor, Tensor]:
        """The first held-out rows in codec units (n, C, H, W), and their labels (n,)."""
        return self._encoded(self.held_out["x"][:n]), torch.from_numpy(self.held_out["label"][:n])

    def _encoded(self, x: np.ndarray) -> Tensor:
        return self.codec.encode(torch.from_numpy(x))

    def __call__(self, x: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """SCORES of samples x (N, ...), data units, of the labels that were asked for (N,)."""
        for metric in (self.judge, self.distance, self.near):
            metric.reset()
        self.judge.update(x, labels)
        self.distance.update(self._encoded(x).numpy())
        self.near.update(x)
        values = (self.judge.compute(), self.distance.compute(), float(np.median(self.near.compute())))
        return dict(zip(SCORES, values, strict=True))

    def references(self, n: int, seed: int) -> References:
        """The same of n training rows from all over, of the held-out rows, and of n samples of one Gaussian a class."""
        spread = np.linspace(0, len(self.train["x"]) - 1, n).round().astype(int)
        labels = np.arange(n) % len(self.gaussians)
        drawn = torch.stack([self.gaussians[c].sample(1, seed + k)[0] for k, c in enumerate(labels)])
        gaussian = self.codec.decode(drawn.float().reshape(n, *self.splits.info.shape)).numpy()
        return {
            "training rows": {
                **dict.fromkeys(SCORES, None),
                "energy": self(self.train["x"][spread], self.train["label"][spread])["energy"],
            },
            "held-out rows": {**self(self.held_out["x"], self.held_out["label"]), "energy": None},
            "one Gaussian a class": dict(self(gaussian, labels)),
        }


def judged_by(of: data.Data) -> Judged:
    """Scores against some labelled pictures."""
    splits = data.load(of)
    assert splits.info.levels is not None
    return Judged(splits, PixelCodec(splits.info.levels))


def score_cells(scores: Mapping[str, float | None]) -> list[str]:
    """SCORES for a person."""
    texts = {"agreement": "{:.1%}", "energy": "{:.4f}", "nearest": "{:.2f}"}
    return ["-" if (value := scores[name]) is None else texts[name].format(value) for name in SCORES]


def _every(rows: data.Rows) -> dict[str, np.ndarray]:
    found = rows.take(np.arange(len(rows)))
    return {name: np.asarray(found[name]) for name in ("x", "label")}
