"""A Model: denoiser, codec, conditions and card in one, and what `load` returns.

    model = sfumato.load("digits")
    x = model.sample(10, label=3, seed=0)      # uint8 (10, 1, 8, 8), data units

A model folder is model.safetensors + config.json + card.md.  config.json says everything that is needed to rebuild
the model; there is no pickle and no code in it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from sfumato import codecs, corruptions, engine, guidance, samplers, schedules
from sfumato import data as datasets
from sfumato.checkpoints import diffusers, native
from sfumato.checkpoints import ema as averages
from sfumato.corruptions import Blurring, Cold
from sfumato.data import Data
from sfumato.denoiser import Denoiser, NetworkDenoiser, Prediction
from sfumato.guidance import Guide
from sfumato.nn import NETWORKS, Conditions
from sfumato.nn.reuse import Reuse
from sfumato.noise import PRIOR, normal
from sfumato.options import unknown, whole
from sfumato.samplers.loop import no_noise
from sfumato.schedules import Schedule

ZOO = Path(__file__).parent / "zoo"


@dataclass(frozen=True)
class Sampling:
    """How a model is sampled unless the caller says otherwise."""

    sampler: str = "ddim"
    """A row of SAMPLERS, with options: ddim, ddim:eta=0.5, ancestral:variance=large."""
    steps: int = 50
    """Calls of the network (for samplers with one call a step)."""
    grid: str = "trailing"
    """A row of GRIDS."""
    guidance: float = 1.0
    """Classifier-free guidance scale w; 1 is the plain conditional model."""
    clip: bool = True
    """Hold the predicted x_0 in the codec's limits, where it has any."""


@dataclass(frozen=True)
class ModelConfig:
    """config.json: what is needed to rebuild a model."""

    shape: tuple[int, ...]
    kind: str
    network: str
    options: Mapping[str, Any]
    conditions: Conditions
    schedule: Mapping[str, Any]
    target: str
    time: str
    learned_variance: bool
    codec: Mapping[str, Any]
    label_names: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    """The data at t = 1 of a bridge; empty where there is noise."""

    @property
    def trained_on(self) -> Data:
        """The data it was trained on, as it was asked for."""
        known = {f.name for f in fields(Data)}
        about = {key: value for key, value in self.data.items() if key in known}
        if not about:
            raise ValueError("the model does not say what data it was trained on: nothing to score it against")
        return Data(**about)

    @property
    def gaussian(self) -> bool:
        """Whether x_t is x_0 and Gaussian noise, alike for every value, as likelihoods and closed forms ask."""
        return not self.source and self.schedule["name"] not in ("blurring", "cold")

    def document(self) -> dict[str, Any]:
        return {"format": "sfumato 1", **asdict(self)}

    @classmethod
    def read(cls, document: Mapping[str, Any], where: str) -> ModelConfig:
        """From config.json; ValueError names what is missing or foreign."""
        if str(document.get("format")).startswith("sfumato classifier"):
            raise ValueError(f"{where} is of a classifier, a denoiser is wanted; classifier.load_classifier reads it")
        given = {key: value for key, value in document.items() if key != "format"}
        known = {f.name for f in fields(cls)}
        optional = {"label_names", "sampling", "data", "training", "source"}
        missing, foreign = sorted(known - optional - given.keys()), sorted(given.keys() - known)
        if document.get("format") != "sfumato 1" or missing or foreign:
            raise ValueError(
                f"{where} is no config of this version: format {document.get('format')!r} (wanted 'sfumato 1'), "
                f"missing {missing or 'nothing'}, foreign {foreign or 'nothing'}"
            )
        try:
            given["conditions"] = Conditions(**given["conditions"])
            given["sampling"] = Sampling(**given.get("sampling", {}))
            given["shape"], given["label_names"] = tuple(given["shape"]), tuple(given.get("label_names", ()))
            return cls(**given)
        except TypeError as error:
            raise ValueError(f"{where} does not read as a config: {error}") from error


def build_network(config: ModelConfig) -> nn.Module:
    """The untrained network of a config."""
    if config.network not in NETWORKS:
        raise unknown("network", config.network, NETWORKS)
    row = NETWORKS[config.network]
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in config.options.items()}
    channels = config.shape[0] * (2 if config.learned_variance else 1)
    return row.build(row.config(**options), config.shape, config.conditions, channels)


def network_denoiser(config: ModelConfig, net: nn.Module, autocast: torch.dtype | None = None) -> NetworkDenoiser:
    """The network as the Denoiser that the config says it is; training and sampling both use this one."""
    return NetworkDenoiser(
        codecs.from_spec(config.codec).around(net),
        corruptions.from_spec(config.schedule),
        target=config.target,
        learned_variance=config.learned_variance,
        time=config.time,
        null_cond=config.conditions.null(torch.zeros(1, *config.shape)),
        autocast=autocast,
    )


@final
class Model:
    """A trained denoiser with everything needed to use it."""

    def __init__(self, config: ModelConfig, net: nn.Module, card: str = "", precision: str = "auto"):
        self.config, self.card, self.precision = config, card, precision
        self.net = net.eval().requires_grad_(False)
        self.codec = codecs.from_spec(config.codec)
        self.denoiser = network_denoiser(config, net, engine.prepare(net, precision))

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    def in_float32(self) -> Model:
        """The same without bfloat16 inside the network, whatever its precision: for likelihoods, which see it."""
        exact = copy.copy(self)
        exact.denoiser = network_denoiser(self.config, self.net)
        return exact

    @property
    def usual_steps(self) -> int:
        """The sampling steps of the config, as far as the schedule has so many."""
        return self.usual_steps_on(self.denoiser.schedule)

    def usual_steps_on(self, schedule: Schedule) -> int:
        """The same for a walk along another schedule."""
        return min(self.config.sampling.steps, schedule.steps or self.config.sampling.steps)

    def guided(
        self, clip: bool | None = None, schedule: str | None = None, guide: Guide | None = None, reuse: int = 1
    ) -> Denoiser:
        """The denoiser that `sample` walks with: under a guidance, its x_0 held in the codec's limits.

        schedule: walk along another than that of the training.  reuse: as `sample` says; good for one walk alone.
        """
        limits = self.codec.limits if (self.config.sampling.clip if clip is None else clip) else None
        denoiser = self.denoiser
        if reuse != 1:
            denoiser = network_denoiser(self.config, Reuse(self.net, reuse), denoiser.autocast)
        guided = (guide or Guide()).wrap(denoiser, limits)
        if schedule is not None:
            if self.config.source or isinstance(guided.schedule, Cold | Blurring) or self.config.conditions.span:
                raise ValueError(
                    "another schedule is for models that denoise plain Gaussian noise, and this one is a bridge, of "
                    "average velocities, or of another forward process; leave the schedule out"
                )
            guided = guidance.Rescheduled(guided, schedules.from_spec(schedule))
        return guided

    def guide(self, asked: float | Guide | None) -> Guide:
        """A guidance as a user says it: a Guide, or the scale w alone; None is as the config says."""
        usual = self.config.sampling.guidance
        guide = asked if isinstance(asked, Guide) else Guide(usual if asked is None else asked)
        needs_classes = guide.classifier is not None or (guide.scale != 1 and guide.weak is None)
        if needs_classes and not self.config.conditions.classes:
            what = f"guidance {guide.scale:g}" if guide.classifier is None else "guidance by a classifier"
            raise ValueError(f"{what} came, allowed is 1, for the model knows no classes; leave it out")
        return guide

    def labels(self, n: int, label: int | str | Sequence[int] | None = None) -> Tensor | None:
        """The class of each of n rows: all `label` (name or number), those of a list, or in turn; None if unlabelled.

        A text that is a class's name means that class, even if it also reads as the number of another.
        """
        whole("n", n)
        classes = self.config.conditions.classes
        if not classes:
            if label is not None:
                raise ValueError(f"label {label!r} was asked of a model without classes; leave the label out")
            return None
        if label is None:
            return torch.arange(n) % classes
        if isinstance(label, str):
            names = self.config.label_names
            if label not in names and not re.fullmatch(r"-?[0-9]+", label):
                raise unknown("label", label, names)
            label = names.index(label) if label in names else int(label)
        labels = [label] * n if isinstance(label, int) else [int(one) for one in label]
        if len(labels) != n or min(labels) < 0 or max(labels) >= classes:
            if isinstance(label, int):
                raise ValueError(f"unknown label {label} (allowed: 0..{classes - 1})")
            came = f"{len(labels)} from {min(labels)} to {max(labels)}" if labels else "none"
            raise ValueError(f"labels must be {n} numbers in 0..{classes - 1}; got {came}")
        return torch.tensor(labels)

    def start(self, seeds: Sequence[int], labels: Tensor | None, schedule: Schedule | None = None) -> Tensor:
        """The first states (B, *shape), codec units: noise of the prior; or held-out rows, as many as it takes.

        A bridge starts from rows of its other data, cold diffusion from degraded rows of its own, of these labels.
        """
        own = self.denoiser.schedule
        if self.config.source:
            return self.codec.encode(datasets.picked(Data(**self.config.source), seeds)).to(self.device)
        if isinstance(own, Cold):
            x_0 = self.codec.encode(datasets.picked(self.config.trained_on, seeds, labels)).to(self.device)
            return own.degrade(x_0, torch.ones(len(seeds), dtype=torch.float64))
        return (schedule or own).prior_std * normal(seeds, self.config.shape, PRIOR).to(self.device)

    def encode(
        self,
        x: Tensor,
        *,
        label: int | str | Sequence[int] | None = None,
        sampler: str = "ddim",
        steps: int | None = None,
        grid: str | None = None,
    ) -> Tensor:
        """The latents (n, *shape), codec units, of data x, data units: the ODE walked up (`samplers.encode`)."""
        if not isinstance(x, Tensor):
            raise ValueError(f"data to encode is a tensor (n, {', '.join(map(str, self.config.shape))}); got {type(x)}")
        x_0 = self.codec.encode(x).to(self.device)
        return samplers.encode(self.guided(), x_0, sampler, *self._way(steps, grid), self._told(len(x_0), label))

    def decode(
        self,
        x_T: Tensor,
        *,
        label: int | str | Sequence[int] | None = None,
        sampler: str = "ddim",
        steps: int | None = None,
        grid: str | None = None,
    ) -> Tensor:
        """Data (n, *shape), data units, of latents: `samplers.sample` without guidance."""
        told = self._told(len(x_T), label)
        x_0 = samplers.sample(self.guided(), x_T, sampler, *self._way(steps, grid), cond=told)
        return self.codec.decode(x_0).cpu()

    def _way(self, steps: int | None, grid: str | None) -> tuple[int, str]:
        return self.usual_steps if steps is None else steps, grid or self.config.sampling.grid

    def _told(self, n: int, label: int | str | Sequence[int] | None) -> dict[str, Tensor] | None:
        labels = self.labels(n, label)
        return None if labels is None else {"label": labels.to(self.device)}

    def sample(
        self,
        n: int = 64,
        *,
        sampler: str | samplers.Sampler | None = None,
        steps: int | None = None,
        grid: str | None = None,
        seed: int = 0,
        label: int | str | Sequence[int] | None = None,
        guidance: float | Guide | None = None,
        schedule: str | None = None,
        reuse: int = 1,
        batch: int = 256,
    ) -> Tensor:
        """n samples in data units, (n, *shape): uint8 for pictures, float32 else.

        Row i is drawn from seed + i alone, whatever n and batch are.  What is None is as the model's card says.
        guidance: the scale w of classifier-free guidance, or a `Guide` that says more.
        schedule: walk along another schedule than that of the training ("rectified").
        reuse: ask the lower levels of a UNet at every so many calls alone, an approximation (`nn.reuse`).
        """
        labels = self.labels(n, label)
        parts = []
        for rows in self._batches(n, seed, batch):
            for _, x, _ in self.trajectory(rows, labels, seed, sampler, steps, grid, guidance, schedule, reuse):
                x_0 = x  # the last one stays, and none before it
            parts.append(self.codec.decode(x_0).cpu())
        return torch.cat(parts)

    def trajectory(
        self,
        rows: range,
        labels: Tensor | None,
        seed: int = 0,
        sampler: str | samplers.Sampler | None = None,
        steps: int | None = None,
        grid: str | None = None,
        guidance: float | Guide | None = None,
        schedule: str | None = None,
        reuse: int = 1,
        x_T: Tensor | None = None,
    ) -> Iterator[tuple[Tensor, Tensor, Prediction | None]]:
        """(t, x_t, Prediction) on the way of some rows of a sample, in codec units; labels are those of all rows.

        x_T: the first states of these rows, codec units, instead of those that `start` gives.
        """
        usual = self.config.sampling
        seeds = [seed + i for i in rows]
        sampler = sampler or usual.sampler
        guide = self.guide(guidance)
        denoiser = self.guided(schedule=schedule, guide=guide, reuse=reuse)
        if x_T is None:
            x_T = self.start(seeds, None if labels is None else labels[rows], denoiser.schedule)
        if self.config.source and samplers.adds_noise(sampler, samplers.SAMPLERS):
            raise ValueError(
                f"sampler {sampler!r} adds noise, and this model is a bridge, at whose other end there is none; "
                "take a deterministic one such as ddim or heun"
            )
        cond = {name: value.to(x_T.dtype) for name, value in guide.cond(len(rows)).items()}
        if labels is not None:
            cond["label"] = labels[rows].to(self.device)
        return samplers.trajectory(
            denoiser,
            x_T,
            sampler,
            self.usual_steps_on(denoiser.schedule) if steps is None else steps,
            grid or usual.grid,
            seeds,
            cond or None,
            no_noise if self.config.source else None,
        )

    def _batches(self, n: int, seed: int, batch: int) -> Iterator[range]:
        if not isinstance(seed, int):
            raise ValueError(f"seed must be a whole number; got {seed!r}")
        return (range(start, min(start + batch, n)) for start in range(0, whole("n", n), whole("batch", batch)))

    def save(self, path: str | Path, half: bool = False) -> None:
        """Write the model folder; half keeps the weights in float16, half the size."""
        tensors = {key: x.half() if half and x.is_floating_point() else x for key, x in self.net.state_dict().items()}
        native.write_folder(Path(path), "model", tensors, self.config.document(), {"card.md": self.card})

    def export(self, path: str | Path) -> None:
        """Write the model as a new folder that diffusers reads; `checkpoints.diffusers_options` says which can be."""
        diffusers.write(Path(path), self.config.document(), self.net.state_dict(), self.card)


def zoo() -> dict[str, Path]:
    """The models that ship with the package: name -> folder."""
    return {path.parent.name: path.parent for path in sorted(ZOO.glob("*/config.json"))}


def find(name: str | Path) -> Path:
    """The model folder that a zoo name, a model folder or a run means."""
    path = Path(name)
    if (path / "model" / "config.json").exists() or (path / "run.json").exists():
        return path / "model"
    if path.exists() or len(path.parts) > 1 or path.suffix:
        return path
    if str(name) in zoo():
        return zoo()[str(name)]
    raise ValueError(f"{unknown('model', str(name), zoo())}; a MODEL is one of these, a model folder or a run's folder")


@torch.inference_mode(False)  # weights of that mode could not be kept as they are laid out, nor learn
def load(name: str | Path, *, ema: float | None = None, precision: str = "auto", device: str | None = None) -> Model:
    """The Model of a zoo name, a model folder or a run; ValueError for what is none, saying why.

    ema: another EMA length (a share of the training, such as 0.05), made from a run's snapshots.
    precision: a row of `engine.PRECISIONS`.  device: where it runs; a GPU if there is one.
    """
    folder = find(name)
    read = diffusers.read if diffusers.recognised(folder) else native.read_model
    tensors, document, card = read(folder)
    config = ModelConfig.read(document, str(folder / "config.json"))
    if ema is not None:
        tensors = averages.reconstruct(folder.parent / "ema", ema)
    try:
        net = build_network(config).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model = Model(config, net, card, precision)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{folder / 'config.json'} does not read as a config: {type(error).__name__} {error}; it was edited"
        ) from error
    native.fill(net, tensors, str(folder / "model.safetensors"))
    return model
