"""denoising-diffusion-pytorch as its README uses it: Unet, GaussianDiffusion, and the loop of its Trainer.

The README's settings: flash_attn, 1,000 steps, DDIM of 250, Adam(8e-5, betas 0.9 and 0.99), gradients clipped at 1, an
average of 0.995; mixed precision where that is faster (`sfumato.engine.multiplies_bfloat16`).  Its Trainer
reads files and saves pickles; so its loop stands here, and pictures come from memory and are not mirrored.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import final

import numpy as np
import torch
from accelerate import Accelerator
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from ema_pytorch import EMA

from .. import shared
from ..terms import Options


def small(options: Options, steps: int) -> GaussianDiffusion:
    """A network for MNIST of the width that the options say, drawn from by DDIM of so many steps."""
    net = Unet(dim=options["width"], dim_mults=tuple(options["multipliers"]), channels=1, flash_attn=True)
    return GaussianDiffusion(net, image_size=options["size"], timesteps=1000, sampling_timesteps=steps)


def pictures(diffusion: GaussianDiffusion, options: Options) -> Iterator[np.ndarray]:
    """n pictures in batches, uint8 (B, 28, 28, 1)."""
    torch.manual_seed(options.get("seed", 0))
    diffusion.eval()
    for rows in shared.in_batches(options["n"], options["rows"]):
        yield shared.seen(diffusion.sample(batch_size=rows).permute(0, 2, 3, 1).cpu().numpy())


@final
class DDPTrainer:
    """The Trainer's loop, a step at a time."""

    falls = False  # its learning rate is constant

    def __init__(self, options: Options, folder: Path):
        torch.manual_seed(0)
        self.folder, self.accumulate = folder, options["accumulate"]
        self.batch = options["batch"] * self.accumulate
        self.accelerator = Accelerator(mixed_precision=shared.mixed(options["precision"]), cpu=True)
        diffusion = small(options, options.get("steps") or 250)
        self.parameters = sum(p.numel() for p in diffusion.parameters())
        optimiser = torch.optim.Adam(diffusion.parameters(), lr=8e-5, betas=(0.9, 0.99))
        self.ema = EMA(diffusion, beta=0.995, update_every=10)
        parts, self.number, self.seconds = shared.restored(folder, optimiser)
        if parts:
            self.ema.load_state_dict(parts["ema"])  # it has the network too
        self.model, self.optimiser = self.accelerator.prepare(diffusion.train(), optimiser)
        loader = shared.batches(shared.training_pictures(options), options["batch"])
        self.pictures = shared.endless(self.accelerator.prepare(loader))

    def step(self) -> None:
        for _ in range(self.accumulate):
            with self.accelerator.autocast():
                loss = self.model(next(self.pictures).float() / 255) / self.accumulate
            loss.item()
            self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.ema.update()
        self.number += 1

    def save(self) -> None:
        shared.save(self.folder, {"ema": self.ema.state_dict()}, self.optimiser, self.number, self.seconds)


def trainer(options: Options, folder: Path, steps: int) -> DDPTrainer:
    return DDPTrainer(options, folder)


def drawn(options: Options, folder: Path) -> np.ndarray:
    """By the averaged weights of a training."""
    return np.concatenate(list(pictures(DDPTrainer(options, folder).ema.ema_model, options)))


def sampled(options: Options, folder: Path) -> None:
    for number, part in enumerate(pictures(small(options, options["steps"]), options)):
        np.save(folder / f"{number}.npy", part)
