"""Every sampler with every schedule, parameterisation, grid, number of steps and guidance; what is refused, and why.

The network says what is exactly true of x_0 ~ N(label/10, 0.5^2), in the words of its target, so that guidance by w is
exactly true of the mean w label/10 and the way from x_1 to x_0 is known.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfumato import parameterization as par
from sfumato import samplers
from sfumato.corruptions import PROCESSES, Cold
from sfumato.denoiser import Cond, Denoiser, NetworkDenoiser, Prediction, from_x0
from sfumato.gaussian import expand
from sfumato.grids import GRIDS
from sfumato.guidance import cfg
from sfumato.nn import MLP, Conditions, MLPConfig
from sfumato.noise import PRIOR, RowNoise, normal
from sfumato.parameterization import TARGETS
from sfumato.samplers import SAMPLERS
from sfumato.samplers.latent import encoded
from sfumato.samplers.loop import named, walk
from sfumato.samplers.refused import REFUSED, Refusal, why
from sfumato.schedules import Schedule

SPREAD = 0.5
DETERMINISTIC = sorted(name for name, row in SAMPLERS.items() if not row.stochastic)
ENDS_IN_NOISE = ("rectified", "cosine_continuous", "zero_terminal")  # alpha(1) = 0
CORNERS = [(1, 1), (2, 1), (2, 2), (10, 1), (10, 9), (10, 10), (1000, 1)]  # (T, S)
LONG = [(1000, 999), (1000, 1000)]


@cache
def schedule_of(name: str, total: int = 1000) -> Schedule:
    """The row of PROCESSES, of T = total steps where it has steps, with betas small enough for so few."""
    beta_end = min(0.02, 0.0009 * total)
    options = {
        "steps": total,
        "beta_start": min(1e-4, beta_end),
        "beta_end": beta_end,
        "betas": [min(0.6, 10 / total)] * total,
        "of": "linear" if total > 20 else "cosine",
        "height": 4,
        "width": 4,
    }
    return PROCESSES[name](
        **{key: options[key] for key in inspect.signature(PROCESSES[name]).parameters if key in options}
    )


@cache
def runs(sampler: str) -> list[str]:
    """The schedules with which a sampler is not refused."""
    ends = torch.tensor([1.0, 0.0])
    return [name for name in PROCESSES if not why(sampler, SAMPLERS, schedule_of(name), ends)]


def of_steps(sampler: str) -> list[str]:
    return [name for name in runs(sampler) if schedule_of(name).steps]


def targets(schedule: Schedule) -> list[str]:
    return [name for name in TARGETS if name not in par.REFUSED or not par.REFUSED[name][0](schedule)]


def network(schedule: Schedule, target: str, learned: bool = False) -> NetworkDenoiser:
    """See above; the null label is 0."""

    def net(x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        t = t.double()
        if target == "edm":
            x = x / expand(par.edm_coefficients(schedule, t)[0], x)
        alpha, sigma = expand(schedule.alpha(t), x), expand(schedule.sigma(t), x)
        mean = expand((cond or {}).get("label", torch.zeros(len(x))) / 10, x)
        off = (x - alpha * mean) / ((alpha * SPREAD).square() + sigma.square())
        y = par.to_target(target, schedule, t, mean + alpha * SPREAD**2 * off, sigma * off)
        return torch.cat([y, torch.tanh(x)], 1) if learned else y

    null = {"label": torch.tensor([0])}
    return NetworkDenoiser(net, schedule, target=target, learned_variance=learned, time="unit", null_cond=null)


GUIDED = {"label": torch.tensor([3, 7]), "guidance": torch.tensor([2.5, 1.0])}
MEANS = torch.tensor([0.75, 0.7])[:, None, None, None]  # w label/10


def prior(schedule: Schedule) -> Tensor:
    return normal([3, 4], (1, 4, 4), PRIOR) * schedule.prior_std


def few(sampler: str) -> str:
    """Rows that choose their own steps are asked for two digits, which takes them few."""
    return sampler + (":tolerance=0.01" if SAMPLERS[sampler].calls is None else "")


@dataclass(frozen=True)
class Case:
    schedule: str
    total: int
    steps: int
    target: str
    grid: str
    guided: bool = False
    learned: bool = False


def check(sampler: str, case: Case) -> None:
    """No exception, nothing that is not finite, from the prior at t = 1 to sigma = 0 and to where the data may be."""
    schedule = schedule_of(case.schedule, case.total)
    denoiser = cfg(network(schedule, case.target, case.learned))
    x_T, cond = prior(schedule), GUIDED if case.guided else None
    seen = list(samplers.trajectory(denoiser, x_T, few(sampler), case.steps, case.grid, cond=cond))
    t, x, _ = seen[0]
    torch.testing.assert_close(t.float().expand(2), torch.ones(2), rtol=0, atol=1e-7)
    torch.testing.assert_close(x, x_T, rtol=1e-6, atol=1e-6)
    t, x, _ = seen[-1]
    assert float(t) == 0
    assert float(schedule.sigma(t).abs().max()) == 0
    assert x.shape == x_T.shape
    assert x.dtype == torch.float32
    assert all(bool(state.isfinite().all()) for _, state, _ in seen)
    assert float(x.abs().max()) < 10 * schedule.prior_std


def in_turn(sampler: str, names: Sequence[str], corners: Sequence[tuple[int, int]]) -> Iterator[Case]:
    """As many cases as there are of the longer, the others and target and grid in turn, each sampler from elsewhere."""
    first, grids = list(SAMPLERS).index(sampler), list(GRIDS)
    for i in range(first, first + max(len(names), len(corners))):
        name, (total, steps) = names[i % len(names)], corners[i % len(corners)]
        allowed = targets(schedule_of(name, total))
        target, grid = allowed[(i + i // len(names)) % len(allowed)], grids[i * 3 % len(grids)]
        yield Case(name, total, steps, target, grid, guided=i % 3 == 0, learned=i % 4 == 0)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_the_corners(sampler: str) -> None:
    """T in {1, 2, 10, 1000} and S in {1, T - 1, T}; S is nothing to a row that chooses its own steps."""
    corners = CORNERS if SAMPLERS[sampler].calls else list(dict(CORNERS).items())
    for case in in_turn(sampler, of_steps(sampler) or runs(sampler), corners):
        check(sampler, case)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_schedule(sampler: str) -> None:
    for case in in_turn(sampler, runs(sampler), [(10, 4), (1000, 3)]):
        check(sampler, case)


@pytest.mark.parametrize("sampler", sorted(name for name, row in SAMPLERS.items() if row.calls))
def test_a_few_of_a_thousand_steps_on_every_grid(sampler: str) -> None:
    """Where steps are so long and so unlike each other, what is extrapolated blows up."""
    name = "cosine" if "cosine" in runs(sampler) else runs(sampler)[0]
    for grid, steps in product(GRIDS, (2, 3)):
        check(sampler, Case(name, 1000, steps, "v", grid))


@st.composite
def cases(draw: st.DrawFn, sampler: str) -> Case:
    name = draw(st.sampled_from(runs(sampler)))
    total = draw(st.sampled_from([1, 2, 10, 1000]) | st.integers(1, 1000))
    steps = draw(st.integers(1, min(total, 12)))
    target = draw(st.sampled_from(targets(schedule_of(name, total))))
    grid = draw(st.sampled_from(sorted(GRIDS)))
    return Case(name, total, steps, target, grid, guided=draw(st.booleans()), learned=draw(st.booleans()))


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@given(data=st.data())
@settings(max_examples=6)
def test_anything(sampler: str, data: st.DataObject) -> None:
    check(sampler, data.draw(cases(sampler)))


CHEAP = [name for name in DETERMINISTIC if SAMPLERS[name].calls == 1 and of_steps(name)]


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "corner"), list(zip(CHEAP[::5], cycle(LONG), strict=False)))
def test_a_thousand_steps(sampler: str, corner: tuple[int, int]) -> None:
    """S in {T - 1, T} at T = 1000: `test_steps` has all samplers, here are some with other targets and grids."""
    for case in in_turn(sampler, of_steps(sampler)[:1], [corner]):
        check(sampler, case)


@pytest.mark.parametrize("name", ENDS_IN_NOISE)
@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_deterministic_rows_start_from_pure_noise(sampler: str, name: str) -> None:
    """At alpha(1) = 0 logsnr is infinite, and the way from x_1 leads to mean + 0.5 x_1 all the same."""
    if name not in runs(sampler):
        assert sampler in ("cold", "meanflow")  # which are made for one schedule each
        return
    schedule = schedule_of(name)
    assert float(schedule.alpha(torch.ones(1))) == 0
    for steps in (1, 2, 3):  # the first step and the last are infinite in logsnr
        check(sampler, Case(name, 1000, steps, "x0", "trailing", guided=True))
    x_T, errors = prior(schedule), []
    for steps in (12, 36):
        x = samplers.sample(cfg(network(schedule, "v")), x_T, few(sampler), steps, cond=GUIDED)
        errors.append(float((x - MEANS - SPREAD * x_T).abs().max()))
    assert errors[1] < 0.1
    assert errors[1] < max(0.01, errors[0] / 1.3)


# ---- what is refused


DOWN, UP = torch.linspace(1, 0, 9, dtype=torch.float64), torch.linspace(0.1, 1, 30, dtype=torch.float64)
PICTURES = normal([0, 1], (1, 4, 4), PRIOR)
COLD = [name for name in PROCESSES if isinstance(schedule_of(name), Cold)]


class Perfect(Denoiser):
    """It knows x_0."""

    def __init__(self, schedule: Schedule, x_0: Tensor):
        self.schedule, self.x_0 = schedule, x_0

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        return from_x0(self.schedule, x_t, t, self.x_0)


def unrefused(sampler: str, denoiser: Denoiser, x: Tensor, times: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(t, x_t) of a walk that nothing refuses."""
    noise = RowNoise(range(len(x)), x)
    return [(t, state) for t, state, _ in walk(denoiser, x, named(sampler, SAMPLERS), times, noise)]


@cache
def astray(sampler: str, name: str) -> float:
    """How far from x_0 degraded a walk comes that is told x_0 at every step."""
    schedule = schedule_of(name)
    assert isinstance(schedule, Cold)
    way = unrefused(sampler, Perfect(schedule, PICTURES), schedule.degrade(PICTURES, torch.ones(2)), DOWN)
    return max(float((x - schedule.degrade(PICTURES, t)).abs().max()) for t, x in way)


def cold_alone_undoes_a_degradation_and_nothing_else(sampler: str) -> None:
    """Other rows leave the path of D(x_0, t), for which the network is made, even if it makes no mistake at all.

    On a schedule of noise there is no D.  What it does to x_0 is alpha x_0, and from x_1 = alpha x_0 + sigma eps (1) of
    `samplers.cold` comes to x_0 + sigma eps, with all the noise still in it.
    """
    for name in COLD:
        assert astray(sampler, name) > 1 or sampler == "cold"
        assert astray("cold", name) < 1e-6
    for name in set(PROCESSES) - set(COLD) if sampler == "cold" else ():
        schedule, x = schedule_of(name), prior(schedule_of(name))
        assert not hasattr(schedule, "degrade")
        lost, noise = (expand(c(torch.ones(2)), x) for c in (schedule.alpha, schedule.sigma))
        x_1 = lost * PICTURES + noise * x
        assert float((x_1 - lost * PICTURES).std()) > 0.5  # what is left beside x_0 once (1) has undone alpha


def only_the_ode_leads_upwards(sampler: str) -> None:
    """From x_0.1 the ODE scales x to the spread of x_1, and a row that is not refused does; others end in NaN, or
    elsewhere.  cold knows no first step: `encode` gives it alpha x_0, which is no degraded picture, and it keeps the
    difference.  meanflow would ask for the average over a span t - s < 0, of which its network knows nothing."""
    if sampler == "meanflow":
        net = MLP(MLPConfig(width=4, depth=1), (2,), Conditions(span=1))
        model = NetworkDenoiser(net, schedule_of("rectified"), target="flow", time="unit")
        with pytest.raises(ValueError, match="condition 'span' is t - s >= 0"):
            unrefused(sampler, model, torch.ones(1, 2), UP)
        return
    if sampler == "cold":
        for name in COLD:
            schedule = schedule_of(name)
            assert isinstance(schedule, Cold)
            noise, knows = RowNoise([0, 1], PICTURES), Perfect(schedule, PICTURES)
            x_1 = encoded(knows, PICTURES, named("cold", SAMPLERS), DOWN.flip(0), noise, None, False)
            assert float((x_1 - schedule.degrade(PICTURES, torch.ones(2))).abs().max()) > 0.1
        return
    schedule = schedule_of("linear_continuous")
    alpha, sigma = schedule.alpha(UP[[0, -1]]), schedule.sigma(UP[[0, -1]])
    spread = ((alpha * SPREAD).square() + sigma.square()).sqrt()
    x = (spread[0] * PICTURES).float()

    def off(row: str) -> float:
        return float((unrefused(row, network(schedule, "v"), x, UP)[-1][1] - spread[1] * PICTURES).abs().max())

    assert off("ddim") < 0.2
    assert not off(sampler) < 1


def an_average_velocity_is_that_of_a_straight_path(sampler: str) -> None:
    """Told the true average velocity from x_0 to x_1, of dx/dt, it finds x_0 in one step; where alpha and sigma bend,
    x0 and eps cannot be solved from an average, and it does not."""

    def miss(name: str) -> float:
        schedule = schedule_of(name)
        x_1 = prior(schedule)
        model = NetworkDenoiser(lambda x, t, cond: x_1 - PICTURES, schedule, target="flow", time="unit")
        return float((unrefused(sampler, model, x_1, torch.tensor([1.0, 0.0]))[-1][1] - PICTURES).abs().max())

    def bends(name: str) -> bool:
        schedule, t = schedule_of(name), torch.linspace(0.01, 0.99, 9)
        return float(schedule.dalpha(t).std() + schedule.dsigma(t).std()) > 0

    assert miss("rectified") < 1e-6
    for name in set(PROCESSES) - set(runs(sampler)) - set(COLD):
        assert not bends(name) or "flow" not in targets(schedule_of(name)) or miss(name) > 0.1


# the first words of a reason in samplers.refused.REFUSED -> its proof
PROOFS: dict[str, Callable[[str], None]] = {
    "cold diffusion has no noise": cold_alone_undoes_a_degradation_and_nothing_else,
    "from data to noise": only_the_ode_leads_upwards,
    "an average velocity": an_average_velocity_is_that_of_a_straight_path,
}


def refused_by(refusal: Refusal) -> list[str]:
    """The samplers that it refuses anywhere."""
    every = [(schedule_of(name), times) for name in PROCESSES for times in (DOWN, UP)]
    return [name for name, row in SAMPLERS.items() if any(refusal.applies(name, row, *case) for case in every)]


@pytest.mark.parametrize(
    ("refusal", "sampler"),
    [pytest.param(r, name, id=f"{name}: {r.reason[:20]}") for r in REFUSED for name in refused_by(r)],
)
def test_what_is_refused_cannot_work(refusal: Refusal, sampler: str) -> None:
    (proof,) = (proof for words, proof in PROOFS.items() if refusal.reason.startswith(words))
    proof(sampler)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_what_is_refused_is_said(sampler: str) -> None:
    for name, (verb, times) in product(PROCESSES, ((samplers.sample, DOWN), (samplers.encode, UP))):
        schedule = schedule_of(name)
        if why(sampler, SAMPLERS, schedule, times):
            grid = times if verb is samplers.sample else times.flip(0)
            with pytest.raises(ValueError, match=f"^sampler '{sampler}' with schedule '{name}' is refused: .*; take "):
                verb(Perfect(schedule, PICTURES), PICTURES, sampler, grid=grid)


def blind_at_the_start(target: str, name: str) -> None:
    """Pictures that are not alike give the same x_1 and the same y, so no solve can tell them apart."""
    schedule, t, eps = schedule_of(name), torch.ones(2, dtype=torch.float64), PICTURES[:1].expand(2, 1, 4, 4)
    alpha, sigma = (expand(c(t), eps) for c in (schedule.alpha, schedule.sigma))
    x_1, y = alpha * PICTURES + sigma * eps, par.to_target(target, schedule, t, PICTURES, eps)
    assert torch.equal(x_1[0], x_1[1])
    assert torch.equal(y[0], y[1])
    assert not bool(par.from_target(target, schedule, t, x_1, y)[0].isfinite().any())


def worst(target: str, name: str) -> float:
    """The greatest error of x_0 for an error of 1 in y, at any time."""
    schedule, t = schedule_of(name), torch.linspace(0, 1, 1001, dtype=torch.float64)[1:]
    return float((schedule.sigma(t) / par.determinant(target, schedule, t)).abs().max())


def too_steep(target: str, name: str) -> None:
    """Where this target is not refused, no error of x_0 is more than 31 times that of y."""
    others = [worst(target, other) for other in PROCESSES if target in targets(schedule_of(other))]
    assert worst(target, name) > 500
    assert max(others) < 31


# target -> the proof that it cannot work on a schedule for which parameterization.REFUSED refuses it
TARGET_PROOFS: dict[str, Callable[[str, str], None]] = {
    "eps": blind_at_the_start,
    "score": blind_at_the_start,
    "flow": too_steep,
}


@pytest.mark.parametrize("target", sorted(par.REFUSED))
def test_a_refused_target_cannot_work(target: str) -> None:
    names = [name for name in PROCESSES if target not in targets(schedule_of(name))]
    assert names
    for name in names:
        TARGET_PROOFS[target](target, name)


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_a_target_that_is_not_refused_is_solved_from_the_first_time_to_the_last(name: str) -> None:
    for total in (1, 2, 10, 1000):
        schedule = schedule_of(name, total)
        t = torch.linspace(0, 1, 1 + (schedule.steps or 1000), dtype=torch.float64)[1:]
        for target in targets(schedule):
            assert bool((par.determinant(target, schedule, t).abs() > 0).all())
