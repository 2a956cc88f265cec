"""diffusers' solvers beside ours, where they agree: DDPM, DDIM, Euler, Heun, DPM-Solver++ 2M, UniPC of order 2.

One network, one x_T, one noise and one grid (`beside_diffusers`); what differs is in `test_diffusers_multistep`.
Only the trailing grid for DDIM: theirs steps down by T // S, which is not the distance of their other grids.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from torch import Tensor

from sfumato import samplers, schedules
from sfumato.denoiser import NetworkDenoiser
from sfumato.guidance import clip
from sfumato.noise import PRIOR, RowNoise, normal
from sfumato.testbed import GaussianMixture

from .beside_diffusers import BETAS, CASES, SEEDS, STEPS, Network, T, agree, made, one_grid, start, walked

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs, with numpy 2

ROWS: dict[str, type] = {
    "euler": EulerDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "dpmpp-2m": DPMSolverMultistepScheduler,
    "unipc-2": UniPCMultistepScheduler,
}


@pytest.mark.parametrize(("steps", "karras"), [(STEPS, False), ((10,), True)])
@pytest.mark.parametrize(
    ("name", "betas", "target"),
    [(name, *case) for name in ROWS for case in CASES if (name, case[0]) != ("heun", "cosine")],
)
def test_deterministic(name: str, betas: str, target: str, steps: tuple[int, ...], karras: bool) -> None:
    """Theirs of Euler and Heun walk x/alpha.  (Their Karras grid lies between steps; ours by that name is rounded.)"""
    network = Network(betas, target)
    for S in steps:
        theirs = made(ROWS[name], betas, target, use_karras_sigmas=karras)
        times = one_grid(theirs, network.schedule, S)
        x, _ = start()
        if name in ("euler", "heun"):
            x = x / network.schedule.alpha(times[0])
        agree(network.ours(name, times.unique_consecutive()), walked(theirs, network, times, x))


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, HeunDiscreteScheduler])
def test_their_euler_and_heun_start_from_the_prior_of_edm(kind: type) -> None:
    """N(0, sigma(1)^2 I), EDM's Algorithm 1; ours is DDPM's N(0, I), which is 1/sigma(1) = 1.00002 wider."""
    theirs, schedule = made(kind, "linear", "eps"), Network("linear", "eps").schedule
    theirs.set_timesteps(10)
    one = torch.ones((), dtype=torch.float64)
    torch.testing.assert_close(
        theirs.init_noise_sigma.double() * schedule.alpha(one), schedule.sigma(one), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(("eta", "clipped"), [(0.0, False), (0.5, True), (1.0, False)])
@pytest.mark.parametrize(("betas", "target"), CASES)
@torch.no_grad()
def test_ddim(betas: str, target: str, eta: float, clipped: bool) -> None:
    """Our clipping makes eps consistent with the clipped x_0, which they call use_clipped_model_output."""
    network = Network(betas, target)
    for steps in (5, 50):
        theirs = made(DDIMScheduler, betas, target, clip_sample=clipped)
        times = one_grid(theirs, network.schedule, steps)
        x_T, noise = start()
        x = x_T
        for k, i in enumerate(theirs.timesteps):
            y = network(x, i)
            x = theirs.step(y, i, x, eta=eta, use_clipped_model_output=True, variance_noise=noise(k)).prev_sample
        denoiser = clip(network.denoiser()) if clipped else network.denoiser()
        agree(samplers.sample(denoiser, x_T, f"ddim:eta={eta}", grid=times, seeds=SEEDS), x)


def with_noise(monkeypatch: pytest.MonkeyPatch, z: Tensor) -> None:
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: z)


@torch.no_grad()
def check_ddpm(
    monkeypatch: pytest.MonkeyPatch, betas: str, target: str, steps: int, spacing: str, variance: str, clipped: bool
) -> None:
    """Theirs adds noise in the last step too, unless it is that from i = 1; Algorithm 2 of DDPM has z = 0 there."""
    network = Network(betas, target)
    options = {"variance_type": f"fixed_{variance}", "clip_sample": clipped, "timestep_spacing": spacing}
    theirs = made(DDPMScheduler, betas, target, **options)
    times = one_grid(theirs, network.schedule, steps)
    x_T, noise = start()
    x = x_T
    for k, i in enumerate(theirs.timesteps):
        with_noise(monkeypatch, noise(k))
        x = theirs.step(network(x, i), i, x).prev_sample
    denoiser = clip(network.denoiser()) if clipped else network.denoiser()
    ours = samplers.sample(denoiser, x_T, f"ancestral:variance={variance}", grid=times, seeds=SEEDS)
    added = network.schedule.sigma(times[-2]) if variance == "large" and theirs.timesteps[-1] > 0 else 0.0
    agree(ours + added * noise(steps - 1), x)


@pytest.mark.parametrize(
    ("spacing", "variance", "clipped"),
    [("trailing", "small", True), ("trailing", "large", False), ("linspace", "large", True)],
)
@pytest.mark.parametrize(("betas", "target"), CASES)
def test_ddpm(
    monkeypatch: pytest.MonkeyPatch, betas: str, target: str, spacing: str, variance: str, clipped: bool
) -> None:
    for steps in (5, 50):
        check_ddpm(monkeypatch, betas, target, steps, spacing, variance, clipped)


@pytest.mark.slow
def test_ddpm_of_a_thousand_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    check_ddpm(monkeypatch, "linear", "eps", T, "trailing", "small", clipped=True)


@torch.no_grad()
def test_ddpm_ends_on_the_only_picture_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """For data at one point the exact chain ends there; theirs ends sqrt(v) z away from it, v = 1 - alpha-bar_100."""
    point, schedule = torch.tensor([[0.3, -0.2, 0.7, 0.1]]), Network("linear", "eps").schedule
    denoiser = GaussianMixture(torch.ones(1), point, torch.zeros(1, 4, 4)).denoiser(schedule)
    theirs = made(DDPMScheduler, "linear", "eps", variance_type="fixed_large", clip_sample=False)
    times = one_grid(theirs, schedule, 10)
    x_T, noise = start()
    x = x_T
    for k, (i, t) in enumerate(zip(theirs.timesteps, times, strict=False)):
        with_noise(monkeypatch, noise(k))
        x = theirs.step(denoiser(x, t.expand(len(x))).eps, i, x).prev_sample
    ours = samplers.sample(denoiser, x_T, "ancestral:variance=large", grid=times, seeds=SEEDS)
    torch.testing.assert_close(ours, point.double().expand(3, 4), rtol=0, atol=1e-12)
    agree(x - ours, (1 - theirs.alphas_cumprod[99]).sqrt() * noise(9))


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


OF_FIFTY: dict[str, tuple[schedules.Discrete, dict[str, Any]]] = {  # betas meant for 1,000 steps, scaled as ours are
    "eps": (schedules.linear(50), {"beta_start": 2e-3, "beta_end": 0.4}),
    "v": (schedules.cosine(50), BETAS["cosine"]),
}


@pytest.mark.parametrize("target", OF_FIFTY)
@torch.no_grad()
def test_their_own_unet(unet: UNet2DModel, target: str) -> None:
    """In float32 from end to end, with their own tables, fifty steps of training and ten of DDIM."""
    schedule, betas = OF_FIFTY[target]
    prediction = {"eps": "epsilon", "v": "v_prediction"}[target]
    theirs = DDIMScheduler(
        num_train_timesteps=50,
        prediction_type=prediction,
        timestep_spacing="trailing",
        clip_sample=False,
        **betas,
    )
    theirs.set_timesteps(10)
    torch.testing.assert_close(schedule.alphas_cumprod.float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-7)
    x_T = normal(SEEDS, (1, 8, 8), PRIOR)
    x, noise = x_T, RowNoise(SEEDS, x_T)
    for k, i in enumerate(theirs.timesteps):
        x = theirs.step(unet(x, i).sample, i, x, eta=1.0, variance_noise=noise(k)).prev_sample
    denoiser = NetworkDenoiser(lambda x, t, cond: unet(x, t).sample, schedule, target=target)
    agree(samplers.sample(denoiser, x_T, "ddim:eta=1.0", steps=10, seeds=SEEDS), x)
