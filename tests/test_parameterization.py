"""Every row of the table goes both ways, and the refused ones deserve it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sfumato import gaussian, schedules
from sfumato import parameterization as par
from sfumato.denoiser import Prediction
from sfumato.parameterization import TARGETS
from sfumato.schedules import SCHEDULES, Schedule
from sfumato.variances import VARIANCES


def one_of_each(name: str) -> Schedule:
    return schedules.from_betas([0.001, 0.01, 0.05, 0.2, 0.1, 0.5]) if name == "from_betas" else SCHEDULES[name]()


def refused(target: str, schedule: Schedule) -> bool:
    try:
        par.check(target, schedule)
    except ValueError:
        return True
    return False


EVERY = {name: one_of_each(name) for name in SCHEDULES}
PAIRS = [(name, target) for name in SCHEDULES for target in TARGETS if not refused(target, EVERY[name])]
REFUSED = [(name, target) for name in SCHEDULES for target in TARGETS if refused(target, EVERY[name])]


def close(got: Tensor, wanted: Tensor) -> bool:
    return bool(((got - wanted).norm() <= 1e-10 * wanted.norm()).all())


@pytest.mark.parametrize(("name", "target"), PAIRS)
@given(t=st.floats(0.001, 0.999), seed=st.integers(0, 10**6))
def test_round_trip(name: str, target: str, t: float, seed: int) -> None:
    """(x0, eps) -> y -> (x0, eps), and y -> (x0, eps) -> y, to 1e-10 relative."""
    schedule, time = EVERY[name], torch.tensor([t], dtype=torch.float64)
    x0, eps = torch.randn(2, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x_t = gaussian.perturb(schedule, x0, time, eps)
    y = par.to_target(target, schedule, time, x0, eps)
    again_x0, again_eps = par.from_target(target, schedule, time, x_t, y)
    assert close(again_x0, x0)
    assert close(again_eps, eps)
    assert close(par.to_target(target, schedule, time, again_x0, again_eps), y)


@pytest.mark.parametrize(("name", "target"), PAIRS)
def test_pairs_that_are_taken_are_well_posed(name: str, target: str) -> None:
    t = torch.linspace(0.001, 1, 1000, dtype=torch.float64)
    det = par.determinant(target, EVERY[name], t)
    assert bool(torch.isfinite(det).all())
    assert bool((det.abs() > 1e-7).all())
    a, b = TARGETS[target](EVERY[name], t)
    alpha, sigma = EVERY[name].alpha(t), EVERY[name].sigma(t)
    torch.testing.assert_close(det, alpha * b - sigma * a, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("name", "target"), REFUSED)
def test_refused_pairs_are_singular_and_say_the_way_out(name: str, target: str) -> None:
    """At t = 1 the determinant is 0: x_0 cannot be had from what the network says."""
    schedule, one = EVERY[name], torch.ones(1, dtype=torch.float64)
    assert par.determinant(target, schedule, one).abs() < 1e-15
    with pytest.raises(ValueError, match="refused") as error:
        par.check(target, schedule)
    assert all(word in str(error.value) for word in (target, name, "alpha(1) = 0", "take target 'v' or 'x0'"))
    for way_out in ("v", "x0", "flow"):
        par.check(way_out, schedule)


def test_what_is_refused() -> None:
    assert set(REFUSED) == {
        (n, t) for n in ("rectified", "cosine_continuous", "zero_terminal") for t in ("eps", "score")
    }
    with pytest.raises(ValueError, match="unknown target 'epsilon'"):
        par.check("epsilon", EVERY["linear"])


def test_the_rows_are_what_their_papers_say(schedule: Schedule) -> None:
    """Each target from its own definition: score and flow by differentiation, v and EDM from their papers."""
    generator = torch.Generator().manual_seed(5)
    x0, eps = torch.randn(2, 4, 3, dtype=torch.float64, generator=generator)
    t = torch.tensor([0.1104, 0.4003, 0.7504, 0.9502], dtype=torch.float64)  # between steps, where alpha' is single
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    x_t = alpha * x0 + sigma * eps

    def y(target: str) -> Tensor:
        return par.to_target(target, schedule, t, x0, eps)

    assert torch.equal(y("eps"), eps)
    assert torch.equal(y("x0"), x0)
    torch.testing.assert_close(y("v"), alpha * eps - sigma * x0)
    free = x_t.clone().requires_grad_()
    log_q = torch.distributions.Normal(alpha * x0, sigma).log_prob(free).sum()
    torch.testing.assert_close(y("score"), torch.autograd.grad(log_q, free)[0], rtol=1e-10, atol=1e-10)
    h = 1e-6
    ahead, behind = (gaussian.perturb(schedule, x0, t + d, eps) for d in (h, -h))
    torch.testing.assert_close(y("flow"), (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-5)


def test_edm_as_karras() -> None:
    """Table 1 of arXiv:2206.00364: D(x) = c_skip x + c_out F(c_in x), for alpha = 1 and sigma_data = 0.5."""
    schedule = schedules.edm()
    t = torch.tensor([0.001, 0.01, 0.5, 1.0], dtype=torch.float64)
    sigma, data = 80 * t, 0.5
    c_in, c_skip, c_out = par.edm_coefficients(schedule, t)
    torch.testing.assert_close(c_in, 1 / (sigma**2 + data**2).sqrt())
    torch.testing.assert_close(c_skip, data**2 / (sigma**2 + data**2))
    torch.testing.assert_close(c_out, sigma * data / (sigma**2 + data**2).sqrt())
    x, f = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x0, _ = par.from_target("edm", schedule, t, x, f)
    torch.testing.assert_close(x0, c_skip[:, None] * x + c_out[:, None] * f)
    torch.testing.assert_close(par.scaled_input("edm", schedule, t, x), c_in[:, None] * x)
    assert par.scaled_input("eps", schedule, t, x) is x


def test_edm_sees_and_says_unit_variance(schedule: Schedule) -> None:
    """For data of variance sigma_data^2 the input c_in x_t and the target both have variance 1, for any alpha."""
    t = torch.linspace(0.02, 1, 50, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    c_in, _, _ = par.edm_coefficients(schedule, t)
    a, b = TARGETS["edm"](schedule, t)
    one = torch.ones_like(t)
    torch.testing.assert_close(c_in.square() * (alpha.square() * 0.25 + sigma.square()), one)
    torch.testing.assert_close(a.square() * 0.25 + b.square(), one)


def test_fixed_variances_are_ddpms() -> None:
    """large is beta_t, small is beta tilde (with Improved DDPM's clip at the first step)."""
    schedule = schedules.linear(100)
    i = torch.arange(1, 101, dtype=torch.float64)
    t, s, nothing = i / 100, (i - 1) / 100, Prediction(i, i)
    torch.testing.assert_close(VARIANCES["large"](schedule, t, s, nothing).exp(), schedule.betas, rtol=1e-11, atol=0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), schedule.alphas_cumprod[:-1]])
    tilde = schedule.betas * (1 - before) / (1 - schedule.alphas_cumprod)
    tilde[0] = tilde[1]
    torch.testing.assert_close(VARIANCES["small"](schedule, t, s, nothing).exp(), tilde, rtol=1e-11, atol=0)
    assert torch.equal(VARIANCES["model"](schedule, t, s, nothing), VARIANCES["small"](schedule, t, s, nothing))


def test_learned_variance_is_interpolated_in_logs() -> None:
    """arXiv:2102.09672, eq. (15): exp(v log beta + (1 - v) log beta tilde), a value a pixel."""
    schedule = schedules.cosine(100)
    t, s = torch.tensor([0.5, 0.01, 1.0]).double(), torch.tensor([0.49, 0.0, 0.99]).double()
    mix = torch.rand(3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    p = Prediction(mix, mix, mix)
    beta = schedule.betas[[49, 0, 99]]
    before = torch.tensor([schedule.alphas_cumprod[48], 1.0, schedule.alphas_cumprod[98]]).double()
    tilde = beta * (1 - before) / (1 - schedule.alphas_cumprod[[49, 0, 99]])
    second = schedule.betas[1] * (1 - schedule.alphas_cumprod[0]) / (1 - schedule.alphas_cumprod[1])
    tilde[1] = second
    wanted = torch.exp(mix * beta.log()[:, None, None] + (1 - mix) * tilde.log()[:, None, None])
    for row in ("learned", "model"):
        torch.testing.assert_close(VARIANCES[row](schedule, t, s, p).exp(), wanted, rtol=1e-9, atol=0)


def test_optimal_variance_of_gaussian_data() -> None:
    """For x_0 ~ N(mu, c) every reverse step q(x_s | x_t) is Gaussian; its variance is the optimal one, by Bayes."""
    schedule, c = schedules.linear(100), 0.37
    t, s = torch.tensor([0.8]).double(), torch.tensor([0.3]).double()
    alpha_t, sigma_t, alpha_s, sigma_s = schedule.alpha(t), schedule.sigma(t), schedule.alpha(s), schedule.sigma(s)
    p = Prediction(t[:, None], t[:, None], None, (sigma_t**2 * c / (alpha_t**2 * c + sigma_t**2))[:, None])
    at_s, at_t = alpha_s**2 * c + sigma_s**2, alpha_t**2 * c + sigma_t**2
    across = alpha_t / alpha_s * at_s
    wanted = at_s - across**2 / at_t
    torch.testing.assert_close(VARIANCES["optimal"](schedule, t, s, p).exp(), wanted[:, None], rtol=1e-10, atol=0)


def test_a_variance_that_cannot_be_known_says_so() -> None:
    t = torch.full((1,), 0.5, dtype=torch.float64)
    for name, words in (("learned", "take 'small' or 'large'"), ("optimal", "Var")):
        with pytest.raises(ValueError, match=words):
            VARIANCES[name](EVERY["linear"], t, t / 2, Prediction(t, t))


def test_weights_go_from_x0_to_y_by_the_determinant(schedule: Schedule) -> None:
    """An error d in y is an error -(sigma/det) d in x0 and (alpha/det) d in eps."""
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    x_t, y, d = torch.randn(3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for target in TARGETS:
        if refused(target, schedule):
            continue
        factor = (schedule.sigma(t) / par.determinant(target, schedule, t))[:, None]
        moved = par.from_target(target, schedule, t, x_t, y + d)[0] - par.from_target(target, schedule, t, x_t, y)[0]
        torch.testing.assert_close(moved, -factor * d, rtol=1e-8, atol=1e-10)
    assert math.isfinite(float(factor.sum()))
