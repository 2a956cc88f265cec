"""A trained classifier: what guidance steers by, and whose features a Frechet distance is measured in.

    logits(x_t, t)   log p(y | x_t) up to a constant, differentiable; of a noise-aware classifier
    look(images)     pooled features and log p(y | x_0) of pictures

A noise-aware one was trained on x_t = alpha x_0 + sigma eps (`gaussian`) and is told t as a denoiser is.  It sees
x_t / sqrt(alpha^2 + sigma^2), which is x_t itself on variance-preserving schedules.  One for clean pictures has no
schedule: it sees x_0 and is told 0.

A folder is model.safetensors + config.json + card.md, as a model's is, with a format of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sfumato import codecs, schedules
from sfumato.checkpoints import native
from sfumato.codecs import PixelCodec
from sfumato.denoiser import TIMES
from sfumato.gaussian import expand
from sfumato.nn import UNetConfig
from sfumato.nn.classifier import ClassifierNet
from sfumato.options import unknown

FORMAT = "sfumato classifier 1"
ZOO = Path(__file__).parent / "zoo" / "classifiers"


@dataclass(frozen=True)
class ClassifierConfig:
    """What config.json says: everything that is needed to rebuild the classifier."""

    shape: tuple[int, ...]
    label_names: tuple[str, ...]
    codec: Mapping[str, Any]
    options: Mapping[str, Any]
    """The fields of its UNetConfig."""
    schedule: Mapping[str, Any] | None = None
    """The noise it was trained under; None for clean pictures only."""
    time: str = "none"
    """What it is told of t, a row of denoiser.TIMES."""
    data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    """Facts: command, seconds, steps, test accuracy and the number of its rows."""

    @property
    def classes(self) -> int:
        return len(self.label_names)

    def document(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def read(cls, document: Mapping[str, Any], where: str) -> ClassifierConfig:
        """From config.json; ValueError names what is missing or foreign."""
        found = document.get("format")
        if isinstance(found, str) and found.startswith("sfumato ") and "classifier" not in found:
            raise ValueError(
                f"{where} is of a denoiser ({found!r}), where a classifier is wanted; give one of {_known()}"
            )
        given = {key: value for key, value in document.items() if key != "format"}
        known = {f.name for f in fields(cls)}
        missing = sorted(known - {"schedule", "time", "data", "training"} - given.keys())
        foreign = sorted(given.keys() - known)
        if found != FORMAT or missing or foreign:
            raise ValueError(
                f"{where} is no config of this version: format {found!r} (wanted {FORMAT!r}), "
                f"missing {missing or 'nothing'}, foreign {foreign or 'nothing'}"
            )
        try:
            return cls(**{**given, "shape": tuple(given["shape"]), "label_names": tuple(given["label_names"])})
        except TypeError as error:
            raise ValueError(f"{where} does not read as a config: {error}; it was edited") from error


def build_classifier(config: ClassifierConfig) -> ClassifierNet:
    """The untrained network of a config."""
    options: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in config.options.items()}
    return ClassifierNet(UNetConfig(**options), config.shape, config.classes)


@final
class Classifier:
    """A trained classifier with everything needed to use it."""

    def __init__(self, config: ClassifierConfig, net: ClassifierNet, card: str = ""):
        self.config, self.net, self.card = config, net, card
        self.codec = codecs.from_spec(config.codec)
        self.schedule = None if config.schedule is None else schedules.from_spec(config.schedule)
        if self.schedule is not None:
            if config.time not in TIMES:
                raise unknown("time", config.time, TIMES)
            TIMES[config.time](self.schedule, torch.ones(1, dtype=torch.float64))
        net.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    def logits(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, K) of x_t (B, *shape), codec units, and t (B,) in [0, 1]; differentiable in x_t.

        Raises ValueError for a shape that does not fit, and where a classifier of clean pictures is asked at t > 0.
        """
        return self.net(*self._shown(x_t, t))

    def features(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, D): what the last layer sees."""
        return self.net.features(*self._shown(x_t, t))

    def _shown(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is shown: x_t at the scale it knows, and its own time."""
        return shown(self.config, self.schedule, x_t, t)

    @torch.no_grad()
    def look(self, images: np.ndarray, batch: int = 250) -> tuple[np.ndarray, np.ndarray]:
        """Features (N, D) and log p(y | picture) (N, K), float32, of pictures (N, H, W, C) uint8 spread over 0..255."""
        if not isinstance(self.codec, PixelCodec):
            raise ValueError(
                f"this classifier is of rows {self.config.shape}, not of pictures; look with one of {_known()}"
            )
        channels, *size = self.config.shape
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != (*size, channels) or images.dtype != np.uint8:
            raise ValueError(
                f"pictures {images.dtype} of shape {images.shape} came, this classifier looks at uint8 "
                f"(N, {', '.join(map(str, size))}, {channels}); resize or recolour them, or take another classifier"
            )
        features, log_probs = [], []
        for start in range(0, len(images), batch):
            rows = torch.from_numpy(np.ascontiguousarray(images[start : start + batch].transpose(0, 3, 1, 2)))
            x_0 = PixelCodec().encode(rows).to(self.device)
            seen = self.features(x_0, torch.zeros(len(rows), dtype=torch.float64))
            features.append(seen.float().cpu())
            log_probs.append(self.net.logits(seen).float().log_softmax(1).cpu())
        if not features:
            return np.zeros((0, self.net.width), np.float32), np.zeros((0, self.config.classes), np.float32)
        return torch.cat(features).numpy(), torch.cat(log_probs).numpy()

    def save(self, path: str | Path, half: bool = True) -> None:
        """Write the classifier's folder; half keeps the weights in float16, half the size."""
        tensors = {key: x.half() if half and x.is_floating_point() else x for key, x in self.net.state_dict().items()}
        native.write_folder(Path(path), "model", tensors, self.config.document(), {"card.md": self.card})


def shown(
    config: ClassifierConfig, schedule: schedules.Schedule | None, x_t: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """What the network of a classifier is shown for x_t (B, *shape), t (B,): x_t at the scale it knows, its time."""
    if x_t.shape[1:] != config.shape:
        raise ValueError(
            f"x_t has shape {tuple(x_t.shape)}, this classifier takes (B, {', '.join(map(str, config.shape))})"
        )
    if t.shape != x_t.shape[:1]:
        raise ValueError(f"t has shape {tuple(t.shape)}, allowed is ({len(x_t)},): one time each row of x_t")
    if schedule is None:
        if bool((t > 0).any()):
            raise ValueError(
                f"t = {float(t.max()):g} came, and this classifier knows clean pictures only (t = 0); "
                "take a noise-aware one, such as mnist-noisy"
            )
        return x_t, torch.zeros(len(x_t), device=x_t.device)
    scale = (schedule.alpha(t).square() + schedule.sigma(t).square()).rsqrt()
    least = 1 / schedule.steps if schedule.steps else 0.0  # at t = 0 it is told its first step
    told = TIMES[config.time](schedule, t.double().clamp(min=least))
    return expand(scale, x_t) * x_t, told.to(x_t.device, torch.promote_types(x_t.dtype, torch.float32))


def classifiers() -> dict[str, Path]:
    """The classifiers that ship with the package: name -> folder."""
    return {path.parent.name: path.parent for path in sorted(ZOO.glob("*/config.json"))}


def _known() -> str:
    return f"{', '.join(classifiers()) or 'none that ship'}, or a folder that `sfumato train NAME-classifier` wrote"


def find(name: str | Path) -> Path:
    """The folder that a shipped name, a classifier's folder or a run of its training means.

    A shipped name is always the shipped one; a folder that bears it is given as ./NAME.
    """
    if str(name) in classifiers():
        return classifiers()[str(name)]
    path = Path(name)
    if (path / "model" / "config.json").exists():
        return path / "model"
    if path.exists() or len(path.parts) > 1:
        return path
    raise ValueError(f"{unknown('classifier', str(name), classifiers())}; or give a classifier's folder")


def load_classifier(name: str | Path, device: str | None = None) -> Classifier:
    """The Classifier of a shipped name, a folder or a run; ValueError for what is none, saying why.

    device: where it runs; a GPU if there is one.
    """
    folder = find(name)
    tensors, document, card = native.read_model(folder)
    where = str(folder / "config.json")
    config = ClassifierConfig.read(document, where)
    try:
        classifier = Classifier(config, build_classifier(config), card)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{where} does not read as a config: {type(error).__name__} {error}; it was edited") from error
    native.fill(classifier.net, tensors, str(folder / "model.safetensors"))
    classifier.net.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return classifier
