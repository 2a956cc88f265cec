"""Restart: where it goes, what it adds, and what that is good for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sfumato import grids, schedules
from sfumato.samplers.edm import heun
from sfumato.samplers.loop import Sampler, walk
from sfumato.samplers.restart import restart
from sfumato.testbed import GaussianMixture
from sfumato.testbed.moments import Moments, Noise, pushed, truth

RECTIFIED = schedules.rectified()


def moved(sampler: Sampler, times: Sequence[float], data: GaussianMixture, start: Moments) -> Moments:
    def run(x: Tensor, noise: Noise) -> Tensor:
        *_, (_, end, _) = walk(data.denoiser(RECTIFIED), x, sampler, torch.tensor(times, dtype=torch.float64), noise)
        return end

    return pushed(run, start)


def visited(sampler: Sampler, steps: int, data: GaussianMixture) -> list[float]:
    times = grids.trailing(RECTIFIED, steps)
    seen = walk(data.denoiser(RECTIFIED), torch.ones(1, 2), sampler, times, lambda k: torch.ones(1, 2))
    return [round(float(t), 6) for t, _, _ in seen]


def test_it_goes_down_up_and_down_again(gaussian_2d: GaussianMixture) -> None:
    """On t = k/5 sigma/alpha = t/(1 - t) is 4, 1.5, 0.67, 0.25: the steps 0.8 -> 0.6 -> 0.4 -> 0.2 meet (0.3, 2)."""
    twice = partial(restart, restarts=2, low=0.3, high=2.0)
    down, again = [1.0, 0.8, 0.6, 0.6, 0.4, 0.4, 0.2], [0.8, 0.6, 0.6, 0.4, 0.4, 0.2]
    assert visited(twice, 5, gaussian_2d) == [*down, *again, *again, 0.2, 0.0]
    low = partial(restart, restarts=1, low=0.0, high=0.3)  # 0.2 -> 0 meets it too, but ends without noise
    assert visited(low, 5, gaussian_2d) == [*down, 0.4, 0.2, 0.2, 0.0]
    narrow = partial(restart, restarts=1, low=0.7, high=1.4)
    assert visited(narrow, 5, gaussian_2d) == [1.0, 0.8, 0.6, 0.6, 0.4, 0.6, 0.4, 0.4, 0.2, 0.2, 0.0]


@pytest.mark.parametrize("sampler", [restart, partial(restart, low=1e-4, high=1e-3)])
def test_with_nothing_to_repeat_it_is_heun(sampler: Sampler, gaussian_2d: GaussianMixture) -> None:
    steps = 1 if sampler is restart else 6
    assert visited(sampler, steps, gaussian_2d) == visited(heun, steps, gaussian_2d)


@pytest.mark.parametrize("end", [0.0, 0.2])
def test_it_is_heun_and_the_forward_process_in_turn(end: float, gaussian_2d: GaussianMixture) -> None:
    """Heun's part from t_max = 0.7 to t_min = 0.2, and x_0.7 = 3/8 x_0.2 + N(0, 0.49 - (3/8 0.2)^2), by hand."""
    times = [0.9, 0.8, 0.7, 0.6, 0.35, 0.2, *[0.1, 0.0][: 2 if end == 0 else 0]]
    start = truth(gaussian_2d, RECTIFIED, torch.tensor(0.9))
    at = moved(heun, times[:6], gaussian_2d, start)
    for _ in range(3):
        noise = (0.49 - (3 / 8 * 0.2) ** 2) * torch.eye(2, dtype=torch.float64)
        up = Moments(3 / 8 * at.mean, (3 / 8) ** 2 * at.covariance + noise)
        at = moved(heun, times[2:6], gaussian_2d, up)
    if end == 0:
        at = moved(heun, times[5:], gaussian_2d, at)
    ours = moved(partial(restart, restarts=3, low=0.26, high=2.0), times, gaussian_2d, start)
    assert ours.distance(at) < 1e-12


def test_it_forgets_what_was_wrong(gaussian_2d: GaussianMixture) -> None:
    """From a start with twice the covariance, each restart over (0.1, 2) leaves less of the error."""
    times = torch.linspace(0.9, 0.1, 41, dtype=torch.float64).tolist()
    right = truth(gaussian_2d, RECTIFIED, torch.tensor(0.9, dtype=torch.float64))
    wrong = Moments(right.mean + 1, 2 * right.covariance)
    aim = truth(gaussian_2d, RECTIFIED, torch.tensor(0.1, dtype=torch.float64))
    errors = [moved(heun, times, gaussian_2d, wrong).distance(aim)]
    errors += [moved(partial(restart, restarts=k), times, gaussian_2d, wrong).distance(aim) for k in (1, 2, 4)]
    assert all(after < 0.6 * before for before, after in pairwise(errors)), errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"restarts": 0}, "option restarts of sampler restart must be a whole number >= 1; got 0"),
        ({"low": 2.0, "high": 1.0}, "restart needs 0 <= low < high, both sigma/alpha; got low=2.0, high=1.0"),
        ({"low": -1.0}, "restart needs 0 <= low < high"),
    ],
)
def test_mistakes_are_answered(options: dict[str, float], words: str, gaussian_2d: GaussianMixture) -> None:
    with pytest.raises(ValueError, match=words):
        visited(partial(restart, **options), 4, gaussian_2d)  # type: ignore[arg-type]
