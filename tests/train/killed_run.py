"""A script for test_killed.py: a training that is killed again and again, beside one that never stops.

    python killed_run.py OUT SEED

writes OUT/whole and OUT/killed, with the rows and times of every step that was begun in OUT/*.batches.  What is
killed is a fork of a process that has imported everything but has computed nothing, so that ten kills cost little.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import PIL.Image

from sfumato.model import Sampling
from sfumato.nn import UNetConfig
from sfumato.recipes.fit import fit
from sfumato.train import Loss, Optimiser, Run, log, trainer

KILLS = 10
STEPS = 60
RUN = Run(
    network=UNetConfig(channels=8, multipliers=(1, 2), blocks=1, groups=4, dropout=0.2),
    schedule="cosine:steps=8",
    target="v",
    learned_variance=True,
    loss=Loss(kind="hybrid", times="importance"),
    optimiser=Optimiser(warmup=5, accumulate=2),
    sampling=Sampling(steps=2),
    steps=STEPS,
    batch=16,
    precision="float32",
    log_every=1,
    save_every=3,
    evaluate_every=10,
    sample_every=1000,
    snapshots=6,
)


def child(out: Path, pipe: int) -> None:
    """The training, telling the pipe each step and OUT.batches what each step was made of."""
    batches = os.open(f"{out}.batches", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    one_step = trainer._one_step

    def told(training: Any, rows: dict[str, Any], other: Any, k: int) -> tuple[float, float]:
        weights = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in training.bare.parameters()))
        line = {"step": k, "index": rows["index"].tolist(), "weights": weights.hexdigest()}
        os.write(batches, (json.dumps(line) + "\n").encode())
        return one_step(training, rows, other, k)

    trainer._one_step = told
    fit(RUN, out, None, "the command", lambda text: None, lambda step, loss, rate: os.write(pipe, b"."))


def start(out: Path) -> tuple[int, int]:
    """A forked child, and the end of the pipe where it writes a dot a step."""
    here, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            child(out, there)
            status = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(there)
    return pid, here


def finish(out: Path) -> None:
    pid, pipe = start(out)
    while os.read(pipe, 4096):
        pass
    _, status = os.waitpid(pid, 0)
    assert status == 0, status


def main(out: Path, seed: int) -> None:
    trainer.Training(RUN, out, resume=False)  # imports what every child would
    log.Log(out / "unused", 0).close()
    PIL.Image.init()

    finish(out / "whole")
    draw = random.Random(seed)
    for kill in range(KILLS):
        pid, pipe = start(out / "killed")
        for _ in range(draw.randint(0, 9) if kill else 0):  # the first before its first step
            os.read(pipe, 1)
        time.sleep(draw.uniform(0, 0.15))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        os.close(pipe)
        assert os.WIFSIGNALED(status), "it ended before it could be killed"
    finish(out / "killed")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
