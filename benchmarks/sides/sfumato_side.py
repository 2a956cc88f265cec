"""sfumato as its own commands use it: `load`, `Model.sample`, and the trainer with a recipe's Run."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, final

import numpy as np

import sfumato
from sfumato.cli import main
from sfumato.data import Data
from sfumato.model import Sampling
from sfumato.nn import UNetConfig
from sfumato.recipes import RECIPES
from sfumato.tasks import cost, generate
from sfumato.tasks.generate import spread
from sfumato.train import Loss, Run, Training, train

from .. import shared
from ..terms import Options


def forward(options: Options, folder: Path) -> Any:
    denoiser = sfumato.load(folder, precision=options["precision"]).denoiser
    return lambda x, steps: denoiser(x, (steps + 1) / 1000).eps


def _file(path: Path, **arrays: np.ndarray) -> Data:
    """Pictures as a file that a Run can name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return Data("file", path=str(path))


def recipe(options: Options, folder: Path, steps: int) -> Run:
    """The run of a recipe; without labels its data are a file of the same pictures."""
    run = replace(RECIPES[options["recipe"]](), features="", steps=steps)
    if options["labels"]:
        return run
    splits = shared.pictures("mnist")
    parts = {"train_images": splits.train, "test_images": splits.held_out}
    arrays = {name: np.asarray(rows.take(np.arange(len(rows)))["x"])[:, 0] for name, rows in parts.items()}
    unguided = replace(run.sampling, guidance=1.0)
    return replace(run, data=_file(folder / "pictures.npz", **arrays), sampling=unguided, drop_label=0.0)


def theirs(options: Options, folder: Path, network: UNetConfig, steps: int) -> Run:
    """The run that trains diffusers' network as diffusers does: eps, the simple loss, one average."""
    x = shared.training_pictures(options).transpose(0, 2, 3, 1)
    return Run(
        data=_file(folder / "pictures.npz", images=x),
        network=network,
        schedule="linear",
        target="eps",
        loss=Loss(weighting="simple"),
        sampling=Sampling(steps=50),
        batch=options["batch"],
        precision=options["precision"],
        ema=(0.05,),
        steps=steps,
    )


@final
class SfumatoTrainer:
    """Our trainer, a step at a time."""

    falls = True  # its learning rate, so it must know how many steps there will be

    def __init__(self, run: Run, folder: Path, init: sfumato.Model | None = None):
        self.training = Training(run, folder, init, say=lambda text: None)
        self.batch = run.batch
        self.parameters = sum(p.numel() for p in self.training.bare.parameters())
        self.operations = cost.of_config(self.training.config).step  # of a picture, convolutions counted as plain ones
        self.steps = train(self.training)

    @property
    def number(self) -> int:
        return self.training.step

    @property
    def seconds(self) -> float:
        return self.training.seconds

    @seconds.setter
    def seconds(self, seconds: float) -> None:
        self.training.seconds = seconds

    def step(self) -> None:
        next(self.steps)

    def save(self) -> None:
        self.training.save()


def trainer(options: Options, folder: Path, steps: int) -> SfumatoTrainer:
    if "recipe" in options:
        return SfumatoTrainer(recipe(options, folder, steps), folder)
    init = sfumato.load(shared.network(options))
    return SfumatoTrainer(theirs(options, folder, UNetConfig(**init.config.options), steps), folder, init)


def drawn(options: Options, folder: Path) -> np.ndarray:
    """By the averaged weights of a training, or by a model of the zoo."""
    if "model" in options:
        model = sfumato.load(options["model"], precision=options["precision"])
    else:
        model = trainer(options, folder, 1).training.model()
    way = {"sampler": options["sampler"], "steps": options["steps"], "seed": options["seed"]}
    return generate(model, options["n"], batch=options["rows"], **way).images()


def sampled(options: Options, folder: Path) -> None:
    """By the command, as a user would."""
    given = {"-n": "n", "--sampler": "sampler", "--steps": "steps", "--batch": "rows"}
    told = [word for flag, name in given.items() for word in (flag, str(options[name]))]
    main(["sample", options["model"], *told, "--guidance", "1", "--out", str(folder / "pictures")])


@cache
def _model(name: str, precision: str) -> sfumato.Model:
    return sfumato.load(name, precision=precision)


def sliced(options: Options, number: int) -> tuple[np.ndarray, float]:
    """The rows number x rows, ... of a model's samples; row i is drawn from seed i, so slices make one set."""
    model = _model(options["model"], options["precision"])
    rows = options["rows"]
    start = time.perf_counter()
    x = model.sample(
        rows,
        sampler=options["sampler"],
        steps=options["steps"],
        guidance=options["guidance"],
        seed=number * rows,
        batch=rows,
    )
    seconds = time.perf_counter() - start
    return spread(x.numpy(), model.config.codec["levels"]), seconds
