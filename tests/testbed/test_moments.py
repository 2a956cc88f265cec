"""The propagation of moments itself, on maps that are written down here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato import schedules
from sfumato.samplers.loop import walk
from sfumato.samplers.sde import euler_maruyama
from sfumato.testbed import GaussianMixture
from sfumato.testbed.moments import Moments, Noise, fitted_order, pushed, truth, weak_errors

GENERATOR = torch.Generator().manual_seed(0)
OFFSET, START, FIRST, SECOND = (
    torch.randn(size, dtype=torch.float64, generator=GENERATOR) for size in (3, *[(3, 3)] * 3)
)
MEAN = torch.tensor([0.3, -1.0, 0.2], dtype=torch.float64)
COVARIANCE = START @ START.T + torch.eye(3)


def affine(x: Tensor, noise: Noise) -> Tensor:
    return OFFSET + x @ START.T + noise(7) @ FIRST.T + noise(2) @ SECOND.T


@pytest.mark.parametrize("room", [0, 1, 2, 5])
def test_an_affine_map_is_taken_apart(room: int) -> None:
    end = pushed(affine, Moments(MEAN, COVARIANCE), room)
    torch.testing.assert_close(end.mean, OFFSET + START @ MEAN)
    expected = START @ COVARIANCE @ START.T + FIRST @ FIRST.T + SECOND @ SECOND.T
    torch.testing.assert_close(end.covariance, expected)


@pytest.mark.parametrize(
    "bent",
    [
        lambda x, noise: x + noise(0).square(),
        lambda x, noise: x * noise(0),
        lambda x, noise: x + noise(0) / (1 + x.norm(dim=1, keepdim=True)),  # a step size by the norm
    ],
)
def test_what_is_not_affine_is_refused(bent) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="not affine"):
        pushed(bent, Moments(MEAN, COVARIANCE))


@pytest.mark.parametrize("again", [3, -1])
def test_noise_is_drawn_once(again: int) -> None:
    with pytest.raises(ValueError, match=rf"noise\({again}\): a sampler draws each k >= 0 once"):
        pushed(lambda x, noise: x + noise(3) + noise(again), Moments(MEAN, COVARIANCE))


def test_truth_is_that_of_draws(gaussian_2d: GaussianMixture) -> None:
    """x_t = alpha x_0 + sigma eps of 200,000 draws; five standard errors of the largest entry are 0.006."""
    schedule, t, n = schedules.rectified(), torch.tensor(0.3), 200_000
    noise = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x_t = (0.7 * gaussian_2d.sample(n, seed=3) + 0.3 * noise).numpy()
    at = truth(gaussian_2d, schedule, t)
    np.testing.assert_allclose(x_t.mean(0), at.mean, atol=0.01)
    np.testing.assert_allclose(np.cov(x_t.T), at.covariance, atol=0.01)


def test_errors_are_distances_between_the_end_and_the_truth_there(gaussian_2d: GaussianMixture) -> None:
    """A sampler that stands still: its error is how far the marginal moved."""
    schedule = schedules.rectified()
    grids = [torch.tensor([0.9, 0.5, s], dtype=torch.float64) for s in (0.4, 0.1)]
    errors = weak_errors(lambda denoiser, x, times, noise: x, gaussian_2d, schedule, grids)
    for times, error in zip(grids, errors, strict=True):
        before, after = (truth(gaussian_2d, schedule, times[i]) for i in (0, -1))
        square = (before.mean - after.mean).square().sum() + (before.covariance - after.covariance).square().sum()
        assert error == pytest.approx(float(square.sqrt()))


def test_the_guess_of_the_noise_does_not_matter(gaussian_2d: GaussianMixture) -> None:
    schedule, times = schedules.rectified(), torch.tensor([0.9, 0.7, 0.5, 0.4, 0.2], dtype=torch.float64)

    def run(x: Tensor, noise: Noise) -> Tensor:
        *_, (_, end, _) = walk(gaussian_2d.denoiser(schedule), x, euler_maruyama, times, noise)
        return end

    start = truth(gaussian_2d, schedule, times[0])
    assert pushed(run, start, 1).distance(pushed(run, start, 9)) < 1e-14


def test_fitted_order_of_a_power() -> None:
    assert fitted_order([10, 20, 40], [3e-2 * 2.0 ** (-1.5 * k) for k in range(3)]) == pytest.approx(1.5)
