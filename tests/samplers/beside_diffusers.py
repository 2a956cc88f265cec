"""One small network, one start and one grid of times for diffusers' solvers and for ours.

diffusers keeps alphas_cumprod and sigma/alpha in float32.  `one_grid` checks that table against ours and puts ours in
its place, in float64.  It matters on the cosine alone, whose alpha(1) is 5e-5: there the float32 table is off by 2e-5
of itself, of which Euler makes 2e-4 and Heun, whose first step is 20,000 sigma/alpha long, 0.4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sfumato import samplers, schedules
from sfumato.denoiser import Cond, Denoiser, NetworkDenoiser
from sfumato.noise import PRIOR, RowNoise, normal
from sfumato.samplers import Sampler
from sfumato.schedules import Discrete

T = 1000
STEPS = (5, 10, 20, 50)
SEEDS = [3, 8, 11]
BETAS: dict[str, dict[str, Any]] = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction"}
# No eps on the cosine: some of theirs work in float32, where x - sigma eps has no digits left to be divided by 5e-5.
CASES = [("linear", "eps"), ("cosine", "v")]


class Network:
    """y (B, 4) for x (B, 4) and the index i - 1: v is smooth in both, and eps is said as alpha v + sigma x."""

    def __init__(self, betas: str, target: str):
        draw = torch.Generator().manual_seed(0)
        self.into, self.rate, self.phase, self.out = (
            torch.randn(shape, generator=draw, dtype=torch.float64) / scale
            for shape, scale in (((4, 16), 2), ((16,), 1), ((16,), 1), ((16, 4), 4))
        )
        made = schedules.from_spec({"name": betas, "steps": T})
        assert isinstance(made, Discrete)
        self.schedule, self.target = made, target

    def __call__(self, x: Tensor, index: Tensor, cond: Cond | None = None) -> Tensor:
        i, x = index.double().reshape(-1, 1) + 1, x.double()
        v = torch.tanh(x @ self.into + self.rate * torch.sin(i / 300 + self.phase)) @ self.out
        if self.target == "v":
            return v
        return self.schedule.alpha(i / T) * v + self.schedule.sigma(i / T) * x

    def denoiser(self) -> Denoiser:
        return NetworkDenoiser(self, self.schedule, target=self.target)

    def ours(self, sampler: str | Sampler, times: Tensor) -> Tensor:
        x_T, _ = start()
        return samplers.sample(self.denoiser(), x_T, sampler, grid=times, seeds=SEEDS)


def start() -> tuple[Tensor, RowNoise]:
    """x_T (3, 4) in float64 and the noise of every step."""
    x_T = normal(SEEDS, (4,), PRIOR).double()
    return x_T, RowNoise(SEEDS, x_T)


def made(kind: type, betas: str, target: str, **options: Any) -> Any:
    """One of diffusers' solvers on T steps of these betas, its grid trailing unless options say otherwise."""
    settings = {"timestep_spacing": "trailing", **BETAS[betas], **options}
    return kind(num_train_timesteps=T, prediction_type=PREDICTIONS[target], **settings)


def one_grid(solver: Any, schedule: Discrete, steps: int) -> Tensor:
    """Set `steps` steps of theirs; the times of its calls, falling, and that of its end, float64."""
    torch.testing.assert_close(solver.alphas_cumprod.double(), schedule.alphas_cumprod, rtol=5e-5, atol=0)
    solver.alphas_cumprod = schedule.alphas_cumprod
    solver.set_timesteps(steps)
    times = (solver.timesteps.double() + 1) / T
    end = 0.0
    if hasattr(solver, "sigmas"):
        if solver.config.use_karras_sigmas:  # between steps; they tell the network the step near to it, or below it
            times = schedule.time_of_logsnr(-2 * solver.sigmas[:-1].double().log())
        end = 0.0 if solver.sigmas[-1] == 0 else 1 / T
        ratios = torch.exp(-0.5 * schedule.logsnr(torch.cat([times, times.new_full((1,), end)])))
        torch.testing.assert_close(solver.sigmas.double(), ratios, rtol=5e-5, atol=1e-6)
        solver.sigmas = ratios
        solver.set_begin_index(0)  # on Karras' grid two calls may bear one integer, by which they would find the step
    return torch.cat([times, times.new_full((1,), end)])


@torch.no_grad()
def walked(solver: Any, network: Network, times: Tensor, x: Tensor) -> Tensor:
    """Where theirs ends from the state x at times[0], told the time of every call."""
    for t, index in zip(solver.timesteps, times * T - 1, strict=False):
        y = network(solver.scale_model_input(x, t), index)
        x = solver.step(y, t, x).prev_sample
    return x


def agree(x: Tensor, y: Tensor, tolerance: float = 1e-5) -> None:
    """To the tolerance, relative to the largest value where that is above 1."""
    assert bool(torch.isfinite(x).all())
    assert (x - y).abs().max() <= tolerance * max(1.0, y.abs().max().item())
