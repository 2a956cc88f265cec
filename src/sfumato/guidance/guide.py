"""A user's choice of guidance, and the Denoiser it makes.

    denoiser -> classifier-free (a row of MIXES) or a weaker model -> classifier -> thresholding or clipping

The classifier comes around classifier-free guidance, so that it is asked once, for the label asked for, and its scale
is not multiplied by w.  What differs from row to row travels in cond (`Guide.cond`), so that rows of other users, under
the same wrappers, may share a call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sfumato.asking import NEUTRAL
from sfumato.denoiser import Denoiser
from sfumato.guidance.apg import apg
from sfumato.guidance.autoguide import autoguide
from sfumato.guidance.cfg import cfg
from sfumato.guidance.classifier import Logits, classifier_eps, classifier_mean
from sfumato.guidance.clip import clip
from sfumato.guidance.guided import Guided
from sfumato.guidance.rescale import rescale
from sfumato.guidance.threshold import check_percentile, threshold
from sfumato.options import call_with

MIXES: dict[str, Callable[..., Guided]] = {"cfg": cfg, "rescale": rescale, "apg": apg}

ALGORITHMS: dict[int, Callable[[Denoiser, Logits], Guided]] = {1: classifier_mean, 2: classifier_eps}


def _number(what: str, given: float) -> None:
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise ValueError(f"{what} is a finite number; got {given!r}")


@dataclass(frozen=True)
class Guide:
    """A guidance, as a user says it; ValueError for what does not fit together."""

    scale: float = 1.0
    """w of classifier-free guidance, or of autoguidance; 1 is the plain conditional model."""
    low: float = 0.0
    """w acts where low < t <= high, t of the model's own schedule."""
    high: float = 1.0
    mix: str = "cfg"
    """A row of MIXES, with options: cfg, rescale:phi=0.7, apg:eta=0,norm=15."""
    weak: Denoiser | None = None
    """A weaker model, which takes the place of the null."""
    classifier: Logits | None = None
    """(x_t, t) -> logits, on the model's own schedule."""
    classifier_scale: float = 1.0
    """s of classifier guidance; 0 is none."""
    algorithm: int = 2
    """1 moves the mean of ancestral sampling, 2 moves eps, for every sampler."""
    dynamic: float | None = None
    """The percentile of dynamic thresholding, which takes the place of clipping."""
    told: Mapping[str, str] = field(default_factory=dict)
    """The names of "weak" and "classifier", for `document`."""

    def __post_init__(self) -> None:
        for name in ("scale", "low", "high", "classifier_scale"):
            _number(f"guidance: {name}", getattr(self, name))
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"guidance acts where low < t <= high, 0 <= low < high <= 1; got {self.low}, {self.high}")
        call_with("guidance mix", self.mix, MIXES)
        if self.weak is not None and self.mix != "cfg":
            raise ValueError(
                f"guidance by a weaker model has no null to mix; got mix {self.mix!r}, leave one of them out"
            )
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"classifier guidance is by algorithm 1 or 2; got {self.algorithm!r}")
        if self.classifier is None and (self.classifier_scale, self.algorithm) != (1.0, 2):
            raise ValueError(
                f"classifier_scale {self.classifier_scale:g} by algorithm {self.algorithm} was asked without a "
                "classifier; give one"
            )
        if self.dynamic is not None:
            check_percentile(self.dynamic)
        if foreign := sorted(set(self.told) - {"weak", "classifier"}):
            raise ValueError(f"told names 'weak' and 'classifier'; got {foreign}")

    def wrap(self, denoiser: Denoiser, limits: tuple[float, float] | None) -> Denoiser:
        """The denoiser under this guidance; limits: where x_0 is held, or None.  It is steered by `cond`."""
        if self.weak is None:
            guided = call_with("guidance mix", self.mix, MIXES)(denoiser)
        else:
            guided = autoguide(denoiser, self.weak)
        if self.classifier is not None:
            guided = ALGORITHMS[self.algorithm](guided, self.classifier)
        if self.dynamic is not None:
            if limits is None:
                raise ValueError("dynamic thresholding holds x_0 in its limits, and here are none; leave dynamic out")
            return threshold(guided, self.dynamic, *limits)
        return clip(guided, *limits) if limits else guided

    def cond(self, n: int) -> dict[str, Tensor]:
        """What n rows are told beside a model's conditions, float64 (n,): only what is not NEUTRAL."""
        asked = {"guidance": self.scale, "low": self.low, "high": self.high}
        if self.classifier is not None:
            asked["classifier"] = self.classifier_scale
        said = {name: value for name, value in asked.items() if value != NEUTRAL[name]}
        return {name: torch.full((n,), float(value), dtype=torch.float64) for name, value in said.items()}

    def document(self) -> dict[str, Any]:
        """JSON that says how it was guided."""
        said: dict[str, Any] = {"scale": self.scale, "low": self.low, "high": self.high}
        said |= {"mix": self.mix} if self.weak is None else {"weak": self.told.get("weak", "unnamed")}
        if self.classifier is not None:
            name = self.told.get("classifier", "unnamed")
            said |= {"classifier": name, "classifier_scale": self.classifier_scale, "algorithm": self.algorithm}
        return said if self.dynamic is None else {**said, "dynamic": self.dynamic}
