"""Schedules against their papers' formulas, evaluated by mpmath to 50 digits."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor

from sfumato import schedules
from sfumato.schedules import SCHEDULES, Discrete, Schedule, from_spec

mp.dps = 50
START, END = mpf("1e-4"), mpf("0.02")


def between(first: mpf, last: mpf, i: int, steps: int) -> mpf:
    """The i-th of `steps` equal steps, i = 1..steps."""
    return first + (last - first) * mpf(i - 1) / (steps - 1)


# beta_i of the papers at T steps, scaled by 1000/T
BETAS: dict[str, Callable[[int, int], mpf]] = {
    "linear": lambda i, steps: between(START, END, i, steps) * 1000 / steps,
    "quadratic": lambda i, steps: between(mp.sqrt(START), mp.sqrt(END), i, steps) ** 2 * 1000 / steps,
    "sigmoid": lambda i, steps: (
        ((END - START) / (1 + mp.exp(-between(mpf(-6), mpf(6), i, steps))) + START) * 1000 / steps
    ),
}


def relative(ours: Tensor, truth: list[mpf]) -> float:
    return max(float(abs(mpf(a) / b - 1)) for a, b in zip(ours.tolist(), truth, strict=True))


@pytest.mark.parametrize("steps", [1000, 100, 50, 2500])
@pytest.mark.parametrize("name", sorted(BETAS))
def test_alphas_cumprod_of_beta_schedules(name: str, steps: int) -> None:
    ours = SCHEDULES[name](steps=steps)
    assert isinstance(ours, Discrete)
    product, truth = mpf(1), []
    for i in range(1, steps + 1):
        product *= 1 - BETAS[name](i, steps)
        truth.append(product)
    assert relative(ours.alphas_cumprod, truth) < 1e-12
    assert relative(ours.betas, [BETAS[name](i, steps) for i in range(1, steps + 1)]) < 1e-14


@pytest.mark.parametrize("steps", [1000, 100, 10, 2, 4000])
def test_cosine(steps: int) -> None:
    """alpha-bar = f(i)/f(0) for i < T; the last beta would be 1 and is capped at 0.999."""
    ours = schedules.cosine(steps)
    f = [mp.cos((mpf(i) / steps + mpf("0.008")) / mpf("1.008") * mp.pi / 2) ** 2 for i in range(steps)]
    assert relative(ours.alphas_cumprod[:-1], [a / f[0] for a in f[1:]]) < 1e-12
    assert ours.betas[-1] == 0.999
    assert relative(ours.alphas_cumprod[-1:], [f[-1] / f[0] * (1 - mpf(0.999))]) < 1e-12
    assert bool((ours.betas[:-1] < 0.999).all())


def test_cosine_of_one_step_is_the_cap() -> None:
    assert schedules.cosine(1).betas.tolist() == [0.999]


def test_from_betas_takes_them_as_they_are() -> None:
    ours = schedules.from_betas([0.1, 0.2, 0.5])
    assert relative(ours.alphas_cumprod, [mpf("0.9"), mpf("0.72"), mpf("0.36")]) < 1e-15
    assert ours.steps == 3


def test_one_step_of_a_ramp_is_its_end() -> None:
    assert schedules.from_betas([0.02]).betas[0] == pytest.approx(schedules.linear(1, beta_end=2e-5).betas[0].item())


def test_linear_logsnr_at_every_step() -> None:
    """log(abar/(1 - abar)), which loses its digits near t = 0 if 1 - abar is subtracted."""
    ours = schedules.linear()
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    product, truth = mpf(1), []
    for i in range(1, 1001):
        product *= 1 - BETAS["linear"](i, 1000)
        truth.append(mp.log(product / (1 - product)))
    error = max(abs(mpf(a) - b) for a, b in zip(ours.logsnr(t).tolist(), truth, strict=True))
    assert error < 1e-12


# alpha and sigma of the continuous forms, exactly
CLOSED: dict[str, tuple[Callable[[mpf], mpf], Callable[[mpf], mpf]]] = {
    "linear_continuous": (
        lambda t: mp.exp(-mp.quad(lambda u: mpf(0.1) + u * (mpf(20) - mpf(0.1)), [0, t]) / 2),
        lambda t: mp.sqrt(1 - mp.exp(-mp.quad(lambda u: mpf(0.1) + u * (mpf(20) - mpf(0.1)), [0, t]))),
    ),
    "cosine_continuous": (
        lambda t: (
            mp.cos((t + mpf(0.008)) / (1 + mpf(0.008)) * mp.pi / 2) / mp.cos(mpf(0.008) / (1 + mpf(0.008)) * mp.pi / 2)
        ),
        lambda t: mp.sqrt(
            1
            - (
                mp.cos((t + mpf(0.008)) / (1 + mpf(0.008)) * mp.pi / 2)
                / mp.cos(mpf(0.008) / (1 + mpf(0.008)) * mp.pi / 2)
            )
            ** 2
        ),
    ),
    "rectified": (lambda t: 1 - t, lambda t: t),
    "edm": (lambda t: mpf(1), lambda t: 80 * t),
}


@pytest.mark.parametrize("name", sorted(CLOSED))
def test_continuous_forms_to_both_ends(name: str) -> None:
    alpha, sigma = CLOSED[name]
    schedule = SCHEDULES[name]()
    t = torch.tensor([1e-10, 1e-6, 1e-3, 0.1, 0.37, 0.9, 0.999, 1 - 2.0**-20, 1 - 2.0**-30], dtype=torch.float64)
    exact = [mpf(v) for v in t.tolist()]
    assert relative(schedule.alpha(t), [alpha(v) for v in exact]) < 1e-12
    assert relative(schedule.sigma(t), [sigma(v) for v in exact]) < 1e-12
    truth = [2 * mp.log(alpha(v) / sigma(v)) for v in exact]
    assert max(abs(mpf(a) - b) for a, b in zip(schedule.logsnr(t).tolist(), truth, strict=True)) < 1e-12


@pytest.mark.parametrize("name", sorted(CLOSED))
def test_derivatives_of_continuous_forms(name: str) -> None:
    alpha, sigma = CLOSED[name]
    schedule = SCHEDULES[name]()
    t = torch.tensor([0.01, 0.3, 0.7, 0.99], dtype=torch.float64)
    exact = [mpf(v) for v in t.tolist()]
    for ours, truth in [
        (schedule.dalpha(t), alpha),
        (schedule.dsigma(t), sigma),
        (schedule.dlogsnr(t), lambda v: 2 * mp.log(alpha(v) / sigma(v))),
    ]:
        for a, v in zip(ours.tolist(), exact, strict=True):
            assert a == pytest.approx(float(mp.diff(truth, v)), rel=1e-10, abs=1e-14)


def test_derivative_of_a_discrete_schedule_is_its_segments() -> None:
    """log alpha^2 falls by log(1 - beta_i) over a length of 1/T."""
    schedule = schedules.cosine(20)
    t = (torch.arange(20, dtype=torch.float64) + 0.5) / 20
    slope = 20 * torch.log1p(-schedule.betas)
    torch.testing.assert_close(schedule.dalpha(t), 0.5 * schedule.alpha(t) * slope, rtol=1e-13, atol=0)


def test_derivatives_under_no_grad_and_inference_mode(schedule: Schedule) -> None:
    t = torch.tensor([0.2, 0.5, 1.0])
    plain = schedule.dsigma(t)
    assert schedule.dalpha(t).shape == schedule.dlogsnr(t).shape == (3,)
    with torch.no_grad():
        assert torch.equal(schedule.dsigma(t), plain)
    with torch.inference_mode():
        assert torch.equal(schedule.dsigma(t), plain)
        assert torch.equal(schedule.dsigma(torch.tensor([0.2, 0.5, 1.0])), plain)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 997, 1000, 4000])
def test_grid_points_are_hit_exactly(steps: int) -> None:
    """In float64 and float32, whatever i/T rounds to."""
    schedule = schedules.from_betas(torch.linspace(1e-4, 0.02, steps))
    i = torch.arange(steps + 1)
    wanted = torch.exp(0.5 * schedule.log_alphas_cumprod)
    for dtype in (torch.float64, torch.float32):
        t = i.to(dtype) / steps
        assert torch.equal(schedule.alpha(t), wanted)
        assert torch.equal(schedule.position(t), i.double())
        assert torch.equal(schedule.sigma(t)[:1], torch.zeros(1, dtype=torch.float64))
    assert torch.equal(schedule.alpha(torch.linspace(0, 1, steps + 1)), wanted)


def test_between_grid_points_log_alphas_cumprod_is_straight() -> None:
    schedule = schedules.linear(100)
    t = torch.tensor([0.005, 0.0525, 0.9975], dtype=torch.float64)
    i, part = torch.tensor([0, 5, 99]), torch.tensor([0.5, 0.25, 0.75], dtype=torch.float64)
    table = schedule.log_alphas_cumprod
    torch.testing.assert_close(
        2 * schedule.alpha(t).log(), torch.lerp(table[i], table[i + 1], part), rtol=1e-11, atol=0
    )


def test_the_steps_tend_to_the_continuous_form() -> None:
    """Betas scaled by 1000/T make the linear schedule tend to beta(t) = 0.1 + 19.9 t, the cosine to its own curve."""
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    for discrete, continuous in [
        (schedules.linear(50_000), schedules.linear_continuous()),
        (schedules.cosine(50_000), schedules.cosine_continuous()),
    ]:
        torch.testing.assert_close(discrete.alpha(t), continuous.alpha(t), rtol=3e-3, atol=0)


def test_ends_and_order(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 501, dtype=torch.float64)
    alpha, sigma, logsnr = schedule.alpha(t), schedule.sigma(t), schedule.logsnr(t)
    assert alpha.dtype == sigma.dtype == logsnr.dtype == torch.float64
    assert alpha[0] == pytest.approx(1, abs=1e-15)
    assert sigma[0] == 0
    assert logsnr[0] == math.inf
    assert bool((logsnr[:-1] > logsnr[1:]).all())
    assert bool((sigma[:-1] < sigma[1:]).all())
    assert bool(torch.isfinite(alpha).all() & torch.isfinite(sigma).all())
    if schedule.spec["name"] not in ("rectified", "edm"):
        torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones_like(t), rtol=1e-14, atol=0)
    assert schedule.prior_std == (80 if schedule.spec["name"] == "edm" else 1)


def test_spec_round_trip(schedule: Schedule) -> None:
    again = from_spec(schedule.spec)
    assert again.spec == schedule.spec
    assert type(again) is type(schedule)
    assert again.steps == schedule.steps
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    assert torch.equal(again.alpha(t), schedule.alpha(t))
    assert torch.equal(again.sigma(t), schedule.sigma(t))


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"from_betas"}))
def test_spec_keeps_every_option(name: str) -> None:
    """Each option is changed, and comes back."""
    defaults = {p.name: p.default for p in inspect.signature(SCHEDULES[name]).parameters.values()}
    changed = {k: v // 2 if isinstance(v, int) else "cosine" if v == "linear" else v * 0.9 for k, v in defaults.items()}
    schedule = SCHEDULES[name](**changed)
    assert schedule.spec == {"name": name, **changed}
    assert from_spec(schedule.spec).spec == schedule.spec
    text = name + ":" * bool(changed) + ",".join(f"{k}={v}" for k, v in changed.items())
    assert from_spec(text).spec == schedule.spec


def test_from_spec_reads_texts() -> None:
    assert from_spec("cosine:steps=10").steps == 10
    assert from_spec("rectified").steps is None
    assert from_spec("from_betas:betas=[0.1,0.2]").steps == 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: schedules.linear(20), ["(0, 1)", "'linear'", "20 steps", "more steps"]),
        (lambda: schedules.sigmoid(10), ["'sigmoid'"]),
        (lambda: schedules.quadratic(2), ["'quadratic'"]),
        (lambda: schedules.from_betas([0.5, 1.0]), ["to 1"]),
        (lambda: schedules.from_betas([0.5, 0.0]), ["from 0"]),
        (lambda: schedules.from_betas([0.5, math.nan]), ["nan"]),
        (lambda: schedules.from_betas([]), ["nothing"]),
        (lambda: schedules.from_betas([[0.1, 0.2]]), ["(0, 1)"]),  # type: ignore[list-item]
        (lambda: schedules.linear(0), ["whole number", "got 0"]),
        (lambda: schedules.cosine(-5), ["whole number", "got -5"]),
        (lambda: schedules.linear(True), ["whole number", "got True"]),
        (lambda: schedules.cosine(10.0), ["whole number", "got 10.0"]),  # type: ignore[arg-type]
        (lambda: from_spec("cosin"), ["unknown schedule 'cosin'", "did you mean 'cosine'"]),
        (lambda: from_spec("cosine:step=3"), ["'cosine'", "step"]),
        (lambda: from_spec({"name": "edm", "sigma": 3}), ["'edm'", "sigma"]),
    ],
)
def test_mistakes_are_answered(make: Callable[[], Schedule], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        make()
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


# ---- zero terminal signal-to-noise ratio


@pytest.mark.parametrize(
    ("of", "steps"), [("linear", 1000), ("linear", 200), ("quadratic", 500), ("sigmoid", 1000), ("cosine", 2)]
)
def test_zero_terminal_is_algorithm_1(of: str, steps: int) -> None:
    """arXiv:2305.08891: sqrt(abar) less its last value, times what brings its first value back; alpha_T = 0 exactly."""
    inner, ours = SCHEDULES[of](steps=steps), schedules.zero_terminal(of, steps)
    assert isinstance(inner, Discrete)
    root = [mp.sqrt(mpf(a)) for a in inner.alphas_cumprod.tolist()]
    scaled = [(a - root[-1]) * root[0] / (root[0] - root[-1]) for a in root]
    alpha = ours.alpha(torch.arange(1, steps + 1) / steps)
    assert relative(alpha[:-1], scaled[:-1]) < 1e-9
    assert alpha[-1] == 0
    assert alpha[0] == pytest.approx(inner.alpha(torch.tensor([1 / steps], dtype=torch.float64)).item(), rel=1e-14)
    assert ours.betas[-1] == 1
    assert ours.sigma(torch.ones(1)) == 1
    assert ours.logsnr(torch.ones(1)) == -math.inf


@pytest.mark.slow
@pytest.mark.parametrize("of", ["linear", "sigmoid"])
def test_zero_terminal_is_diffusers(of: str) -> None:
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    theirs = rescale_zero_terminal_snr(SCHEDULES[of]().betas)  # type: ignore[attr-defined]
    ours = schedules.zero_terminal(of)
    torch.testing.assert_close(ours.betas, theirs, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(ours.alphas_cumprod, (1 - theirs).cumprod(0), rtol=1e-8, atol=0)


def test_the_last_step_to_zero_is_straight_in_alpha() -> None:
    """There log alpha has no end to be straight to."""
    schedule = schedules.zero_terminal("linear", 100)
    t = torch.tensor([0.99, 0.9925, 0.995, 0.9975, 1.0], dtype=torch.float64)
    alpha = schedule.alpha(t)
    torch.testing.assert_close(alpha, alpha[0] * torch.linspace(1, 0, 5).double(), rtol=1e-9, atol=0)
    torch.testing.assert_close(schedule.sigma(t), (1 - alpha.square()).sqrt(), rtol=1e-12, atol=0)
    assert bool(torch.isfinite(schedule.dalpha(t)).all())
    torch.testing.assert_close(schedule.dalpha(t[1:4]), -100 * alpha[0].expand(3), rtol=1e-9, atol=0)


@pytest.mark.parametrize("of", ["zero_terminal", "rectified", "edm", "cosin", "from_betas"])
def test_zero_terminal_of_what_has_no_steps(of: str) -> None:
    with pytest.raises(
        ValueError, match=r"zero_terminal is made of a T-step|unknown schedule|from_betas|'steps'"
    ) as told:
        schedules.zero_terminal(of)
    assert "\n" not in str(told.value)


# ---- the time of a logsnr, the path, and derivatives of many values a time


def test_time_of_logsnr_is_its_inverse(schedule: Schedule) -> None:
    """Both ways, wherever logsnr is between its ends; beyond them the nearest end."""
    t = torch.linspace(0.003, 0.997, 211, dtype=torch.float64)
    found = schedule.time_of_logsnr(schedule.logsnr(t))
    # near a step of the grid all times are that step (SNAP), so there time is known to so much only
    torch.testing.assert_close(found, t, rtol=0, atol=1e-12 if schedule.steps is None else 3e-7)
    torch.testing.assert_close(
        schedule.logsnr(found), schedule.logsnr(t), rtol=0, atol=1e-9 if schedule.steps is None else 1e-3
    )
    last = schedule.logsnr(torch.ones(1)).item()
    beyond = schedule.time_of_logsnr(
        torch.tensor([math.inf, 1e6, last - 10 if math.isfinite(last) else -1e6, -math.inf])
    )
    assert beyond[0] < 1e-15
    assert beyond[2:].tolist() == [1, 1]
    assert schedule.time_of_logsnr(0.3).shape == ()
    assert schedule.time_of_logsnr(torch.zeros(2, 3)).shape == (2, 3)


@pytest.mark.parametrize("name", ["linear", "cosine", "zero_terminal"])
def test_time_of_logsnr_at_a_step_is_that_step(name: str) -> None:
    """To the last digits: a hair beside a step its alpha is off by what times are snapped by, 2e-4 of a step."""
    schedule = SCHEDULES[name]()
    t = torch.arange(1, 1000, dtype=torch.float64) / 1000
    for rounding in (-1e-12, 0, 1e-12):
        found = schedule.time_of_logsnr(schedule.logsnr(t) + rounding)
        torch.testing.assert_close(schedule.logsnr(found), schedule.logsnr(t), rtol=0, atol=1e-10)


def test_the_path_is_the_schedule_itself(schedule: Schedule) -> None:
    assert schedule.path is schedule


def test_derivatives_of_many_values_a_time() -> None:
    """d f(t) / dt of an f of (B, 1, H, W), each value by its own t; a constant has none."""
    schedule = schedules.rectified()
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    power = torch.tensor([[1.0, 2.0], [3.0, 5.0]], dtype=torch.float64)

    def f(t: Tensor) -> Tensor:
        return t.reshape(-1, 1, 1, 1) ** power

    got = schedule.derivative(f, t)
    rows = t.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(got, power * rows ** (power - 1), rtol=1e-13, atol=0)
    assert got.shape == (3, 1, 2, 2)
    assert torch.equal(schedule.derivative(lambda t: torch.ones(3, 1, 2, 2), t), torch.zeros(3, 1, 2, 2))
    assert schedule.derivative(torch.square, t[0]).item() == pytest.approx(0.4)
    assert not got.requires_grad
