"""The Gaussian algebra against published coefficients, Bayes' rule and mpmath."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from sfumato import gaussian, schedules
from sfumato.schedules import SCHEDULES, Discrete, Schedule

mp.dps = 50


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", ["linear", "quadratic", "cosine", "sigmoid"])
def test_posterior_of_neighbours_is_ddpm(name: str) -> None:
    """arXiv:2006.11239, eqs. (6) and (7), from the betas alone, in 50 digits."""
    schedule = SCHEDULES[name]()
    assert isinstance(schedule, Discrete)
    steps = len(schedule.betas)
    i = torch.arange(1, steps + 1, dtype=torch.float64)
    c_t, c_0, u = gaussian.posterior_coefficients(schedule, i / steps, (i - 1) / steps)
    a, v = gaussian.transition_coefficients(schedule, (i - 1) / steps, i / steps)
    before = mpf(1)
    for k, beta in enumerate(mpf(b) for b in schedule.betas.tolist()):
        now = before * (1 - beta)
        truth = {
            "x_t": (c_t[k], mp.sqrt(1 - beta) * (1 - before) / (1 - now)),
            "x_0": (c_0[k], mp.sqrt(before) * beta / (1 - now)),
            "beta tilde": (u[k], (1 - before) / (1 - now) * beta),
            "beta": (v[k], beta),
            "sqrt alpha": (a[k], mp.sqrt(1 - beta)),
        }
        for what, (ours, published) in truth.items():
            assert abs(mpf(ours.item()) - published) <= mpf("1e-11") * published, (what, k + 1)
        before = now
    assert (c_t[0], u[0]) == (0, 0)


# alpha and sigma in mpmath, so that Bayes' rule below is free of the rounding of ours
CLOSED: dict[str, Callable[[mpf], tuple[mpf, mpf]]] = {
    "rectified": lambda t: (1 - t, t),
    "edm": lambda t: (mpf(1), 80 * t),
    "linear_continuous": lambda t: (
        mp.exp(-t * (mpf(0.1) + t * (20 - mpf(0.1)) / 2) / 2),
        mp.sqrt(-mp.expm1(-t * (mpf(0.1) + t * (20 - mpf(0.1)) / 2))),
    ),
}


@pytest.mark.parametrize("name", sorted(CLOSED))
@given(s=st.floats(0.001, 0.99), t=st.floats(0.001, 0.999))
def test_any_two_times_obey_bayes(name: str, s: float, t: float) -> None:
    """q(x_s | x_t, x_0) in proportion to q(x_t | x_s) q(x_s | x_0): precisions add, and so do precision x mean."""
    s, t = min(s, t), max(s, t)
    if t - s < 1e-3:
        t = s + 1e-3
    (alpha_s, sigma_s), (alpha_t, sigma_t) = CLOSED[name](mpf(s)), CLOSED[name](mpf(t))
    a = alpha_t / alpha_s
    v = sigma_t**2 - a**2 * sigma_s**2
    precision = 1 / sigma_s**2 + a**2 / v
    schedule = SCHEDULES[name]()
    ours = gaussian.posterior_coefficients(schedule, double(t), double(s))
    for got, truth in zip(ours, (a / v / precision, alpha_s / sigma_s**2 / precision, 1 / precision), strict=True):
        assert got.item() == pytest.approx(float(truth), rel=1e-11)
    got_a, got_v = gaussian.transition_coefficients(schedule, double(s), double(t))
    assert got_a.item() == pytest.approx(float(a), rel=1e-12)
    assert got_v.item() == pytest.approx(float(v), rel=1e-11)


def test_transitions_compose_to_the_marginal(schedule: Schedule) -> None:
    """Step by step through q(x_t | x_s), mean and variance are those of q(x_t | x_0), and of any longer step."""
    steps = schedule.steps or 50
    times = torch.arange(steps + 1, dtype=torch.float64) / steps
    mean, variance, means, variances = 1.0, 0.0, [], []
    for a, v in torch.stack(gaussian.transition_coefficients(schedule, times[:-1], times[1:]), 1).tolist():
        mean, variance = a * mean, a**2 * variance + v
        means.append(mean)
        variances.append(variance)
    torch.testing.assert_close(double(*means), schedule.alpha(times[1:]), rtol=1e-11, atol=1e-300)
    torch.testing.assert_close(double(*variances), schedule.sigma(times[1:]).square(), rtol=1e-11, atol=0)
    s, t, u = times[1], times[steps // 2], times[-1]
    (a, v), (b, w), (c, x) = (gaussian.transition_coefficients(schedule, *pair) for pair in ((s, t), (t, u), (s, u)))
    torch.testing.assert_close(c, a * b, rtol=1e-11, atol=1e-300)
    torch.testing.assert_close(x, b.square() * v + w, rtol=1e-11, atol=0)


def test_marginal_transition_posterior_of_tensors(schedule: Schedule) -> None:
    """Each row has its own times; shapes and dtype are x's."""
    generator = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 3, 2, 4, 4, generator=generator)
    t, s = double(0.3, 1.0, 0.5), double(0.1, 0.5, 0.0)
    mean, std = gaussian.marginal(schedule, x_0, t)
    assert mean.shape == x_0.shape
    assert std.shape == (3, 1, 1, 1)
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(gaussian.perturb(schedule, x_0, t, eps), mean + std * eps)
    x_t = gaussian.perturb(schedule, x_0, t, eps)
    posterior_mean, variance = gaussian.posterior(schedule, x_t, x_0, t, s)
    for b in range(3):
        torch.testing.assert_close(mean[b], schedule.alpha(t[b]).float() * x_0[b])
        c_t, c_0, u = gaussian.posterior_coefficients(schedule, t[b], s[b])
        torch.testing.assert_close(posterior_mean[b], c_t.float() * x_t[b] + c_0.float() * x_0[b])
        torch.testing.assert_close(variance[b].flatten(), u.float()[None])
        a, v = gaussian.transition_coefficients(schedule, s[b], t[b])
        step_mean, step_std = gaussian.transition(schedule, x_0, s, t)
        torch.testing.assert_close(step_mean[b], a.float() * x_0[b])
        torch.testing.assert_close(step_std[b].flatten(), v.sqrt().float()[None])
    torch.testing.assert_close(posterior_mean[2], x_0[2], rtol=1e-5, atol=1e-5)  # s = 0 is x_0 itself
    assert variance[2] == 0


def test_from_pure_noise(schedule: Schedule) -> None:
    """At t = 1 where alpha = 0 the posterior is the marginal q(x_s | x_0), with no NaN."""
    one, s = double(1.0), double(0.4)
    c_t, c_0, u = gaussian.posterior_coefficients(schedule, one, s)
    assert bool(torch.isfinite(torch.cat([c_t, c_0, u])).all())
    if schedule.alpha(one) == 0:
        assert c_t == 0
        torch.testing.assert_close(c_0, schedule.alpha(s))
        torch.testing.assert_close(u, schedule.sigma(s).square())


def test_log_variance_and_its_clip_as_improved_ddpm() -> None:
    """Their code: posterior_log_variance_clipped = log(append(posterior_variance[1], posterior_variance[1:]))."""
    schedule = schedules.cosine(50)
    cumulative = schedule.alphas_cumprod.numpy()
    before = [1.0, *cumulative[:-1]]
    variance = [b * (1 - p) / (1 - c) for b, p, c in zip(schedule.betas.tolist(), before, cumulative, strict=True)]
    i = torch.arange(1, 51, dtype=torch.float64)
    ours = gaussian.posterior_log_variance(schedule, i / 50, (i - 1) / 50)
    wanted = double(*[math.log(v) for v in [variance[1], *variance[1:]]])
    torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-11)


def test_log_variance_of_a_last_step_with_none_above() -> None:
    """One step alone, 1 -> 0, has no step above to be clipped to: it takes log v."""
    schedule = schedules.cosine(1)
    got = gaussian.posterior_log_variance(schedule, double(1.0), double(0.0))
    assert got.item() == pytest.approx(math.log(0.999), rel=1e-12)
    three = schedules.cosine(3)
    got = gaussian.posterior_log_variance(three, double(2 / 3), double(0.0))
    assert got.item() == pytest.approx(2 * three.sigma(double(2 / 3)).log().item(), rel=1e-12)


def test_kl_is_torchs() -> None:
    generator = torch.Generator().manual_seed(1)
    m, n, a, b = torch.randn(4, 500, dtype=torch.float64, generator=generator) * 2
    ours = gaussian.kl(m, 2 * a, n, 2 * b)
    torch.testing.assert_close(ours, kl_divergence(Normal(m, a.exp()), Normal(n, b.exp())), rtol=1e-10, atol=1e-12)
    assert bool((gaussian.kl(m, a, m, a) == 0).all())


def test_kl_keeps_its_digits_where_the_two_are_near() -> None:
    d = 1e-6
    truth = mpf("0.5") * (mp.exp(mpf(d)) - 1 - mpf(d))
    ours = gaussian.kl(double(0.0), double(d), double(0.0), double(0.0)).item()
    assert ours == pytest.approx(float(truth), rel=1e-3)
    assert ours >= 0


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_bins_sum_to_one(levels: int) -> None:
    width = 2 / (levels - 1)
    x = (torch.arange(levels, dtype=torch.float64) * width - 1)[:, None]
    mean = double(-3.0, -1.0, -0.21, 0.0, 0.5, 1.0, 7.0).repeat(5)
    log_std = double(-9.0, -5.0, -2.0, 0.0, 3.0).repeat_interleave(7)
    log_p = gaussian.discretised_log_likelihood(x, mean, log_std, width)
    torch.testing.assert_close(log_p.exp().sum(0), torch.ones(35, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("levels", [17, 256])
def test_discretised_likelihood_in_the_tails(levels: int) -> None:
    """mpmath's normal distribution, up to thousands of standard deviations away, on both sides and in all bins."""
    mp.dps = 60
    width = 2 / (levels - 1)
    for k in (0, 1, levels // 3, levels - 2, levels - 1):
        x = k * width - 1
        for mean in (-0.93, 0.05, 0.8):
            for std in (2.0, 0.3, 0.02, 0.0007):
                low, high = ((mpf(x) + sign * mpf(width) / 2 - mpf(mean)) / mpf(std) for sign in (-1, 1))
                if low + high > 0:  # the upper tail as the lower one, where a difference keeps its digits
                    low, high, first, last = -high, -low, k == levels - 1, k == 0
                else:
                    first, last = k == 0, k == levels - 1
                below = mpf(0) if first else mp.erfc(-low / mp.sqrt(2)) / 2
                above = mpf(1) if last else mp.erfc(-high / mp.sqrt(2)) / 2
                truth = mp.log(above - below)
                # the truth's float std goes through exp(log): compare with the error that alone makes
                ours = gaussian.discretised_log_likelihood(double(x), double(mean), double(std).log(), width).item()
                assert ours == pytest.approx(float(truth), rel=1e-9, abs=1e-9), (k, mean, std)
    mp.dps = 50


def test_discretised_likelihood_has_finite_gradients() -> None:
    """Up to 10^7 standard deviations away, and from bins as narrow as 10^-6 of one to as wide as 10^4."""
    x = torch.linspace(-1, 1, 17, dtype=torch.float64)[:, None, None]
    mean = torch.tensor([-50.0, -1.0, -0.3, 0.0, 1.0, 100.0])[:, None].double().requires_grad_()
    log_std = double(-11.0, -8.0, -3.0, 0.0, 5.0, 12.0).requires_grad_()
    log_p = gaussian.discretised_log_likelihood(x, mean, log_std, 0.125)
    assert bool(torch.isfinite(log_p).all())
    assert bool((log_p <= 0).all())
    for gradient in torch.autograd.grad(log_p.sum(), (mean, log_std)):
        assert bool(torch.isfinite(gradient).all())


def test_discretised_likelihood_gradients_are_right() -> None:
    x = double(-1.0, -0.5, 0.125, 1.0)

    def f(mean: Tensor, log_std: Tensor) -> Tensor:
        return gaussian.discretised_log_likelihood(x, mean, log_std, 0.125)

    inputs = (double(-0.8, -0.3, 0.4, 0.9).requires_grad_(), double(-1.0, -1.5, -2.0, -0.5).requires_grad_())
    assert torch.autograd.gradcheck(f, inputs)


def test_prior_term_is_the_kl_to_the_prior(schedule: Schedule) -> None:
    x_0 = torch.linspace(-1, 1, 6).reshape(2, 3)
    one = double(1.0)
    q = Normal(schedule.alpha(one) * x_0.double(), schedule.sigma(one))
    truth = kl_divergence(q, Normal(0.0, float(schedule.prior_std)))
    torch.testing.assert_close(gaussian.prior_term(schedule, x_0), truth, rtol=1e-9, atol=1e-15)


def test_bound_terms_of_mixed_rows() -> None:
    """Rows at s > 0 give the KL of the two posteriors, rows at s = 0 the decoder, both by torch.distributions."""
    schedule = schedules.linear(50)
    generator = torch.Generator().manual_seed(3)
    x_0 = (torch.randint(0, 17, (3, 5), generator=generator) / 8 - 1).double()
    x0, eps = torch.randn(2, 3, 5, dtype=torch.float64, generator=generator) * 0.5
    t, s = double(40, 2, 1) / 50, double(39, 1, 0) / 50
    x_t = gaussian.perturb(schedule, x_0, t, eps)
    log_variance = torch.randn(3, 5, dtype=torch.float64, generator=generator) - 4
    ours = gaussian.bound_term(schedule, x_0, x_t, t, s, x0, log_variance, 0.125)
    beta, now = schedule.betas[[39, 1, 0]][:, None], schedule.alphas_cumprod[[39, 1, 0]][:, None]
    before = now / (1 - beta)

    def mean(x: Tensor) -> Tensor:
        return before.sqrt() * beta / (1 - now) * x + (1 - beta).sqrt() * (1 - before) / (1 - now) * x_t

    p = Normal(mean(x0), (0.5 * log_variance).exp())
    q = Normal(mean(x_0), ((1 - before) / (1 - now) * beta).sqrt().clamp(min=1e-9))
    truth = kl_divergence(q, p)
    low, high = p.cdf(x_0 - 0.0625), p.cdf(x_0 + 0.0625)
    low, high = torch.where(x_0 == -1, 0.0, low), torch.where(x_0 == 1, 1.0, high)
    torch.testing.assert_close(ours[:2], truth[:2], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours[2], -(high - low).log()[2], rtol=1e-6, atol=1e-9)
    density = gaussian.bound_term(schedule, x_0, x_t, t, s, x0, log_variance, None)
    torch.testing.assert_close(density[:2], ours[:2], rtol=0, atol=0)
    torch.testing.assert_close(density[2], -p.log_prob(x_0)[2], rtol=1e-9, atol=1e-9)
