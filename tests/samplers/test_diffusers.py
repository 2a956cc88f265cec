"""diffusers' own UNet and schedules beside ours: the same weights, noise and steps give the same picture.

Both see the same float32 UNet.  Its output is that of an untrained network, so without clipping the states grow; the
agreement is relative to the largest value.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from torch import Tensor

from sfumato import samplers, schedules
from sfumato.denoiser import Denoiser, NetworkDenoiser
from sfumato.guidance import clip
from sfumato.noise import PRIOR, RowNoise, normal

SEEDS = [3, 8]


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        add_attention=False,
    )
    return net.eval()


def ours(unet: UNet2DModel, schedule: schedules.Schedule, clipped: bool) -> Denoiser:
    denoiser = NetworkDenoiser(lambda x, t, cond: unet(x, t).sample, schedule)
    return clip(denoiser) if clipped else denoiser


def start() -> tuple[Tensor, Callable[[int], Tensor]]:
    x_T = normal(SEEDS, (1, 8, 8), PRIOR)
    return x_T, RowNoise(SEEDS, x_T)


def options(total: int, clipped: bool, spacing: str) -> dict[str, object]:
    """Betas meant for 1,000 steps, scaled to `total`, as ours are."""
    scale = 1000 / total
    return {
        "num_train_timesteps": total,
        "beta_start": 1e-4 * scale,
        "beta_end": 0.02 * scale,
        "clip_sample": clipped,
        "timestep_spacing": spacing,
    }


def agree(x: Tensor, y: Tensor) -> None:
    assert bool(torch.isfinite(x).all())
    assert (x - y).abs().max() <= 1e-4 * max(1.0, y.abs().max().item())


@torch.no_grad()
def check_ddpm(
    unet: UNet2DModel, monkeypatch: pytest.MonkeyPatch, total: int, steps: int, grid: str, variance: str, clipped: bool
) -> None:
    spacing = {"trailing": "trailing", "uniform": "linspace"}[grid]
    theirs = DDPMScheduler(variance_type=f"fixed_{variance}", **options(total, clipped, spacing))
    theirs.set_timesteps(steps)
    x_T, noise = start()
    x = x_T
    for k, i in enumerate(theirs.timesteps):
        z = noise(k) if k + 1 < steps else torch.zeros_like(x)  # theirs adds noise to the last step unless i = 0
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, z=z, **__: z)
        x = theirs.step(unet(x, i).sample, i, x).prev_sample
    denoiser = ours(unet, schedules.linear(total), clipped)
    sampler = f"ancestral:variance={variance}"
    agree(samplers.sample(denoiser, x_T, sampler, steps=steps, grid=grid, seeds=SEEDS), x)


@pytest.mark.parametrize("clipped", [True, False])
@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize(("steps", "grid"), [(50, "trailing"), (10, "trailing"), (12, "uniform"), (7, "trailing")])
def test_ddpm(
    unet: UNet2DModel, monkeypatch: pytest.MonkeyPatch, steps: int, grid: str, variance: str, clipped: bool
) -> None:
    check_ddpm(unet, monkeypatch, 50, steps, grid, variance, clipped)


@pytest.mark.slow
def test_ddpm_of_a_thousand_steps(unet: UNet2DModel, monkeypatch: pytest.MonkeyPatch) -> None:
    check_ddpm(unet, monkeypatch, 1000, 1000, "trailing", "small", clipped=True)


@torch.no_grad()
@pytest.mark.parametrize("clipped", [True, False])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [50, 10, 5])
def test_ddim(unet: UNet2DModel, steps: int, eta: float, clipped: bool) -> None:
    """Only the trailing spacing: their DDIM steps down by T // S, which is not the distance of their other grids.

    Our clipping makes eps consistent with the clipped x_0, which they call use_clipped_model_output.
    """
    theirs = DDIMScheduler(set_alpha_to_one=True, **options(50, clipped, "trailing"))
    theirs.set_timesteps(steps)
    x_T, noise = start()
    x = x_T
    for k, i in enumerate(theirs.timesteps):
        y = unet(x, i).sample
        x = theirs.step(y, i, x, eta=eta, use_clipped_model_output=True, variance_noise=noise(k)).prev_sample
    denoiser = ours(unet, schedules.linear(50), clipped)
    agree(samplers.sample(denoiser, x_T, f"ddim:eta={eta}", steps=steps, grid="trailing", seeds=SEEDS), x)


@torch.no_grad()
def test_cosine_betas_and_v_prediction(unet: UNet2DModel) -> None:
    """Their squaredcos_cap_v2 is our cosine, their v_prediction our v."""
    theirs = DDIMScheduler(
        num_train_timesteps=50,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
    )
    theirs.set_timesteps(10)
    x_T, _ = start()
    x = x_T
    for i in theirs.timesteps:
        x = theirs.step(unet(x, i).sample, i, x).prev_sample
    schedule = schedules.cosine(50)
    torch.testing.assert_close(schedule.alphas_cumprod.float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-7)
    denoiser = NetworkDenoiser(lambda x, t, cond: unet(x, t).sample, schedule, target="v")
    agree(samplers.sample(denoiser, x_T, "ddim", steps=10), x)
