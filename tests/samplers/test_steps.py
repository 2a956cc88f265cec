"""Any number of steps runs, from the prior to t = 0, with every sampler on every grid."""

from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfumato import gaussian, samplers, schedules
from sfumato.denoiser import Cond, Denoiser, Prediction, from_x0
from sfumato.grids import GRIDS, pairs
from sfumato.samplers import SAMPLERS, ddim
from sfumato.samplers.exponential import long
from sfumato.samplers.loop import Noise, Query, Steps, Walk, walk
from sfumato.samplers.refused import why
from sfumato.schedules import Schedule
from sfumato.testbed import GaussianMixture


def schedule_of(total: int) -> schedules.Discrete:
    return schedules.linear(total) if total > 20 else schedules.cosine(total)


EVERY = list(product(sorted(SAMPLERS), sorted(GRIDS)))


class Shrink(Denoiser):
    """The cheapest Denoiser: x0 = x/2.  It writes down what it was asked."""

    def __init__(self, schedule: Schedule):
        self.schedule, self.times = schedule, []  # type: ignore[var-annotated]

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        assert t.shape == (len(x_t),)
        assert not torch.is_grad_enabled()
        self.times.append(float(t.max()))
        return from_x0(self.schedule, x_t, t, x_t / 2)


def refused(sampler: str, schedule: Schedule) -> bool:
    return why(sampler, SAMPLERS, schedule, torch.tensor([1.0, 0.0])) is not None


def check(denoiser: Denoiser, sampler: str, grid: str, steps: int, x_T: Tensor) -> None:
    if refused(sampler, denoiser.schedule):
        with pytest.raises(ValueError, match="is refused"):
            samplers.sample(denoiser, x_T, sampler, steps=steps, grid=grid)
        return
    seen = list(samplers.trajectory(denoiser, x_T, sampler, steps=steps, grid=grid))
    row = SAMPLERS[sampler]
    if row.calls is not None and row.extra is not None:
        assert steps <= len(seen) - 1 <= steps + row.extra(steps)  # long steps do with one call
        if steps > 1 and all(
            not long(denoiser.schedule, t, s) for t, s in pairs(GRIDS[grid](denoiser.schedule, steps))[:-1]
        ):
            assert len(seen) - 1 == steps + row.extra(steps)
    t, x, p = seen[0]
    assert p is not None
    if row.calls is not None:
        assert float(t) == 1
        assert torch.equal(x, x_T)
    t, x, p = seen[-1]
    assert float(t) == 0
    assert denoiser.schedule.sigma(t) == 0
    assert p is None
    assert x.shape == x_T.shape
    assert x.dtype == x_T.dtype
    assert all(bool(torch.isfinite(state).all()) for _, state, _ in seen)


@pytest.mark.parametrize(("sampler", "grid"), EVERY)
@pytest.mark.parametrize("total", [1, 2, 10])
def test_every_number_of_steps(total: int, sampler: str, grid: str, mixture_1d: GaussianMixture) -> None:
    x_T = torch.tensor([[0.3], [-1.2], [2.5]])
    for steps in range(1, total + 1):
        check(mixture_1d.denoiser(schedule_of(total)), sampler, grid, steps, x_T)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@given(steps=st.integers(1, 400), grid=st.sampled_from(sorted(GRIDS)))
@example(steps=999, grid="quadratic")
@settings(max_examples=3)
def test_any_number_of_a_thousand(sampler: str, steps: int, grid: str, mixture_1d: GaussianMixture) -> None:
    check(mixture_1d.denoiser(schedule_of(1000)), sampler, grid, steps, torch.tensor([[0.3], [-1.2]]))


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid", "quadratic"])
def test_every_step_between_any_two_of_a_thousand_times_is_defined(name: str) -> None:
    """All 500,500 pairs s < t: what any sampler on any grid multiplies by is finite, and no variance is negative.

    With the grids' own test (every S from 1 to 1,000 gives such pairs) and a few whole walks, every S is covered.
    """
    schedule = schedules.from_spec(name)
    t, s = (i.double() / 1000 for i in torch.tril_indices(1001, 1001, offset=-1))
    a_ts, v_ts = gaussian.transition_coefficients(schedule, s, t)
    c_t, c_0, u_ts = gaussian.posterior_coefficients(schedule, t, s)
    log_u = gaussian.posterior_log_variance(schedule, t, s)
    assert all(bool(x.isfinite().all()) for x in (a_ts, v_ts, c_t, c_0, u_ts, log_u))
    assert bool((v_ts > 0).all())
    assert bool(((u_ts > 0) == (s > 0)).all())
    assert bool((schedule.sigma(s).square() - u_ts >= -1e-15).all())  # DDIM's direction at eta = 1 is real


@pytest.mark.parametrize("name", ["linear_continuous", "cosine_continuous", "rectified", "edm"])
@pytest.mark.parametrize(("sampler", "grid"), EVERY)
def test_continuous_schedules(name: str, sampler: str, grid: str, mixture_1d: GaussianMixture) -> None:
    schedule = schedules.from_spec(name)
    for steps in (1, 2, 13):
        check(mixture_1d.denoiser(schedule), sampler, grid, steps, schedule.prior_std * torch.tensor([[0.3], [-1.2]]))


@pytest.mark.parametrize(
    "sampler", sorted(n for n, row in SAMPLERS.items() if row.calls == 1 and not refused(n, schedule_of(10)))
)
@pytest.mark.parametrize("total", [1, 2, 10, pytest.param(1000, marks=pytest.mark.slow)])
def test_as_many_steps_as_there_are_visit_each_once(total: int, sampler: str) -> None:
    denoiser = Shrink(schedule_of(total))
    samplers.sample(denoiser, torch.ones(1, 1), sampler, steps=total)
    extra = SAMPLERS[sampler].extra
    assert extra is not None
    assert total <= len(denoiser.times) <= total + extra(total)  # a start may ask more often, within the first steps
    visited = [round(t * total, 6) for t in denoiser.times]
    after_start = max(total - 4, 0)
    assert visited[len(visited) - after_start :] == list(range(after_start, 0, -1))
    assert set(range(1, total + 1)) <= set(visited)


def test_one_step_is_the_predicted_x0() -> None:
    denoiser = Shrink(schedule_of(1000))
    x_T = torch.tensor([[0.3], [-1.2]])
    for sampler, row in SAMPLERS.items():
        # the adaptive one takes its own steps, and annealed Langevin moves x at t = 1 before it is denoised
        if row.calls is not None and sampler != "langevin" and not refused(sampler, denoiser.schedule):
            torch.testing.assert_close(samplers.sample(denoiser, x_T, sampler, steps=1), x_T / 2)


@pytest.mark.parametrize("steps", [0, -3, 11, 1.5, True, None])
def test_wrong_numbers_of_steps(steps: object) -> None:
    with pytest.raises(ValueError, match="steps must be a whole number from 1 to 10"):
        samplers.sample(Shrink(schedule_of(10)), torch.ones(1, 1), steps=steps)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "dimm"}, r"unknown sampler 'dimm'; did you mean 'ddim'.*ancestral, cold, ddim, ddim-sigma-hat"),
        ({"sampler": "ddim:etta=1"}, r"unknown option of sampler ddim 'etta'; did you mean 'eta'"),
        ({"sampler": "ddim:eta=1.5"}, r"eta must lie in \[0, 1\].*got 1.5"),
        ({"sampler": "ddim:eta=lots"}, r"option eta of sampler ddim is a number"),
        ({"sampler": "ancestral:variance=big"}, r"unknown variance 'big'.*large.*small"),
        ({"sampler": "ancestral:variance=learned"}, r"needs a network that predicts it"),
        ({"grid": "trialing"}, r"unknown grid 'trialing'; did you mean 'trailing'"),
        ({"grid": torch.tensor([1.0, 1.0, 0.0])}, r"a grid is a list of at least two times falling"),
        ({"seeds": [1]}, r"1 seeds for 2 rows"),
    ],
)
def test_mistakes_are_answered(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        samplers.sample(Shrink(schedule_of(10)), torch.ones(2, 1), **{"steps": 5, **options})  # type: ignore[arg-type]


def test_a_sampler_is_a_name_options_or_any_callable() -> None:
    denoiser, x_T = Shrink(schedule_of(10)), torch.tensor([[0.3], [-1.2]])
    by_text = samplers.sample(denoiser, x_T, "ddim:eta=0.5", steps=5)
    assert torch.equal(by_text, samplers.sample(denoiser, x_T, partial(ddim, eta=0.5), steps=5))
    assert not torch.equal(by_text, samplers.sample(denoiser, x_T, "ddim", steps=5))

    def mine(x: Tensor, times: Steps, schedule: Schedule, noise: Noise) -> Walk:
        for t, _ in times:
            p = yield Query(x, t)
            x = p.x0
        return x

    torch.testing.assert_close(samplers.sample(denoiser, x_T, mine, steps=3), x_T / 8)


def test_the_grid_can_be_given_as_times() -> None:
    """A start below t = 1 is a walk from a noised picture; every visited time is the one given."""
    denoiser = Shrink(schedule_of(1000))
    samplers.sample(denoiser, torch.ones(1, 1), grid=torch.tensor([0.6, 0.25, 0.1, 0.0], dtype=torch.float64))
    assert denoiser.times == [0.6, 0.25, 0.1]


def test_seeds_are_the_noise_and_nothing_else() -> None:
    denoiser, x_T = Shrink(schedule_of(10)), torch.tensor([[0.3], [0.3], [0.3]])
    drawn = samplers.sample(denoiser, x_T, "ancestral", steps=5, seeds=[4, 5, 4])
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    default = samplers.sample(denoiser, x_T, "ancestral", steps=5)
    assert torch.equal(default, samplers.sample(denoiser, x_T, "ancestral", steps=5, seeds=range(3)))
    for name, row in SAMPLERS.items():
        if refused(name, denoiser.schedule):
            continue
        moved = samplers.sample(denoiser, x_T, name, steps=5, seeds=[1, 2, 3])
        other = samplers.sample(denoiser, x_T, name, steps=5, seeds=[7, 8, 9])
        assert torch.equal(moved, other) != row.stochastic


def test_cond_reaches_the_denoiser() -> None:
    class Labels(Shrink):
        def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
            assert cond is not None
            return from_x0(self.schedule, x_t, t, cond["label"][:, None].to(x_t))

    x = samplers.sample(Labels(schedule_of(10)), torch.ones(2, 1), steps=4, cond={"label": torch.tensor([3, 8])})
    assert x.flatten().tolist() == [3, 8]


def test_leaving_early_closes_the_sampler_and_leaves_grad_as_it_was() -> None:
    closed = []

    def watched(x: Tensor, times: Steps, schedule: Schedule, noise: Noise) -> Walk:
        try:
            yield from ddim(x, times, schedule, noise)
        finally:
            closed.append(True)
        return x

    times = GRIDS["trailing"](schedule_of(10), 10)
    passing = walk(Shrink(schedule_of(10)), torch.ones(1, 1), watched, times, lambda k: torch.zeros(1, 1))
    for _ in range(3):
        next(passing)
        assert torch.is_grad_enabled()
    passing.close()
    assert closed == [True]


def test_an_error_of_the_denoiser_is_not_swallowed() -> None:
    class Broken(Shrink):
        def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
            next(iter(()))
            raise AssertionError

    with pytest.raises(RuntimeError, match="StopIteration"):
        samplers.sample(Broken(schedule_of(10)), torch.ones(1, 1), steps=3)
