"""Training a classifier, as a generator.

    training = ClassifierTraining(run, out)
    for step in train_classifier(training):
        ...

One step k (counted from 1):

    x_0 = codec.encode(rows, moved by up to `shift` pixels),   t stratified over the schedule, eps ~ N(0, I)
    x_t = alpha(t) x_0 + sigma(t) eps;   x_0 itself where the run has no schedule
    L   = mean cross entropy of softmax(net(x_t, t)) with (1 - smoothing) [y] + smoothing/K
    w <- AdamW(w, clipped grad L),   EMA <- lerp(EMA, w)

As in `trainer`, rows, times, noise, dropout and augmentation are functions of (seed, k), and all else is saved, so a
training that was killed goes on to the same bits.

C. Szegedy et al., "Rethinking the Inception Architecture", arXiv:1512.00567 (label smoothing)
P. Dhariwal, A. Nichol, ADM, arXiv:2105.05233 (a classifier of noised pictures)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato import data, engine, gaussian, schedules, times
from sfumato.checkpoints import native
from sfumato.classifier import Classifier, ClassifierConfig, build_classifier, shown
from sfumato.data import Batch, Data, Rows
from sfumato.data.rows import augmentation
from sfumato.nn import UNetConfig, dropout
from sfumato.noise import EPS, NETWORK, TIMES, philox
from sfumato.processes import launched
from sfumato.train import adamw, state
from sfumato.train.ema import EMA
from sfumato.train.run import Optimiser, fit_codec
from sfumato.train.trainer import Step, learning_rate


@dataclass(frozen=True)
class ClassifierRun:
    """One training of a classifier, completely."""

    data: Data = field(default_factory=Data)
    network: UNetConfig = field(default_factory=UNetConfig)
    """The UNet whose encoder half it is; its dropout is the training's."""
    schedule: str = ""
    """The noise its pictures are under, a row of SCHEDULES with options; empty for clean pictures alone."""
    time: Literal["index", "unit", "logsnr", "c_noise", "none"] = "index"
    """What the network is told of t, where there is a schedule."""
    optimiser: Optimiser = field(default_factory=Optimiser)
    label_smoothing: float = 0.0
    """The share of the label that is spread over all classes."""
    shift: int = 0
    """Training pictures are moved by up to so many pixels along both axes; their edges are repeated."""
    steps: int = 2000
    """Optimiser steps."""
    batch: int = 128
    """Rows of a step."""
    seed: int = 0
    """Everything random is a function of this and the step."""
    ema: float = 0.05
    """Length of the average of the weights, as a share of the training."""
    log_every: int = 100
    """Steps between lines of the log."""
    save_every: int = 250
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is a share in [0, 1); got {self.label_smoothing}")
        if self.shift < 0:
            raise ValueError(f"shift is a number of pixels, 0 or more; got {self.shift}")

    def document(self) -> dict[str, Any]:
        return asdict(self)


@final
class ClassifierTraining:
    """The state of one training: built from its run, and filled from the last checkpoint of `out` if there is one."""

    def __init__(self, run: ClassifierRun, out: str | Path, say: Callable[[str], None] = print, resume: bool = True):
        if (world := launched().world) > 1:
            raise ValueError(f"a classifier is trained by one process, and {world} were launched; start it by itself")
        self.run, self.out, self.say = run, Path(out), say
        self.splits = data.load(run.data)
        info = self.splits.info
        if not info.label_names:
            raise ValueError(
                f"the data {run.data.name!r} have no labels, so there is nothing to classify; take labelled ones"
            )
        if run.shift and info.kind != "picture":
            raise ValueError(f"shift {run.shift} moves pictures, and these data are {info.kind}s; leave it at 0")
        self.codec = fit_codec(info, self.splits.train)
        self.schedule = schedules.from_spec(run.schedule) if run.schedule else None
        self.config = ClassifierConfig(
            shape=info.shape,
            label_names=info.label_names,
            codec=self.codec.spec,
            options=asdict(run.network),
            schedule=None if self.schedule is None else self.schedule.spec,
            time="none" if self.schedule is None else run.time,
            data={**asdict(run.data), "source": info.source, "rule": info.rule},
        )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(run.seed)
        self.net = build_classifier(self.config).to(device)
        engine.prepare(self.net, "auto")  # its operations alone: without autocast logits are float32 everywhere
        self.ema = EMA(self.net, (run.ema,))
        o = run.optimiser
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(), o.learning_rate, (o.beta1, o.beta2), weight_decay=o.weight_decay, fused=True
        )
        self.step, self.seconds = 0, 0.0
        self.classifier()  # which knows what cannot be
        if resume:
            state.check_same_run(self.out, run)
            self._resume()

    def classifier(self, **facts: Any) -> Classifier:
        """The classifier as it stands, of averaged weights."""
        net = copy.deepcopy(self.net)
        self.ema.copy_to(net, self.run.ema)
        config = replace(self.config, training={"step": self.step, "ema": self.run.ema, **facts})
        return Classifier(config, net)

    def save(self) -> None:
        """Write the checkpoint of this step."""
        tensors = {f"net/{name}": x for name, x in self.net.state_dict().items()}
        tensors |= {f"ema/{name}": x for name, x in self.ema.tensors().items()}
        for name, p in self.net.named_parameters():
            tensors |= {f"adam/{key}/{name}": x for key, x in self.optimiser.state[p].items()}
        state.save(self.out, self.step, tensors, {"seconds": self.seconds})

    def _resume(self) -> None:
        found = state.load(self.out, self.say)
        if found is None:
            return
        tensors, document = found
        part = {
            kind: {k[len(kind) :]: x for k, x in tensors.items() if k.startswith(kind)} for kind in ("net/", "ema/")
        }
        native.fill(self.net, part["net/"], str(self.out))
        self.ema.restore(part["ema/"])
        for name, p in self.net.named_parameters():
            keys = ("step", "exp_avg", "exp_avg_sq")
            self.optimiser.state[p] = {key: tensors[f"adam/{key}/{name}"].to(p.device) for key in keys}
        self.step, self.seconds = document["step"], document["seconds"]
        self.say(f"going on from step {self.step} of {self.run.steps}")


def train_classifier(training: ClassifierTraining) -> Iterator[Step]:
    """Go on to the run's last step, yielding after each; ValueError if the loss is no longer a number."""
    run = training.run
    for rows in training.splits.train.batches(run.seed, run.batch, start=training.step):
        if training.step >= run.steps:
            return
        k = training.step + 1
        rate = learning_rate(run.optimiser, run.steps, k)
        for group in training.optimiser.param_groups:
            group["lr"] = rate
        loss, norm = _one_step(training, rows, k)
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise ValueError(
                f"the loss is {loss} and the gradient's norm {norm} at step {k}, so the training stops; the last "
                "checkpoint is kept; try a lower learning rate"
            )
        adamw.descend(training.optimiser, training.net, training.ema, k, adamw.clipping(norm, run.optimiser.clip))
        training.step = k
        yield Step(k, loss, rate, norm)


def _one_step(training: ClassifierTraining, rows: Batch, k: int) -> tuple[float, float]:
    """Gradients of step k in the network; the loss and the gradient's norm before clipping."""
    run, net = training.run, training.net
    device = next(net.parameters()).device
    x, label = rows["x"], rows["label"]
    assert isinstance(x, Tensor)
    assert isinstance(label, Tensor)
    if run.shift:
        x = moved(x, run.shift, augmentation(run.seed, k - 1, len(x))[:, 1:])
    x_t, t = _seen(training, training.codec.encode(x), k)
    training.optimiser.zero_grad(set_to_none=True)
    net.train()
    with dropout.rows_of(net, dropout.draw_keys(net, philox(run.seed, NETWORK, k), run.batch).to(device)):
        logits = net(*shown(training.config, training.schedule, x_t.to(device), t.to(device)))
    loss = F.cross_entropy(logits, label.to(device), label_smoothing=run.label_smoothing)
    loss.backward()
    norm = torch.nn.utils.get_total_norm(p.grad for p in net.parameters() if p.grad is not None)
    return loss.item(), float(norm)


def _seen(training: ClassifierTraining, x_0: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """x_t and t of step k; x_0 and 0 without a schedule."""
    if training.schedule is None:
        return x_0, torch.zeros(len(x_0), dtype=torch.float64)
    u = torch.from_numpy(philox(training.run.seed, TIMES, k).random(len(x_0)))
    t, _ = times.stratified(u, training.schedule, None)
    eps = torch.from_numpy(philox(training.run.seed, EPS, k).standard_normal(tuple(x_0.shape), dtype=np.float32))
    return gaussian.perturb(training.schedule, x_0, t, eps), t


def moved(x: Tensor, shift: int, draws: np.ndarray) -> Tensor:
    """Pictures (B, C, H, W) moved by -shift..shift pixels along both axes; draws (B, 2) in [0, 1) say where to."""
    by = torch.from_numpy((draws * (2 * shift + 1)).astype(np.int64)) - shift
    row = (torch.arange(x.shape[2]) + by[:, :1]).clamp(0, x.shape[2] - 1)
    column = (torch.arange(x.shape[3]) + by[:, 1:]).clamp(0, x.shape[3] - 1)
    return x[torch.arange(len(x))[:, None, None], :, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def accuracy(classifier: Classifier, rows: Rows, t: float = 0.0, seed: int = 0, batch: int = 500) -> float:
    """The share of rows whose label is the likeliest class, with the noise of time t (drawn from seed) on them."""
    right = 0
    for i, index in enumerate(np.array_split(np.arange(len(rows)), -(-len(rows) // batch))):
        some = rows.take(index)
        x, label = some["x"], some["label"]
        assert isinstance(x, Tensor)
        assert isinstance(label, Tensor)
        x_t, at = classifier.codec.encode(x), torch.full((len(x),), t, dtype=torch.float64)
        if t > 0 and classifier.schedule is not None:
            eps = philox(seed, EPS, i).standard_normal(tuple(x.shape), dtype=np.float32)
            x_t = gaussian.perturb(classifier.schedule, x_t, at, torch.from_numpy(eps))
        found = classifier.logits(x_t.to(classifier.device), at.to(classifier.device)).argmax(1)
        right += int((found.cpu() == label).sum())
    return right / len(rows)
