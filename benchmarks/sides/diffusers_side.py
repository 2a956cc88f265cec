"""diffusers as its documentation uses it: the loop of examples/unconditional_image_generation/train_unconditional.py.

Its defaults: eps of 1,000 linear betas, AdamW(1e-4, betas 0.95 and 0.999, decay 1e-6), 500 steps of warm-up and a
cosine, gradients clipped at 1, EMAModel with a warm-up to 0.9999, through accelerate.  Pictures come from memory
instead of files, and are not mirrored.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file

from .. import shared
from ..terms import Options

SAMPLERS = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler, "dpm-solver++": DPMSolverMultistepScheduler}
NETWORKS = {"ddpm-cifar10": (128, 256, 256, 256), "tiny": (32, 32, 32, 32)}  # channels of google/ddpm-cifar10-32


def made(name: str, folder: Path) -> None:
    """The network of DDPM for CIFAR-10, weights of seed 0, as `save_pretrained` writes it; and one of its answers."""
    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=32,
        block_out_channels=NETWORKS[name],
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    ).eval()
    net.save_pretrained(folder)
    x, steps = torch.randn(8, 3, 32, 32), torch.arange(8) * 125 + 62
    with torch.no_grad():
        save_file({"x": x, "steps": steps, "y": net(x, steps).sample}, folder / "expected.safetensors")


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> UNet2DModel:
    return UNet2DModel.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True)


def forward(options: Options, folder: Path) -> Any:
    dtype = torch.bfloat16 if options["precision"] == "bfloat16" else torch.float32
    net = loaded(folder, dtype).eval()
    return lambda x, steps: net(x.to(dtype), steps).sample.to(x.dtype)


def small(options: Options) -> UNet2DModel:
    """A network for MNIST of the width and the attention that the options say."""
    levels = range(len(options["channels"]))
    attends = ["Attn" if level in options["attention"] else "" for level in levels]
    return UNet2DModel(
        sample_size=options["size"],
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=tuple(options["channels"]),
        down_block_types=tuple(f"{attend}DownBlock2D" for attend in attends),
        up_block_types=tuple(f"{attend}UpBlock2D" for attend in reversed(attends)),
        norm_num_groups=options["groups"],
    )


def pictures(net: UNet2DModel, options: Options) -> Iterator[np.ndarray]:
    """n pictures in batches, uint8 (B, 28, 28, 1), by a sampler of the table."""
    solver = SAMPLERS[options["sampler"]].from_config(DDPMScheduler(num_train_timesteps=1000).config)
    pipeline = DDPMPipeline(net.eval(), solver)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(options.get("seed", 0))
    for rows in shared.in_batches(options["n"], options["rows"]):
        found = pipeline(rows, generator, num_inference_steps=options["steps"], output_type="np").images
        yield shared.seen(np.asarray(found))


@final
class DiffusersTrainer:
    """The script's loop, a step at a time."""

    falls = True  # its learning rate, so it must know how many steps there will be

    def __init__(self, options: Options, folder: Path, steps: int):
        torch.manual_seed(0)
        self.folder, self.batch = folder, options["batch"]
        self.accelerator = Accelerator(mixed_precision=shared.mixed(options["precision"]), cpu=True)
        net = loaded(shared.network(options)) if "network" in options else small(options)
        self.parameters = sum(p.numel() for p in net.parameters())
        self.noise = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
        parts, self.number, self.seconds = shared.restored(folder, optimiser)
        if parts:
            net.load_state_dict(parts["net"])
        self.ema = EMAModel(
            net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4, model_config=net.config
        )
        if parts:
            self.ema.shadow_params = [parts["ema"][str(i)] for i in range(len(self.ema.shadow_params))]
            self.ema.optimization_step = self.number
        rate = get_scheduler("cosine", optimiser, num_warmup_steps=500, num_training_steps=steps)
        for _ in range(self.number):
            rate.step()
        loader = shared.batches(shared.training_pictures(options), self.batch)
        self.net, self.optimiser, loader, self.rate = self.accelerator.prepare(net.train(), optimiser, loader, rate)
        self.pictures = shared.endless(loader)

    def step(self) -> None:
        x_0 = next(self.pictures).float() / 127.5 - 1
        eps = torch.randn_like(x_0)
        t = torch.randint(0, self.noise.config.num_train_timesteps, (len(x_0),))
        x_t = self.noise.add_noise(x_0, eps, t)
        with self.accelerator.accumulate(self.net):
            loss = F.mse_loss(self.net(x_t, t).sample.float(), eps.float())
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.net.parameters(), 1.0)
            self.optimiser.step()
            self.rate.step()
            self.optimiser.zero_grad()
        self.ema.step(self.net.parameters())
        loss.detach().item()
        self.number += 1

    def save(self) -> None:
        averages = {str(i): x for i, x in enumerate(self.ema.shadow_params)}
        parts = {"net": self.net.state_dict(), "ema": averages}
        shared.save(self.folder, parts, self.optimiser, self.number, self.seconds)


def trainer(options: Options, folder: Path, steps: int) -> DiffusersTrainer:
    return DiffusersTrainer(options, folder, steps)


def drawn(options: Options, folder: Path) -> np.ndarray:
    """By the averaged weights of a training."""
    trained, net = DiffusersTrainer(options, folder, 1), small(options)
    trained.ema.copy_to(net.parameters())
    return np.concatenate(list(pictures(net, options)))


def sampled(options: Options, folder: Path) -> None:
    for number, part in enumerate(pictures(small(options), options)):
        np.save(folder / f"{number}.npy", part)


if __name__ == "__main__":
    made(sys.argv[1], Path(sys.argv[2]))
