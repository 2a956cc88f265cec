"""From a Run to a trained model: the body of the training loop, and what a run leaves behind.

    OUT/run.json  log.jsonl  tensorboard/  checkpoints/  ema/      what going on needs, and what happened
    OUT/model/                                                     the model: the last weights, averaged
    OUT/best/                                                      the same at the lowest held-out loss
    OUT/samples/  samples.png  film.gif  loss.png  scores.json     what it learned

To resume, give the same command again: one process that is stopped by a signal saves the step it has reached.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.checkpoints import native
from sfumato.model import Model
from sfumato.processes import announced, one_line
from sfumato.recipes.card import card
from sfumato.recipes.curve import check_features, learning_curve
from sfumato.tasks import cost, evaluate, film, generate, write
from sfumato.tasks.features import feature_network
from sfumato.train import Run, Training, held_out_loss, state, train
from sfumato.train.log import Log, read
from sfumato.train.stopping import waiting

Say = Callable[[str], None]
Report = Callable[[int, float, float], None]  # (step, loss, images a second), after every step


def fit(run: Run, out: Path, init: Model | None, command: str, say: Say, report: Report) -> Training:
    """Train, or go on with a training, to its last step; OUT/model is then the model."""
    if run.features:
        feature_network(run.features)  # what the learning curve will need is a mistake now, not at the end
    with one_line(announced(), lambda: state.goes_on(out)):
        return _fit(Training(run, out, init, say), command, say, report)


def _fit(training: Training, command: str, say: Say, report: Report) -> Training:
    run, out = training.run, training.out
    if run.features:
        check_features(training)
    if training.step >= run.steps:
        training.say(f"{out} is trained to step {training.step} already")
        if (out / "model").exists():  # else it was killed after its last step
            return training
    if training.is_main:
        say(dealt(run, training.share.world))
    log = Log(out, training.step) if training.is_main else None
    begun, before, smooth = time.perf_counter(), training.seconds, None
    first, loss_sum, counted = training.step, 0.0, 0
    if training.step:  # it may have been killed after it saved this step and before it looked at it
        _look(training, log, command)
    with waiting(training.accelerator.num_processes == 1) as stopped:  # of several, no step would be whole in all
        for step in train(training):
            training.seconds = before + time.perf_counter() - begun
            rate = (step.number - first) * run.batch / (training.seconds - before)
            smooth = step.loss if smooth is None else 0.98 * smooth + 0.02 * step.loss
            loss_sum, counted = loss_sum + step.loss, counted + 1
            if training.is_main:
                report(step.number, smooth, rate)
            last = step.number == run.steps
            if log and (step.number % run.log_every == 0 or last):
                log.write(
                    step.number,
                    loss=loss_sum / counted,
                    learning_rate=step.learning_rate,
                    grad_norm=step.grad_norm,
                    images_per_second=rate,
                    seconds=training.seconds,
                )
                loss_sum, counted = 0.0, 0
            if step.number % run.save_every == 0 or last:
                training.save()  # before all that may fail: what was trained is not lost
            _look(training, log, command)
            if stopped():
                training.save()  # again, if this step was: with the held-out loss that came after
                raise KeyboardInterrupt
    if log:
        log.close()
    save(training, out / "model", command)
    return training


def dealt(run: Run, world: int) -> str:
    """How the rows of a step are dealt: what changes with the number of processes, and what does not."""
    parts, rows = run.optimiser.accumulate, run.batch // (world * run.optimiser.accumulate)
    cut = "" if parts == 1 else f"{parts} parts x "
    return f"batch {run.batch} = {world} {'process' if world == 1 else 'processes'} x {cut}{rows} rows"


def snapshots(run: Run) -> list[int]:
    """The steps at which the averages are kept: `snapshots` of them, evenly spaced, the last step among them."""
    return sorted({max(1, round(run.steps * (i + 1) / run.snapshots)) for i in range(run.snapshots)})


def _look(training: Training, log: Log | None, command: str) -> None:
    """What is due at the step reached: its loss on held-out rows, samples, a snapshot."""
    run, step, last = training.run, training.step, training.step == training.run.steps
    if step % run.evaluate_every == 0 or last:
        _evaluate(training, log, command)
    if step % run.sample_every == 0 or last:
        shown = generate(training.model(), 100 if run.data.name == "digits" else 64, share=training.share)
        if training.is_main:
            write(shown, training.out / "samples" / f"step-{step:08d}.png")
    if step in snapshots(run):
        training.snapshot()


def _evaluate(training: Training, log: Log | None, command: str) -> None:
    loss = held_out_loss(training)
    if log and not log.measured(training.step):
        log.write(training.step, held_out_loss=loss)
    if loss < training.best:
        training.best = loss
        save(training, training.out / "best", command)


def described(training: Training, command: str) -> Model:
    """The averaged model with its card; every process takes part."""
    facts: dict[str, Any] = {
        "command": command,
        "seconds": round(training.seconds, 1),
        "ema": training.run.ema[0],
        "held_out_loss": training.best,
    }
    model = training.model(**facts)
    model.card = card(model)
    return model


def save(training: Training, folder: Path, command: str) -> None:
    """Write the averaged model with its card; every process takes part."""
    model = described(training, command)
    if training.is_main:
        model.save(folder)


def finish(training: Training, command: str, n: int, say: Say) -> dict[str, Any]:
    """Grid, film, loss curve and scores of a trained run, into OUT; the scores also into the model's card.

    Every process takes part in making the model, and the main one does the rest.
    """
    with one_line(training.share, lambda: state.goes_on(training.out)):
        out, model = training.out, described(training, command)
    if not training.is_main:
        return {}
    classes = model.config.conditions.classes
    shown = 10 * classes if 0 < classes <= 10 else 64
    write(generate(model, shown), out / "samples.png")
    say("the film of the reverse process")
    film(model, out / "film.gif", n=shown)
    loss_curve(out / "log.jsonl", out / "loss.png")
    scores = evaluate(model, training.splits, n, say=say)
    if training.run.features:
        say(f"the learning curve by {training.run.features}")
        scores["curve"] = learning_curve(training, say)
    native.write_json(out / "scores.json", scores)
    model.config = replace(model.config, training={**model.config.training, "scores": scores})
    model.card = card(model)
    model.save(out / "model")
    return scores


def loss_curve(log: Path, out: Path) -> None:
    """Training and held-out loss by step, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = read(log)
    figure = Figure(figsize=(6, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for name, label in (("loss", "training"), ("held_out_loss", "held out, averaged weights")):
        points = np.array([(line["step"], line[name]) for line in lines if name in line])
        if len(points):
            axis.plot(points[:, 0], points[:, 1], label=label, marker="o" if len(points) < 30 else None)
    axis.set(xlabel="step", ylabel="loss", yscale="log")
    axis.legend()
    figure.savefig(out)


def plan(run: Run, init: Model | None) -> tuple[list[tuple[str, str]], list[tuple[str, ...]]]:
    """What a run would take here, measured on a few steps, of which nothing is kept; and on GPUs, by `tasks.cost`."""
    import resource
    import tempfile

    measured = 6
    with tempfile.TemporaryDirectory() as folder:
        short = replace(run, steps=measured)
        training = Training(short, folder, init, say=lambda text: None, resume=False)
        counted = cost.of_config(training.config, run.gradient_checkpointing)
        steps = train(training)
        next(steps)
        times = []
        for _ in range(measured - 1):
            start = time.perf_counter()
            next(steps)
            times.append(time.perf_counter() - start)
    step = sorted(times)[len(times) // 2]
    parts, averages, world = run.optimiser.accumulate, len(run.ema), training.share.world
    fixed = cost.memory(counted, 0, processes=world, averages=averages)
    info = training.splits.info
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    hours = run.steps * step / 3600
    rows = [
        (
            "data",
            f"{training.splits.train.count or 'a stream of'} rows of {info.shape} ({info.kind}), "
            f"{training.splits.held_out.count} held out",
        ),
        ("classes", f"{len(info.label_names) or 'none'}"),
        ("batch", dealt(run, world).removeprefix("batch ")),
        ("parameters", f"{counted.parameters:,}"),
        ("FLOPs a step", f"{counted.step * run.batch / 1e9:.2f} G, {counted.step * run.batch / step / 1e9:.1f} G/s"),
        (
            "memory",
            f"{fixed / 2**20:.0f} MiB of weights, moments and averages, at most "
            f"{counted.activations * run.batch / (world * parts) / 2**20:.0f} MiB kept for the backward pass; "
            f"{peak / 2**20:.0f} MiB for the whole process at its peak",
        ),
        ("images/s", f"{run.batch / step:.0f}"),
        ("ETA", f"{run.steps} steps in {hours:.1f} h" if hours >= 1 else f"{run.steps} steps in {60 * hours:.1f} min"),
    ]
    return rows, cost.table(counted, run.batch, run.steps, averages=averages, parts=parts)
