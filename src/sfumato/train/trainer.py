"""Training, as a generator.

    training = Training(run, out)
    for step in train(training):
        ...                        # logging, saving, sampling are the body of a for

One step k (counted from 1), for a global batch of rows:

    x_0 = codec.encode(rows),  t ~ TIMES,  eps ~ N(0, I) or a bridge's other rows, coupled as COUPLINGS say
    L = mean of weight x OBJECTIVES[kind](...)
    w <- AdamW(w, clipped grad L),   every EMA <- lerp(EMA, w)

Rows, times, noise, dropped labels, augmentation and dropout are functions of (seed, k) (`noise`), the learning rate
of k.  What depends on history (weights, averages, optimiser, loss history) is the saved state.  So a training that
was killed goes on to the same bits.  Several processes through accelerate: each takes its rows of the same batch, of
which all that is drawn is the row's own, dropout's masks too (`nn.dropout`); weights may be sharded (`sharded`).
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sfumato import corruptions, data, engine, losses, samplers, times
from sfumato.checkpoints import ema as averages
from sfumato.checkpoints import native
from sfumato.data import Batch
from sfumato.denoiser import Denoiser
from sfumato.model import Model, ModelConfig, build_network, network_denoiser
from sfumato.nn import checkpointing, dropout
from sfumato.noise import DROP, EPS, NETWORK, SPANS, TIMES, philox
from sfumato.options import call_with, unknown
from sfumato.processes import Share, joined
from sfumato.samplers.loop import grid_of
from sfumato.train import adamw, sharded, state
from sfumato.train.coupling import COUPLINGS
from sfumato.train.ema import EMA
from sfumato.train.feed import eps_of, feed
from sfumato.train.objectives import MEASURED, OBJECTIVES, Objective
from sfumato.train.run import Optimiser, Run, fit_codec, load_source, model_config
from sfumato.train.uncertainty import Uncertainty

HISTORY = 10  # losses remembered at each step for importance sampling
HELD_OUT_ROWS = 1024  # the held-out loss is measured on at most so many rows

# (k - warmup)/(steps - warmup) in [0, 1], k/warmup >= 1 -> share of the highest learning rate
DECAYS: dict[str, Callable[[float, float], float]] = {
    "constant": lambda done, ratio: 1.0,
    "linear": lambda done, ratio: 1 - done,
    "cosine": lambda done, ratio: 0.5 * (1 + math.cos(math.pi * done)),
    "inverse_sqrt": lambda done, ratio: ratio**-0.5,
}


def learning_rate(o: Optimiser, steps: int, step: int) -> float:
    """The rate of step k = 1..steps: a rise from 0 over the warm-up, then a row of DECAYS."""
    warmup = max(o.warmup, 1)
    if step <= o.warmup:
        return o.learning_rate * step / warmup
    done = (step - o.warmup) / max(steps - o.warmup, 1)
    return o.learning_rate * DECAYS[o.decay](min(done, 1.0), step / warmup)


@dataclass(frozen=True)
class Step:
    """What one step gave: its number (counted from 1), loss, learning rate, gradient norm before clipping."""

    number: int
    loss: float
    learning_rate: float
    grad_norm: float


@final
class Training:
    """The state of one training: built from its Run, and filled from the last checkpoint of `out` if there is one."""

    def __init__(
        self,
        run: Run,
        out: str | Path,
        init: Model | None = None,
        say: Callable[[str], None] = print,
        resume: bool = True,
    ):
        if run.optimiser.decay not in DECAYS:
            raise unknown("decay", run.optimiser.decay, DECAYS)
        self.run, self.out = run, Path(out)
        self.objective = call_with("loss", run.loss.kind, OBJECTIVES)
        self.weighting = call_with("weighting", run.loss.weighting, losses.WEIGHTINGS)
        self.coupling = call_with("coupling", run.loss.coupling, COUPLINGS)
        self.times = call_with("times", run.loss.times, times.TIMES)
        samplers.named(run.sampling.sampler, samplers.SAMPLERS)
        for length in run.ema:
            averages.gamma(length)
        self.accelerator = sharded.accelerator()
        self.share = Share(self.accelerator.process_index, self.accelerator.num_processes)
        self.say = say if self.is_main else lambda text: None
        world = self.share.world
        if run.batch % (world * run.optimiser.accumulate):
            raise ValueError(
                f"batch {run.batch} cannot be shared by {world} processes x {run.optimiser.accumulate} parts; "
                "take a batch they divide"
            )
        self.splits = data.load(run.data)
        self.source = load_source(run, self.splits.info)
        self.codec = fit_codec(self.splits.info, self.splits.train, run.codec) if init is None else init.codec
        self.config = model_config(run, self.splits.info, self.codec)
        torch.manual_seed(run.seed)
        net = build_network(self.config)
        if init is not None:
            _start_from(net, self.config, init)
        net.to(self.accelerator.device)
        self.uncertainty = Uncertainty().to(self.accelerator.device) if run.loss.learned_weight else None
        self.averaged = copy.deepcopy(net).eval().requires_grad_(False)
        autocast = engine.prepare(net, run.precision)
        engine.prepare(self.averaged, run.precision)
        checkpointing.use(net, run.gradient_checkpointing)
        self.bare, self.net = net, sharded.prepared(self.accelerator, net)
        self.ema = EMA(net, run.ema)
        self.optimiser = torch.optim.AdamW(
            [{"params": list(module.parameters())} for module in (self.bare, self.uncertainty) if module is not None],
            lr=run.optimiser.learning_rate,
            betas=(run.optimiser.beta1, run.optimiser.beta2),
            weight_decay=run.optimiser.weight_decay,
            fused=True,
        )
        self.denoiser = network_denoiser(self.config, self.net, autocast)
        steps = self.denoiser.schedule.steps
        samplers.loop.grid_of(
            run.sampling.grid, self.denoiser.schedule, min(run.sampling.steps, steps or run.sampling.steps)
        )
        self.history = torch.full((steps, HISTORY), math.nan, dtype=torch.float64) if steps else None
        self.step, self.seconds, self.best = 0, 0.0, math.inf
        if resume:
            state.check_same_run(self.out, run, write=self.is_main)
            self._resume()
            if self.is_main:
                state.drop_snapshots(self.out, self.step)
        self._check_sampling()

    def _check_sampling(self) -> None:
        """Sample once in two steps, so that an impossible sampler is a mistake now and not at the first grid."""
        most = self.denoiser.schedule.steps or self.run.sampling.steps
        grid_of(self.run.sampling.grid, self.denoiser.schedule, min(self.run.sampling.steps, most))
        self.model().sample(1, steps=min(2, most))

    @property
    def trained_on(self) -> dict[str, Any]:
        """What a resumed training must find again: the codec, the classes and the number of rows."""
        about: dict[str, Any] = {
            "codec": self.codec.spec,
            "label_names": self.splits.info.label_names,
            "rows": self.splits.train.count,
        }
        if self.source:
            about["source rows"] = self.source.train.count
        return dict(json.loads(json.dumps(about)))

    @property
    def learned(self) -> dict[str, torch.nn.Parameter]:
        """All that the optimiser moves, by name: the network and, if it is learned, the weight of each noise level."""
        beside = self.uncertainty.named_parameters(prefix="uncertainty") if self.uncertainty else ()
        return {**dict(self.bare.named_parameters()), **dict(beside)}

    @property
    def is_main(self) -> bool:
        return self.share.is_main

    def encode(self, rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """x_0 and cond of some rows, on the device."""
        x, label = rows["x"], rows.get("label")
        assert isinstance(x, Tensor)
        x_0 = self.codec.encode(x.to(self.accelerator.device, non_blocking=True))
        told = isinstance(label, Tensor) and self.config.conditions.classes
        return x_0, {"label": label.to(self.accelerator.device)} if told else {}  # type: ignore[union-attr]

    def model(self, length: float | None = None, **facts: Any) -> Model:
        """The model as it stands: the average of a tracked length, on its own copy of the network; all take part."""
        self.ema.copy_to(self.averaged, self.run.ema[0] if length is None else length)
        config = replace(self.config, training={**self.config.training, "step": self.step, **facts})
        return Model(config, self.averaged, "", self.run.precision)

    def save(self) -> None:
        """Write the checkpoint of this step; every process takes part, the main one writes."""
        moments = {name: self.optimiser.state[p] for name, p in self.learned.items()}
        tensors = {f"net/{name}": x for name, x in self.bare.state_dict().items()}
        if self.uncertainty:
            tensors |= {f"uncertainty/{name}": x for name, x in self.uncertainty.state_dict().items()}
        tensors |= {f"ema/{name}": x for name, x in self.ema.tensors().items()}
        tensors |= {f"adam/{key}/{name}": m[key] for name, m in moments.items() for key in m}
        if self.history is not None:
            tensors["history"] = self.history
        tensors = sharded.gathered(tensors, keep=self.is_main)
        if self.is_main:
            document = {"seconds": self.seconds, "best": self.best, "trained_on": self.trained_on}
            state.save(self.out, self.step, tensors, document)

    def snapshot(self) -> None:
        """Keep the averages, so that other lengths can be made afterwards; every process takes part."""
        tensors = sharded.gathered(self.ema.tensors(), keep=self.is_main)
        if self.is_main:
            state.save_snapshot(self.out, self.step, tensors, self.run.ema)

    def _resume(self) -> None:
        found = state.load(self.out, self.say)
        if found is None:
            return
        tensors, document = found
        then = document.get("trained_on")
        if then != self.trained_on:
            raise ValueError(
                f"{self.out} was trained on other data or from another --init ({then} then, {self.trained_on} now); "
                "give the same to go on, or another --out to start anew"
            )
        mine, saved = self.bare.state_dict(), _under("net/", tensors)
        parts = {name: sharded.part_of(x, mine.get(name, x)) for name, x in saved.items()}
        native.fill(self.bare, parts, str(self.out))
        if self.uncertainty:
            native.fill(self.uncertainty, _under("uncertainty/", tensors), str(self.out))
        self.ema.restore(_under("ema/", tensors))
        for name, p in self.learned.items():
            self.optimiser.state[p] = {
                key: sharded.part_of(tensors[f"adam/{key}/{name}"], p) for key in ("step", "exp_avg", "exp_avg_sq")
            }
        if self.history is not None:
            self.history.copy_(tensors["history"])
        self.step, self.seconds, self.best = document["step"], document["seconds"], document["best"]
        self.say(f"going on from step {self.step} of {self.run.steps}")


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def _start_from(net: torch.nn.Module, config: ModelConfig, init: Model) -> None:
    """Fine-tuning: the weights of another model of the same kind; a label table of another size starts anew."""
    for key in ("shape", "network", "options", "schedule", "target", "time", "learned_variance"):
        theirs, ours = getattr(init.config, key), getattr(config, key)
        if json.dumps(theirs) != json.dumps(ours):  # as JSON, where tuples are lists
            raise ValueError(
                f"--init has {key} {theirs!r}, the run {ours!r}; they must be alike to go on from its weights"
            )
    mine = net.state_dict()
    fitting = {name: x for name, x in init.net.state_dict().items() if name in mine and x.shape == mine[name].shape}
    native.fill(net, {**mine, **fitting}, "--init")


def train(training: Training) -> Iterator[Step]:
    """Go on to the run's last step, yielding after each; ValueError if the loss is no longer a number."""
    run, coming = training.run, feed(training)
    while training.step < run.steps:
        rows, other = next(coming)
        k = training.step + 1
        rate = learning_rate(run.optimiser, run.steps, k)
        for group in training.optimiser.param_groups:
            group["lr"] = rate
        loss, norm = _one_step(training, rows, other, k)
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise ValueError(
                f"the loss is {loss} and the gradient's norm {norm} at step {k}, so the training stops; the last "
                "checkpoint is kept; try a lower --optimiser.learning-rate or --precision float32"
            )
        adamw.descend(training.optimiser, training.bare, training.ema, k, adamw.clipping(norm, run.optimiser.clip))
        training.step = k
        yield Step(k, loss, rate, norm)


def _one_step(training: Training, rows: Batch, other: Batch | None, k: int) -> tuple[float, float]:
    """Gradients of step k in the network; the global loss and the gradient's norm before clipping."""
    run, accelerator, share = training.run, training.accelerator, training.share
    part = slice(share.rank, None, share.world)
    x_0, cond = training.encode(rows)
    u = torch.from_numpy(philox(run.seed, TIMES, k).random(run.batch))
    p = None if training.history is None else times.importance_probabilities(training.history)
    t, weight = training.times(u, training.denoiser.schedule, p)
    t, span = _spans(training, t, k)
    eps = eps_of(training, rows, other)
    dropped = torch.from_numpy(philox(run.seed, DROP, k).random(run.batch) < run.drop_label)
    keys = dropout.draw_keys(training.bare, philox(run.seed, NETWORK, k), run.batch)
    t, span, weight, dropped, keys = (a[part].to(x_0.device) for a in (t, span, weight, dropped, keys))
    if run.loss.coupling != "independent":  # a pairing of the whole batch, whatever the number of processes
        every_x, every_eps = (joined(a, run.batch, share).to(a.device) for a in (x_0, eps))
        eps = every_eps[training.coupling(every_x, every_eps, bool(cond))[part].to(eps.device)]
    if training.config.conditions.span:
        cond["span"] = span.float()
    if "label" in cond:
        null = training.denoiser.null_cond["label"].to(x_0.device)
        cond["label"] = torch.where(dropped, null, cond["label"])
    training.optimiser.zero_grad(set_to_none=True)
    training.net.train()
    parts = torch.arange(len(x_0)).chunk(run.optimiser.accumulate)
    found = []
    for i, chunk in enumerate(parts):
        here = {name: c[chunk] for name, c in cond.items()}
        waiting = accelerator.no_sync(training.net) if i < len(parts) - 1 else contextlib.nullcontext()
        with waiting, dropout.rows_of(training.bare, keys[chunk]):
            values = row_losses(training, training.denoiser, x_0[chunk], t[chunk], eps[chunk], here)
            minimised = _weighed(training, t[chunk], values)
            accelerator.backward((weight[chunk].to(values) * minimised).mean() * (len(chunk) / len(x_0)))
        found.append(values.detach())
    values = torch.cat(found)
    if training.history is not None and training.run.loss.times.startswith("importance"):
        _remember(training.history, *(joined(a, run.batch, share).cpu() for a in (t, values)))
    for p in training.uncertainty.parameters() if training.uncertainty else ():  # which accelerate does not look after
        p.grad = accelerator.reduce(p.grad, reduction="mean")
    norm = torch.nn.utils.get_total_norm(p.grad for p in training.bare.parameters() if p.grad is not None)
    loss = accelerator.gather((weight.to(values) * values).mean()[None]).mean()
    answer, length = torch.stack([loss, sharded.whole(norm).to(loss)]).tolist()  # one wait for a GPU
    return answer, length


def row_losses(
    training: Training,
    denoiser: Denoiser,
    x_0: Tensor,
    t: Tensor,
    eps: Tensor,
    cond: dict[str, Tensor],
    objective: Objective | None = None,
) -> Tensor:
    """The run's loss at each row, (B,), or another objective's."""
    x_t = corruptions.perturb(denoiser.schedule, x_0, t, eps)
    at = losses.Noised(denoiser.schedule, x_0, x_t, t, training.codec.bin_width, eps)
    return (objective or training.objective)(at, denoiser, cond, training.weighting)


def _weighed(training: Training, t: Tensor, values: Tensor) -> Tensor:
    """The losses as they are minimised: by the learned weight, if there is one."""
    if training.uncertainty is None:
        return values
    u = training.uncertainty(training.denoiser.schedule.path.logsnr(t).to(t.device))
    return torch.exp(-u) * values + u


def _spans(training: Training, t: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """t and t - s, (B,): the later of two times drawn alike, and for a share of rows the way to the earlier."""
    if not training.config.conditions.span:
        return t, torch.zeros_like(t)
    draw = torch.from_numpy(philox(training.run.seed, SPANS, k).random((2, len(t))))
    other, _ = training.times(draw[0], training.denoiser.schedule, None)
    averaged = draw[1] < training.run.loss.average_share
    return torch.where(averaged, torch.maximum(t, other), t), torch.where(averaged, (t - other).abs(), 0.0)


def _remember(history: Tensor, t: Tensor, values: Tensor) -> None:
    """The oldest loss at each visited step makes room for the newest."""
    for i, value in zip((t.double() * len(history)).round().long().tolist(), values.tolist(), strict=True):
        history[i - 1] = torch.cat([history[i - 1, 1:], history.new_tensor([value])])


@torch.no_grad()
def held_out_loss(training: Training, batch: int = 256) -> float:
    """The run's loss on held-out rows with the averaged weights; times (stratified) and noise are always the same.

    Each of several processes looks at its rows, and all get the whole.
    """
    held_out, run = training.splits.held_out, training.run
    n = min(len(held_out), HELD_OUT_ROWS)
    training.ema.copy_to(training.averaged, run.ema[0])
    denoiser = network_denoiser(training.config, training.averaged, training.denoiser.autocast)
    objective = MEASURED.get(run.loss.kind.partition(":")[0])
    total, part = 0.0, slice(training.share.rank, None, training.share.world)
    for i, index in enumerate(np.array_split(np.arange(n), -(-n // batch))):
        if not len(mine := index[part]):
            continue
        x_0, cond = training.encode(held_out.take(mine))
        u = torch.from_numpy(philox(0, TIMES, i).random(len(index)))
        t = times.stratified(u, denoiser.schedule, None)[0][part]
        noise = philox(0, EPS, i).standard_normal((len(index), *x_0.shape[1:]), dtype=np.float32)
        eps = torch.from_numpy(noise)[part].to(x_0)
        if training.source:
            eps = training.encode(training.source.held_out.take(mine % len(training.source.held_out)))[0]
        if training.config.conditions.span:
            cond["span"] = torch.zeros_like(t).to(x_0)
        total += row_losses(training, denoiser, x_0, t.to(x_0.device), eps, cond, objective).sum().item()
    return float(joined(torch.tensor([total], dtype=torch.float64), training.share.world, training.share).sum()) / n
