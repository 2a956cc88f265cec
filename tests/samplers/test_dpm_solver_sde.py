"""DPM-Solver++(2M) SDE beside diffusers' own, on one network with one noise."""

from __future__ import annotations

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor, nn

from sfumato import grids, samplers, schedules
from sfumato.denoiser import NetworkDenoiser
from sfumato.noise import PRIOR, RowNoise, normal
from sfumato.samplers.ancestral import ancestral
from sfumato.samplers.dpm_solver_sde import dpmpp_2m_sde
from sfumato.samplers.loop import walk
from sfumato.testbed import GaussianMixture

SEEDS = [3, 8]


class Toy(nn.Module):
    """eps as a small network of x and the step's index."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.time, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(1, 8), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor, i: Tensor, cond: object = None) -> Tensor:
        told = self.time(i.float().reshape(-1, 1) / 100)
        return x + self.last(torch.tanh(self.first(x) + told[:, :, None, None]))


@torch.no_grad()
@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("steps", [10, 50])
def test_diffusers(steps: int, beta_schedule: str) -> None:
    total, net = 100, Toy().eval()
    theirs = DPMSolverMultistepScheduler(
        num_train_timesteps=total,
        beta_start=1e-3,
        beta_end=0.2,
        beta_schedule=beta_schedule,
        algorithm_type="sde-dpmsolver++",
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    theirs.set_timesteps(steps)
    x_T = normal(SEEDS, (1, 8, 8), PRIOR)
    noise, x = RowNoise(SEEDS, x_T), x_T
    for k, i in enumerate(theirs.timesteps):
        z = noise(k) if k + 1 < steps else torch.zeros_like(x)
        x = theirs.step(net(x, i), i, x, variance_noise=z).prev_sample
    schedule = schedules.linear(total) if beta_schedule == "linear" else schedules.cosine(total)
    ours = samplers.sample(NetworkDenoiser(net, schedule), x_T, dpmpp_2m_sde, steps=steps, seeds=SEEDS)
    assert bool(torch.isfinite(x).all())
    assert (ours - x).abs().max() <= 1e-4 * max(1.0, x.abs().max().item())


def test_of_two_steps_it_is_ancestral(gaussian_2d: GaussianMixture) -> None:
    """The first step has no predecessor and the last none that counts."""
    schedule = schedules.linear(1000)
    x_T = torch.tensor([[0.3, -1.0], [1.1, 0.4]], dtype=torch.float64)
    ends = []
    for sampler in (dpmpp_2m_sde, ancestral):
        path = walk(gaussian_2d.denoiser(schedule), x_T, sampler, grids.trailing(schedule, 2), RowNoise(SEEDS, x_T))
        ends.append([x for _, x, _ in path][-1])
    torch.testing.assert_close(*ends)
