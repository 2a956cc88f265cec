"""Every grid, for every number of steps: from t = 1 to t = 0, no step twice, none left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from sfumato import grids, schedules
from sfumato.grids import GRIDS
from sfumato.schedules import Discrete


def of_steps(steps: int) -> Discrete:
    return schedules.from_betas([0.001] * steps)


def check(times: torch.Tensor, steps: int) -> None:
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert times[0] == 1
    assert times[-1] == 0
    assert bool((times[:-1] > times[1:]).all())


@pytest.mark.parametrize("grid", sorted(GRIDS))
@pytest.mark.parametrize("total", [1, 2, 3, 10, 97, 1000])
def test_every_number_of_steps(grid: str, total: int) -> None:
    schedule = of_steps(total)
    for steps in range(1, total + 1):
        times = GRIDS[grid](schedule, steps)
        check(times, steps)
        i = times * total
        assert bool(((i - i.round()).abs() < 1e-9).all())
        assert i.round().unique().numel() == steps + 1


@pytest.mark.parametrize("grid", sorted(GRIDS))
@given(total=st.integers(1, 5000), part=st.floats(0, 1))
def test_any_total(grid: str, total: int, part: float) -> None:
    steps = 1 + round(part * (total - 1))
    check(GRIDS[grid](of_steps(total), steps), steps)


@pytest.mark.parametrize("grid", sorted(GRIDS))
@pytest.mark.parametrize("total", [1, 2, 10, 1000])
def test_as_many_steps_as_there_are_visits_each_once(grid: str, total: int) -> None:
    times = GRIDS[grid](of_steps(total), total)
    assert torch.equal(times, torch.arange(total, -1, -1, dtype=torch.float64) / total)


@pytest.mark.parametrize("grid", sorted(GRIDS))
@pytest.mark.parametrize("schedule", [schedules.rectified(), schedules.edm(), schedules.cosine_continuous()])
def test_continuous_times(grid: str, schedule: schedules.Schedule) -> None:
    for steps in (1, 2, 7, 100, 3000):
        times = GRIDS[grid](schedule, steps)
        check(times, steps)
        if grid in COORDINATES:
            coordinate, inner = COORDINATES[grid]
            u = coordinate(schedule, times)[slice(1, -1) if inner else slice(None)]
            if len(u) > 2 and not bool(u.isinf().any()):
                torch.testing.assert_close(u.diff(), u.diff().mean().expand(len(u) - 1), rtol=1e-6, atol=0)


COORDINATES = {  # and whether its first and last steps are others
    "trailing": (lambda schedule, t: t, False),
    "uniform": (lambda schedule, t: t, False),
    "quadratic": (lambda schedule, t: t.sqrt(), False),
    "shifted": (lambda schedule, t: t / (3 - 2 * t), False),
    "ratio": (lambda schedule, t: (schedule.sigma(t) / schedule.alpha(t))[1:], False),
    "karras": (lambda schedule, t: (schedule.sigma(t) / schedule.alpha(t)) ** (1 / 7), True),
    "logsnr": (lambda schedule, t: schedule.logsnr(t), True),
}


def test_every_grid_has_its_coordinate() -> None:
    assert set(COORDINATES) == set(GRIDS)


@pytest.mark.parametrize("steps", [2, 3, 18, 256])
def test_karras_is_edm_equation_5(steps: int) -> None:
    i = np.arange(steps)
    theirs = (80 ** (1 / 7) + i / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    ours = 80 * grids.karras(schedules.edm(), steps)[:-1].numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_shifted_is_the_shift_of_signal_to_noise(shift: float) -> None:
    """On the straight path the grid visits where sigma/alpha is `shift` times that of the equal one."""
    path = schedules.rectified()
    plain, moved = grids.trailing(path, 9)[1:-1], grids.shifted(path, 9, shift=shift)[1:-1]
    torch.testing.assert_close(moved / (1 - moved), shift * plain / (1 - plain), rtol=1e-12, atol=0)


@pytest.mark.parametrize("grid", ["shifted:shift=0", "shifted:shift=-1", "karras:rho=0"])
def test_options_that_make_no_grid(grid: str) -> None:
    name, option = grid.split(":")
    key, value = option.split("=")
    with pytest.raises(ValueError, match=f"option {key} is a number above 0"):
        GRIDS[name](of_steps(10), 3, **{key: float(value)})


def test_trailing_and_uniform_by_hand() -> None:
    ten = of_steps(10)
    assert (grids.trailing(ten, 5) * 10).round().tolist() == [10, 8, 6, 4, 2, 0]
    assert (grids.uniform(ten, 4) * 10).round().tolist() == [10, 7, 4, 1, 0]
    assert (grids.uniform(ten, 1) * 10).round().tolist() == [10, 0]
    assert (grids.quadratic(ten, 3) * 10).round().tolist() == [10, 4, 1, 0]
    # where squares fall together on one step they move up: 0.1 0.4 0.9 1.6 2.5 ... -> 1 2 3 4 5 ...
    assert (grids.quadratic(ten, 10) * 10).round().tolist() == list(range(10, -1, -1))
    assert (grids.quadratic(ten, 8) * 10).round().tolist() == [10, 8, 6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("total", [100, 1000])
def test_uniform_is_diffusers_linspace_for_every_number_of_steps(total: int) -> None:
    theirs = DDPMScheduler(num_train_timesteps=total, timestep_spacing="linspace")
    for steps in range(2, total + 1):
        theirs.set_timesteps(steps)
        ours = (grids.uniform(of_steps(total), steps)[:-1] * total).round().long() - 1
        assert torch.equal(ours, theirs.timesteps), steps


@pytest.mark.parametrize("total", [100, 1000])
def test_trailing_is_diffusers_trailing(total: int) -> None:
    """Wherever their float stride is exact: elsewhere it may round a tie anyhow, and even make S + 1 steps."""
    theirs = DDIMScheduler(num_train_timesteps=total, timestep_spacing="trailing")
    compared = 0
    for steps in range(1, total + 1):
        stride = total / steps
        if stride * steps != total or not (stride * 64).is_integer():
            continue
        theirs.set_timesteps(steps)
        ours = (grids.trailing(of_steps(total), steps)[:-1] * total).round().long() - 1
        assert torch.equal(ours, theirs.timesteps), steps
        compared += 1
    assert compared > 10


@pytest.mark.parametrize("grid", sorted(GRIDS))
def test_wrong_numbers_of_steps(grid: str) -> None:
    ten = of_steps(10)
    for steps in (0, -1, 11, 1.5, 1.0, True, None, "5"):
        with pytest.raises(ValueError, match=r"steps must be a whole number from 1 to 10; got "):
            GRIDS[grid](ten, steps)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"steps must be a whole number >= 1; got 0"):
        GRIDS[grid](schedules.rectified(), 0)


def test_pairs() -> None:
    steps = grids.pairs(torch.tensor([1.0, 0.5, 0.25, 0.0]))
    assert [(t.item(), s.item()) for t, s in steps] == [(1, 0.5), (0.5, 0.25), (0.25, 0)]
    assert all(t.dtype == torch.float64 and t.ndim == 0 for t, _ in steps)
    assert len(grids.pairs(torch.tensor([0.7, 0.2]))) == 1  # a part of the way
    assert [(t.item(), s.item()) for t, s in grids.pairs(torch.tensor([0.25, 0.5, 1.0]))] == [(0.25, 0.5), (0.5, 1)]


@pytest.mark.parametrize(
    "bad", [[1.0], [], [0.0, 1.0, 0.5], [1.0, 0.5, 0.5, 0.0], [1.1, 0.0], [1.0, -0.1], [1.0, np.nan, 0.0]]
)
def test_a_grid_that_turns_or_stands_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="a grid is a list of at least two times falling"):
        grids.pairs(torch.tensor(bad))
