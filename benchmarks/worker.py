"""One side at one task, in a process of its own:  python -m benchmarks.worker LIBRARY TASK OPTIONS

It writes a line of JSON when it is ready, with its facts, and one for each number of a round that it reads.
A library is a module of `sides` with some of these functions; a task needs the one named beside it in TASKS.

    forward(options, folder) -> net(x, steps) -> eps              the network that lies in `folder`
    trainer(options, folder, steps) -> Trainer                    going on from what `folder` has, if anything
    drawn(options, folder) -> uint8 (n, 28, 28, 1)                pictures of the training in `folder`
    sampled(options, folder)                                      pictures written into `folder`
    sliced(options, number) -> uint8 (rows, 28, 28, 1), seconds   the pictures number x rows, ...
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from . import shared
from .terms import Options

LIBRARIES = ("sfumato", "diffusers", "ddp", "openvino", "real")

Result = dict[str, Any]
Task = tuple[Callable[[int], Result], Result]  # what to do in a round, and the facts


def forward(side: ModuleType, options: Options) -> Task:
    """Calls of the network; its error on the batch whose answer by diffusers is known."""
    folder = shared.network(options)
    x, steps, expected = shared.expected(folder)
    with torch.no_grad():
        net = side.forward(options, folder)
        error = float((net(x, steps) - expected).square().mean().sqrt() / expected.square().mean().sqrt())
        batch = options["batch"]
        x, steps = x[:batch].contiguous(), steps[:batch]
        for _ in range(options["warm"]):
            net(x, steps)

    @torch.no_grad()
    def go(number: int) -> Result:
        start = time.perf_counter()
        for _ in range(options["calls"]):
            net(x, steps)
        return {"ms": 1000 * (time.perf_counter() - start) / options["calls"], "error": error}

    return go, {}


def steps(side: ModuleType, options: Options) -> Task:
    """Some training steps; nothing is kept."""
    trainer = _unkept(side, options)
    for _ in range(options["warm"]):
        trainer.step()

    def go(number: int) -> Result:
        start = time.perf_counter()
        for _ in range(options["calls"]):
            trainer.step()
        each = (time.perf_counter() - start) / options["calls"]
        found = {"ms": 1000 * each, "images_per_second": trainer.batch / each}
        operations = getattr(trainer, "operations", None)
        return found if operations is None else {**found, "gflops": trainer.batch / each * operations / 1e9}

    return go, {"parameters": trainer.parameters}


def product(side: ModuleType, options: Options) -> Task:
    """Products of square matrices, by PyTorch: the rate that a training's operations are held against."""
    dtype, n = getattr(torch, options["precision"]), options["size"]
    a, b = (torch.randn(n, n).to(dtype) for _ in range(2))
    for _ in range(options["warm"]):
        a @ b

    def go(number: int) -> Result:
        start = time.perf_counter()
        for _ in range(options["calls"]):
            a @ b
        return {"gflops": options["calls"] * 2 * n**3 / (time.perf_counter() - start) / 1e9}

    return go, {}


def train(side: ModuleType, options: Options) -> Task:
    """A further minute of a training, then its checkpoint.

    A learning rate that falls to zero must know when: a few steps that are not kept say how many fit into the time.
    """
    folder = _folder(options)
    plan = folder / "plan.json"
    if not plan.exists():
        most = _fitting(side, options, options["minute"] * options["minutes"])
        plan.parent.mkdir(parents=True, exist_ok=True)
        plan.write_text(json.dumps({"steps": most}))
    planned = json.loads(plan.read_text())["steps"]
    trainer = side.trainer(options, folder, planned)

    def go(number: int) -> Result:
        until = options["minute"] * (number + 1)
        while trainer.seconds < until and (trainer.number < planned or not trainer.falls):
            start = time.perf_counter()
            trainer.step()
            trainer.seconds += time.perf_counter() - start
        trainer.save()
        done = {"steps": trainer.number, "images": trainer.number * trainer.batch}
        return {**done, "trained_seconds": round(trainer.seconds, 2)}

    return go, {"parameters": trainer.parameters, "planned": planned}


def _unkept(side: ModuleType, options: Options) -> Any:
    """A trainer of which nothing stays on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        return side.trainer(options, Path(folder), 1_000_000)


def _fitting(side: ModuleType, options: Options, seconds: float) -> int:
    """How many steps fit into so many seconds, with a little to spare."""
    trial = _unkept(side, options)
    for _ in range(5):
        trial.step()
    start, made = time.perf_counter(), 0
    while made < 10 or time.perf_counter() - start < min(5.0, seconds / 20):
        trial.step()
        made += 1
    return max(10, int(0.98 * seconds * made / (time.perf_counter() - start)))


def draw(side: ModuleType, options: Options) -> Task:
    """Pictures of a training, and their Frechet distance; the seconds are those of the drawing."""

    def go(number: int) -> Result:
        start = time.perf_counter()
        told = {**options, "seed": options["seed"] + number * options["n"]}
        images = side.drawn(told, Path(options["runs"]) / options.get("run", ""))
        seconds = time.perf_counter() - start
        judged = options.get("features", "mnist"), options.get("data", "mnist")
        return {"frechet": shared.frechet(images, options["reference"], *judged), "seconds": seconds}

    return go, {}


def sample(side: ModuleType, options: Options) -> Task:
    """Pictures by a small network, written to disk."""

    def go(number: int) -> Result:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            side.sampled(options, Path(folder))
            return {"seconds": time.perf_counter() - start}

    return go, {}


def slices(side: ModuleType, options: Options) -> Task:
    """One slice of a set of pictures a round, kept; with the last, the Frechet distance of all."""
    folder = _folder(options)
    folder.mkdir(parents=True, exist_ok=True)

    def go(number: int) -> Result:
        images, seconds = side.sliced(options, number)
        np.save(folder / f"{number}.npy", images)
        if number + 1 < options["slices"]:
            return {"seconds": seconds}
        whole = np.concatenate([np.load(folder / f"{k}.npy") for k in range(number + 1)])
        return {"seconds": seconds, "frechet": shared.frechet(whole, options["reference"], "mnist", "mnist")}

    return go, {}


TASKS: dict[str, Callable[[ModuleType, Options], Task]] = {
    "forward": forward,
    "steps": steps,
    "product": product,
    "train": train,
    "draw": draw,
    "sample": sample,
    "slices": slices,
}


def _folder(options: Options) -> Path:
    """What a side keeps from round to round; at the first round there is nothing."""
    folder = Path(options["runs"]) / options["run"]
    if options["round"] == 0:
        shutil.rmtree(folder, ignore_errors=True)
    return folder


def main() -> None:
    library, task, told = sys.argv[1:]
    assert library in LIBRARIES, library
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def say(answer: Result) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    go, facts = TASKS[task](import_module(f"benchmarks.sides.{library}_side"), json.loads(told))
    say({**facts, "threads": torch.get_num_threads()})
    for line in sys.stdin:
        found = go(int(line))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        say({**found, "peak_mib": peak})


if __name__ == "__main__":
    main()
