"""A Run: everything a training depends on, in one frozen dataclass.

A recipe is a function that returns a complete Run; the command line is derived from its fields.  Two trainings with
equal Runs on equal machines are equal to the bit.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from sfumato import corruptions, data
from sfumato.codecs import Codec, DCTCodec, PixelCodec, StandardCodec
from sfumato.corruptions import Blurring, Cold
from sfumato.data import Data, Info, Rows, Splits
from sfumato.model import ModelConfig, Sampling
from sfumato.nn import NETWORKS, Conditions, NetworkConfig, UNetConfig
from sfumato.options import unknown
from sfumato.schedules import Schedule

FIT_ROWS = 10_000  # a codec is fitted to at most so many training rows, the first ones


@dataclass(frozen=True)
class Loss:
    """What is minimised."""

    kind: str = "simple"
    """A row of OBJECTIVES: simple (weighted), hybrid or vlb (the bound), meanflow (average velocities)."""
    weighting: str = "simple"
    """A row of WEIGHTINGS, on the x_0 error: simple, x0, v, velocity, min_snr:gamma=5, sigmoid, edm, bound."""
    times: str = "uniform"
    """A row of TIMES: uniform, stratified, logit_normal:mean=0,std=1, log_normal:mean=-1.2,std=1.2, importance."""
    learned_weight: bool = False
    """Divide each noise level's loss by its own learned mean (EDM2's uncertainty weighting)."""
    coupling: Literal["independent", "ot", "auto"] = "independent"
    """Which noise goes with which row of a batch: as drawn, by optimal transport, or ot only without labels (auto)."""
    average_share: float = 0.25
    """Of meanflow: the share of rows trained on an average velocity; the others have s = t."""


@dataclass(frozen=True)
class Optimiser:
    """AdamW and its learning rate, which rises over `warmup` steps and then falls as `decay` says."""

    learning_rate: float = 1e-3
    """The highest learning rate; it does not change with the number of processes."""
    warmup: int = 200
    """Steps over which the learning rate rises from 0."""
    decay: str = "cosine"
    """A row of DECAYS: constant, linear, cosine, inverse_sqrt."""
    beta1: float = 0.9
    """AdamW's first beta."""
    beta2: float = 0.99
    """AdamW's second beta."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    clip: float = 1.0
    """The gradient's norm is clipped to this."""
    accumulate: int = 1
    """Parts into which a batch is cut to save memory; the result is the same."""


@dataclass(frozen=True)
class Run:
    """One training, completely."""

    data: Data = field(default_factory=Data)
    network: NetworkConfig = field(default_factory=UNetConfig)
    schedule: str = "cosine"
    """A row of PROCESSES, with options: cosine, linear:steps=1000, rectified, blurring, cold:degradation=blur."""
    target: str = "v"
    """What the network predicts, a row of TARGETS: eps, x0, v, score, flow, edm (sigma_data 0.5: pixels)."""
    time: Literal["index", "unit", "logsnr", "c_noise", "none"] = "index"
    """What the network is told of t; with unit (t itself) set --network.time-scale 1000, with c_noise 100."""
    codec: Literal["auto", "dct"] = "auto"
    """auto: pixels, or standardised numbers; dct: the frequencies of pixels, for schedule blurring."""
    source: Data = field(default_factory=lambda: Data("noise"))
    """What lies at t = 1: noise, or another data set of the same shape (a bridge)."""
    learned_variance: bool = False
    """The network also predicts the reverse variance (for loss hybrid or vlb)."""
    loss: Loss = Loss()
    optimiser: Optimiser = Optimiser()
    sampling: Sampling = field(default_factory=Sampling)
    """How the trained model is sampled unless told otherwise."""
    steps: int = 10_000
    """Optimiser steps."""
    batch: int = 128
    """Rows of a step, over all processes together."""
    seed: int = 0
    """Everything random is a function of this and the step."""
    precision: Literal["auto", "bfloat16", "compiled", "float32"] = "auto"
    """Inside the network: auto is the fastest way here, float32 the exact one; weights, losses and EMA are float32."""
    gradient_checkpointing: bool = False
    """Compute the blocks again in the backward pass instead of keeping what they made: less memory, more time."""
    drop_label: float = 0.1
    """Share of rows trained without their label, for classifier-free guidance."""
    ema: tuple[float, ...] = (0.05, 0.10)
    """Lengths of the averages that are tracked, as shares of the training; the first is the model's."""
    features: str = ""
    """Feature network of the learning curve: efficientnet-lite0, inception-fid or a classifier; empty for none."""
    snapshots: int = 16
    """How often the averages are kept, so that other lengths can be made afterwards."""
    log_every: int = 50
    """Steps between lines of the log."""
    save_every: int = 1000
    """Steps between checkpoints."""
    evaluate_every: int = 1000
    """Steps between held-out losses."""
    sample_every: int = 1000
    """Steps between grids of samples."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "log_every", "save_every", "evaluate_every", "sample_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.optimiser.accumulate < 1 or self.batch % self.optimiser.accumulate:
            raise ValueError(
                f"batch {self.batch} cannot be cut into optimiser.accumulate = {self.optimiser.accumulate} equal parts"
            )
        o = self.optimiser
        if not o.learning_rate > 0 or not o.clip > 0 or o.warmup < 0:
            raise ValueError(
                f"optimiser: learning_rate and clip must be above 0, warmup at least 0; got {o.learning_rate}, "
                f"{o.clip} and {o.warmup}"
            )
        if not 0 <= self.drop_label < 1:
            raise ValueError(f"drop_label is a share in [0, 1); got {self.drop_label}")
        if not 0 < self.loss.average_share <= 1:
            raise ValueError(f"loss.average_share is a share in (0, 1]; got {self.loss.average_share}")
        learns = self.loss.kind in ("hybrid", "vlb")
        if self.learned_variance != learns and (self.learned_variance or self.loss.kind == "hybrid"):
            raise ValueError(
                f"loss.kind {self.loss.kind!r} with learned_variance {self.learned_variance}: the bound alone teaches "
                "the variance; take --learned-variance with --loss.kind hybrid or vlb, or neither"
            )
        if not self.ema:
            raise ValueError("ema must name at least one length, such as 0.05")

    def document(self) -> dict[str, Any]:
        """The Run as JSON: what a later command is compared with."""
        return {**asdict(self), "network": {"name": network_name(self.network), **asdict(self.network)}}


def network_name(network: NetworkConfig) -> str:
    """The row of NETWORKS that a network's config belongs to."""
    return next(name for name, row in NETWORKS.items() if isinstance(network, row.config))


def fit_codec(info: Info, rows: Rows, wished: str = "auto") -> Codec:
    """Pixels (or their DCT) for data with levels; else mean and standard deviation of the first training rows."""
    if wished not in ("auto", "dct"):
        raise unknown("codec", wished, ("auto", "dct"))
    if wished == "dct" and info.levels is None:
        raise ValueError(f"codec 'dct' is for pictures with levels, these data are {info.kind}s of floats; take auto")
    if info.levels is not None:
        return DCTCodec(info.levels) if wished == "dct" else PixelCodec(info.levels)
    x = rows.take(np.arange(min(len(rows), FIT_ROWS)))["x"]
    assert not isinstance(x, list)
    return StandardCodec.fit(x)


def is_bridge(run: Run) -> bool:
    """Whether other data lie at t = 1."""
    return run.source.name != "noise"


def load_source(run: Run, info: Info) -> Splits | None:
    """The other data of a bridge, whose rows must be like the data's own; None without a bridge."""
    if not is_bridge(run):
        return None
    splits = data.load(run.source)
    if (splits.info.shape, splits.info.levels) != (info.shape, info.levels):
        raise ValueError(
            f"a bridge needs two sets of like rows: {run.source.name!r} has {splits.info.shape} of "
            f"{splits.info.levels} levels, {run.data.name!r} {info.shape} of {info.levels}; set both sizes and channels"
        )
    return splits


def check_process(schedule: Schedule, run: Run, info: Info) -> None:
    """ValueError for a schedule that does not go with the run's codec, target, loss or source."""
    if isinstance(schedule, Blurring) != (run.codec == "dct"):
        raise ValueError(
            f"schedule {run.schedule!r} with codec {run.codec!r}: blurring is a schedule of frequencies, "
            "so --schedule blurring goes with --codec dct, and no other schedule does"
        )
    if isinstance(schedule, Blurring) and (schedule.height, schedule.width) != info.shape[1:]:
        raise ValueError(
            f"schedule blurring has {schedule.height}x{schedule.width} frequencies and the pictures are {info.shape}; "
            f"write blurring:height={info.shape[1]},width={info.shape[2]}"
        )
    cold = (run.target, run.loss.weighting, run.loss.kind, info.kind)
    if isinstance(schedule, Cold) and cold != ("x0", "x0", "simple", "picture"):
        raise ValueError(
            f"schedule cold degrades pictures without noise; it takes --target x0, --loss.weighting x0 and "
            f"--loss.kind simple, got {', '.join(map(repr, cold[:3]))} and {info.kind}s"
        )
    straight = schedule.spec["name"] == "rectified"
    if run.loss.kind.startswith("meanflow") and (not straight or run.target != "flow"):
        raise ValueError(
            f"loss meanflow is of the straight path: take --schedule rectified --target flow; "
            f"got {run.schedule!r} and {run.target!r}"
        )
    if run.loss.kind.startswith("meanflow") and run.loss.times.startswith("stratified"):
        raise ValueError("loss meanflow draws two times a row, which stratified times would tie; take logit_normal")
    if run.loss.kind.startswith("meanflow") and run.gradient_checkpointing:
        raise ValueError(
            "loss meanflow takes a derivative along the path, which gradient_checkpointing cannot: leave the latter out"
        )
    if is_bridge(run) and (not straight or run.loss.kind != "simple"):
        raise ValueError(
            f"a bridge from {run.source.name!r} is walked along the straight path: take --schedule rectified "
            f"--loss.kind simple; got {run.schedule!r} and {run.loss.kind!r}"
        )


def model_config(run: Run, info: Info, codec: Codec) -> ModelConfig:
    """The config of the model that a run trains."""
    if run.sampling.guidance != 1 and not info.label_names:
        raise ValueError(f"sampling.guidance is {run.sampling.guidance:g} and the data have no labels; leave it at 1")
    schedule = corruptions.from_spec(run.schedule)
    check_process(schedule, run, info)
    return ModelConfig(
        shape=info.shape,
        kind=info.kind,
        network=network_name(run.network),
        options=asdict(run.network),
        conditions=Conditions(classes=len(info.label_names), span=int(run.loss.kind.startswith("meanflow"))),
        schedule=schedule.spec,
        target=run.target,
        time=run.time,
        learned_variance=run.learned_variance,
        codec=codec.spec,
        label_names=info.label_names,
        sampling=run.sampling,
        data={**asdict(run.data), "source": info.source, "rule": info.rule},
        source=asdict(run.source) if is_bridge(run) else {},
    )
