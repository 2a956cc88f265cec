"""A script for test_trainer.py, run alone or by torchrun: OUT gets the losses and the weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sfumato.checkpoints import native
from sfumato.nn import UNetConfig
from sfumato.train import Loss, Optimiser, Run, Training, held_out_loss, train

RUN = Run(
    network=UNetConfig(channels=8, multipliers=(1, 2), blocks=1, groups=4),
    schedule="cosine:steps=20",
    loss=Loss(times="stratified"),
    optimiser=Optimiser(warmup=2, accumulate=2, decay="constant"),
    steps=8,
    batch=16,
    precision="float32",
)

if __name__ == "__main__":
    out = Path(sys.argv[1])
    training = Training(RUN, out)
    losses = [step.loss for step in train(training)]
    held_out = held_out_loss(training)
    training.save()
    if training.is_main:
        world = training.accelerator.num_processes
        native.write_json(out / "losses.json", {"world": world, "losses": losses, "held_out": held_out})
        print(json.dumps(losses))
    training.accelerator.end_training()
