"""The sampler meanflow, sent exact average velocities, follows the flow exactly, in as many steps as one likes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sfumato import grids, samplers, schedules
from sfumato.denoiser import Cond, Denoiser, Prediction
from sfumato.noise import PRIOR, normal
from sfumato.samplers.loop import walk
from sfumato.testbed import GaussianMixture

PATH = schedules.rectified()


class Average(Denoiser):
    """u = (x_t - x_s)/(t - s) of data on a line, whose flow keeps the order: F_s(x_s) = F_t(x_t) = p.

    Dimensions of x are so many lines.  It remembers the (t, s) it was asked for.
    """

    def __init__(self, mixture: GaussianMixture):
        self.schedule, self.mixture, self.asked = PATH, mixture, list[tuple[float, float]]()

    def distribution(self, x: Tensor, t: Tensor) -> Tensor:
        """F_t(x), (B, D)."""
        means = (1 - t)[:, None, None] * self.mixture.means[:, 0]
        std = ((1 - t).square()[:, None, None] * self.mixture.covariances[:, 0, 0] + t.square()[:, None, None]).sqrt()
        return (self.mixture.weights * torch.special.ndtr((x[..., None] - means) / std)).sum(2)

    def moved(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """x_s, by bisection."""
        p, low, high = self.distribution(x, t), torch.full_like(x, -30.0), torch.full_like(x, 30.0)
        for _ in range(70):
            middle = (low + high) / 2
            below = self.distribution(middle, s) < p
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return high

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        assert cond is not None
        span = cond["span"]
        self.asked.append((float(t[0]), float(t[0] - span[0])))
        u = (x_t - self.moved(x_t, t, t - span)) / span[:, None]
        return Prediction(x_t - t[:, None] * u, x_t + (1 - t[:, None]) * u)


@pytest.fixture
def x_T() -> Tensor:
    return normal(range(40), (3,), PRIOR).double()


@pytest.mark.parametrize("grid", ["trailing", "karras"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_any_number_of_steps_is_the_exact_flow(mixture_1d: GaussianMixture, x_T: Tensor, steps: int, grid: str) -> None:
    denoiser = Average(mixture_1d)
    one, zero = torch.ones(len(x_T), dtype=torch.float64), torch.zeros(len(x_T), dtype=torch.float64)
    truth = denoiser.moved(x_T, one, zero)
    ours = samplers.sample(denoiser, x_T, "meanflow", steps, grid)
    torch.testing.assert_close(ours, truth, rtol=0, atol=1e-10)
    times = grids.GRIDS[grid](PATH, steps)
    torch.testing.assert_close(torch.tensor(denoiser.asked), torch.stack([times[:-1], times[1:]], 1).float())
    assert float((truth - x_T).abs().mean()) > 0.3  # it went somewhere


def test_the_states_on_the_way_are_the_flows_own(mixture_1d: GaussianMixture, x_T: Tensor) -> None:
    denoiser = Average(mixture_1d)
    one = torch.ones(len(x_T), dtype=torch.float64)
    for t, x, _ in samplers.trajectory(denoiser, x_T, "meanflow", 5):
        torch.testing.assert_close(x, denoiser.moved(x_T, one, t * one), rtol=0, atol=1e-10)


def test_of_an_instantaneous_velocity_it_is_eulers_method(mixture_2d: GaussianMixture) -> None:
    """x <- x + (s - t) v(x, t), and so DDIM; noise is never asked for."""
    denoiser = mixture_2d.denoiser(PATH)
    x = x_T = normal(range(20), (2,), PRIOR).double()
    times = grids.trailing(PATH, 6)
    for t, s in grids.pairs(times):
        p = denoiser(x, t.expand(20))
        x = x + (s - t) * (p.eps - p.x0)
    *_, (_, ours, _) = walk(denoiser, x_T, samplers.meanflow, times, lambda k: pytest.fail("it is deterministic"))
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-13)
    torch.testing.assert_close(ours, samplers.sample(denoiser, x_T, "ddim", 6), rtol=0, atol=1e-13)


def test_joined_with_others_each_row_gets_its_own_span(mixture_1d: GaussianMixture, x_T: Tensor) -> None:
    """Two walks of different step counts in one call of the denoiser."""

    def walks() -> list[tuple[samplers.loop.Walk, Cond | None]]:
        return [
            (samplers.meanflow(x_T[:7], grids.pairs(grids.trailing(PATH, k)), PATH, lambda k: x_T[:7]), None)
            for k in (1, 3)
        ]

    denoiser = Average(mixture_1d)
    together = samplers.together(denoiser, walks())
    torch.testing.assert_close(together[0], together[1], rtol=0, atol=1e-10)
    torch.testing.assert_close(together[0], samplers.sample(denoiser, x_T[:7], "meanflow", 1), rtol=0, atol=1e-12)


def test_a_bent_path_is_refused(mixture_2d: GaussianMixture) -> None:
    with pytest.raises(ValueError, match="an average velocity is that of the straight path; take schedule rectified"):
        samplers.sample(mixture_2d.denoiser(schedules.cosine(10)), torch.zeros(2, 2), "meanflow", 2)
