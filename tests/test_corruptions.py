"""Blurring is an independent scalar process at every frequency; cold diffusion is its degradation and nothing else."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from sfumato import corruptions, gaussian, grids, likelihood, losses, parameterization, samplers
from sfumato.codecs import InPixels
from sfumato.corruptions import PROCESSES, Blurring, Cold, perturb
from sfumato.degradations import DEGRADATIONS, dct, idct
from sfumato.denoiser import Cond, Denoiser, NetworkDenoiser, Prediction, from_x0
from sfumato.samplers.loop import named, walk
from sfumato.schedules import SCHEDULES, Schedule, cosine_continuous, linear, rectified
from sfumato.testbed import GaussianMixture

H, W = 3, 5
TIMES = torch.tensor([1.0, 0.93, 0.7, 0.31, 0.04, 0.002], dtype=torch.float64)
BLURRING = Blurring(H, W, sigma_blur_max=2.5, d_min=0.01)
FLAT = [(n, m) for n in range(H) for m in range(W)]


class At(Schedule):
    """The scalar schedule of one frequency, in numpy's arithmetic: what Blurring must be there."""

    name = "one frequency"

    def __init__(self, n: int, m: int):
        self.rate = math.pi**2 * ((n / H) ** 2 + (m / W) ** 2)

    def alpha(self, t: Tensor) -> Tensor:
        sigma_b = 2.5 * torch.sin(t.double() * math.pi / 2) ** 2
        d = 0.99 * torch.exp(-self.rate * sigma_b**2 / 2) + 0.01
        return torch.cos((t.double() + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2) * d

    def sigma(self, t: Tensor) -> Tensor:
        return cosine_continuous().sigma(t)


class Diagonal(Denoiser):
    """The exact Denoiser of independent N(mean, variance), each (1, H, W), under any schedule."""

    def __init__(self, schedule: Schedule, mean: Tensor, variance: Tensor):
        self.schedule, self.mean, self.variance = schedule, mean, variance

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        spread = alpha.square() * self.variance + sigma.square()
        off = x_t - alpha * self.mean
        x0_variance = (sigma.square() * self.variance / spread).expand_as(x_t)
        return Prediction(self.mean + alpha * self.variance / spread * off, sigma * off / spread, None, x0_variance)


MEAN = torch.linspace(-1, 1, H * W, dtype=torch.float64).reshape(1, H, W)
VARIANCE = torch.logspace(0.3, -2, H * W, dtype=torch.float64).reshape(1, H, W)
EXACT = Diagonal(BLURRING, MEAN, VARIANCE)


def one_frequency(n: int, m: int) -> tuple[Schedule, GaussianMixture]:
    mean, variance = MEAN[0, n, m].reshape(1, 1), VARIANCE[0, n, m].reshape(1, 1, 1)
    return At(n, m), GaussianMixture(torch.ones(1), mean, variance)


def over_frequencies(of: list[Tensor]) -> Tensor:
    """[(B, ...) of each frequency] as (B, ..., 1, H, W)."""
    return torch.stack(of, -1).unflatten(-1, (1, H, W))


def test_alpha_and_sigma_are_the_papers() -> None:
    alpha, sigma = BLURRING.alpha(TIMES), BLURRING.sigma(TIMES)
    assert alpha.shape == sigma.shape == (6, 1, H, W)
    assert alpha.dtype == sigma.dtype == torch.float64
    torch.testing.assert_close(alpha, over_frequencies([At(*f).alpha(TIMES) for f in FLAT]), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(sigma, over_frequencies([At(*f).sigma(TIMES) for f in FLAT]), rtol=0, atol=0)
    torch.testing.assert_close(alpha[:, 0, 0, 0].square() + sigma[:, 0, 0, 0].square(), torch.ones_like(TIMES))
    for t, row in zip(TIMES, alpha, strict=True):  # one time, as samplers ask
        assert BLURRING.alpha(t).shape == BLURRING.sigma(t).shape == BLURRING.logsnr(t).shape == (1, 1, H, W)
        assert torch.equal(BLURRING.alpha(t)[0], row)


def test_it_starts_at_the_data_and_ends_at_the_prior() -> None:
    zero, one = torch.zeros(1), torch.ones(1)
    assert bool((BLURRING.alpha(zero) == 1).all())
    assert bool((BLURRING.sigma(zero) == 0).all())
    assert bool((BLURRING.alpha(one) == 0).all())
    assert bool((BLURRING.sigma(one) == 1).all())
    assert float(gaussian.prior_term(BLURRING, torch.randn(4, 3, H, W)).abs().max()) == 0
    falling = BLURRING.logsnr(torch.linspace(0, 1, 400, dtype=torch.float64)).diff(dim=0)
    assert bool((falling < 0).all())


def test_in_pixels_it_is_a_gaussian_blur_and_white_noise() -> None:
    """q(x_t | x_0) seen through the inverse DCT, against scipy's blur with reflecting edges."""
    schedule = Blurring(16, 12, sigma_blur_max=6.0, d_min=1e-9)
    generator = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 2, 3, 16, 12, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.4, 0.6], dtype=torch.float64)
    x_t = idct(perturb(schedule, dct(x), t, dct(eps)))
    for b in range(2):
        sigma_b = 6.0 * math.sin(math.pi / 2 * float(t[b])) ** 2
        blurred = scipy.ndimage.gaussian_filter(x[b].numpy(), sigma_b, mode="reflect", truncate=12, axes=(1, 2))
        truth = (
            float(cosine_continuous().alpha(t[b])) * blurred + float(cosine_continuous().sigma(t[b])) * eps[b].numpy()
        )
        np.testing.assert_allclose(x_t[b], truth, rtol=0, atol=1e-7)


def test_without_blur_it_is_the_cosine_path() -> None:
    flat = Blurring(H, W, d_min=1.0, s=0.02)
    plain = cosine_continuous(0.02)
    for of, other in ((flat.alpha, plain.alpha), (flat.sigma, plain.sigma), (flat.logsnr, plain.logsnr)):
        torch.testing.assert_close(of(TIMES), other(TIMES).reshape(-1, 1, 1, 1).expand(6, 1, H, W), rtol=1e-14, atol=0)
    assert BLURRING.path == cosine_continuous()


def test_derivatives_are_elementwise() -> None:
    t, h = TIMES[1:-1], 1e-6
    for of, derivative in ((BLURRING.alpha, BLURRING.dalpha), (BLURRING.sigma, BLURRING.dsigma)):
        difference = (of(t + h) - of(t - h)) / (2 * h)
        torch.testing.assert_close(derivative(t), difference, rtol=1e-7, atol=1e-8)


def test_posterior_is_bayes_rule_at_every_frequency() -> None:
    """In the paper's form: precisions add, 1/u = 1/sigma_s^2 + a_ts^2/v_ts (its app. A)."""
    t, s = TIMES[1:4], TIMES[3:]
    alpha_t, alpha_s = (BLURRING.alpha(time).numpy() for time in (t, s))
    sigma_t, sigma_s = (BLURRING.sigma(time).numpy() for time in (t, s))
    a = alpha_t / alpha_s
    v = sigma_t**2 - a**2 * sigma_s**2
    u = 1 / (1 / sigma_s**2 + a**2 / v)
    c_t, c_0, variance = gaussian.posterior_coefficients(BLURRING, t, s)
    np.testing.assert_allclose(variance, u, rtol=1e-9)
    np.testing.assert_allclose(c_t, u * a / v, rtol=1e-9)
    np.testing.assert_allclose(c_0, u * alpha_s / sigma_s**2, rtol=1e-9)


def test_the_variance_above_the_last_step_is_each_rows_own() -> None:
    t = torch.tensor([0.9, 0.3, 0.001, 0.6], dtype=torch.float64)
    s = torch.tensor([0.0, 0.2, 0.0, 0.1], dtype=torch.float64)
    ours = gaussian.posterior_log_variance(BLURRING, t, s)
    truth = over_frequencies([gaussian.posterior_log_variance(At(*f), t, s) for f in FLAT])
    torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("target", ["x0", "v", "flow", "edm"])
def test_targets_come_back(target: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 6, 3, H, W, generator=generator, dtype=torch.float64)
    x_t = gaussian.perturb(BLURRING, x0, TIMES, eps)
    y = parameterization.to_target(target, BLURRING, TIMES, x0, eps)
    back = parameterization.from_target(target, BLURRING, TIMES, x_t, y)
    torch.testing.assert_close(back, (x0, eps), rtol=0, atol=1e-8)


def test_every_weighted_loss_is_the_mean_of_its_frequencies() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, error, eps = torch.randn(3, 5, 2, H, W, generator=generator, dtype=torch.float64)
    t = TIMES[1:]
    for name, weighting in losses.WEIGHTINGS.items():
        weight = over_frequencies([weighting(At(*f), t) for f in FLAT])
        truth = (weight * error.square()).mean((1, 2, 3))
        at = losses.Noised(BLURRING, x0, gaussian.perturb(BLURRING, x0, t, eps), t, None)
        ours = losses.simple(at, from_x0(BLURRING, at.x_t, t, x0 + error), weighting)
        torch.testing.assert_close(ours, truth, rtol=1e-8, atol=0, msg=lambda said, name=name: f"{name}: {said}")


@pytest.mark.parametrize(
    "sampler", ["ddim", "ddim:eta=0.6", "ddim-sigma-hat", "ancestral:variance=large", "ancestral:variance=optimal"]
)
def test_samplers_walk_every_frequency_as_they_walk_it_alone(sampler: str) -> None:
    generator = torch.Generator().manual_seed(0)
    times = grids.trailing(BLURRING, 7)
    x_T = torch.randn(2, 1, H, W, generator=generator, dtype=torch.float64)
    z = torch.randn(7, 2, 1, H, W, generator=generator, dtype=torch.float64)
    run = named(sampler, samplers.SAMPLERS)
    *_, (_, together, _) = walk(EXACT, x_T, run, times, lambda k: z[k])
    for n, m in FLAT:
        schedule, mixture = one_frequency(n, m)
        noise = lambda k, n=n, m=m: z[k, :, :, n, m]  # noqa: E731
        *_, (_, alone, _) = walk(mixture.denoiser(schedule), x_T[:, :, n, m], run, times, noise)
        torch.testing.assert_close(together[:, :, n, m], alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_many_steps_make_the_mean_and_covariance_of_the_data(sampler: str) -> None:
    """Nothing, x_T = 1 and each step's noise = 1 pass as rows; each frequency's map is affine and its own."""
    made = []
    for steps in (60, 120):
        x_T = torch.zeros(2 + steps, 1, H, W, dtype=torch.float64)
        x_T[1] = 1

        def noise(k: int, like: Tensor = x_T) -> Tensor:
            z = torch.zeros_like(like)
            z[2 + k] = 1
            return z

        *_, (_, x, _) = walk(EXACT, x_T, named(sampler, samplers.SAMPLERS), grids.trailing(BLURRING, steps), noise)
        torch.testing.assert_close(x[0], MEAN, rtol=0, atol=1e-12)
        made.append((x[1:] - x[0]).square().sum(0) / VARIANCE)
    assert float((made[1] - 1).abs().max()) < 0.22
    assert float((2 * made[1] - made[0] - 1).abs().max()) < 0.1  # the error is of order 1 in the step


def test_the_bound_is_the_sum_of_its_frequencies() -> None:
    """Rows mean +- std with eps +- 1 are the two-point rule, exact for the quadratics that a Gaussian's bound is.

    The optimal variance makes the reverse chain exact, so that its bound is the data's entropy.
    """
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    x_0 = MEAN + VARIANCE.sqrt() * signs[:, :1, None, None]
    times = torch.linspace(1, 0, 9, dtype=torch.float64)
    entropy = float(0.5 * (2 * math.pi * math.e * VARIANCE).log().sum())
    for variance in ("optimal", "small"):
        eps_at = lambda rows, i: signs[rows, 1].reshape(-1, 1, 1, 1)  # noqa: E731
        found = likelihood.bits_per_dim(EXACT, x_0, bin_width=None, variance=variance, steps=8, eps_at=eps_at)
        nats = found.total * math.log(2) * H * W
        apart = [one_frequency(*f) for f in FLAT]
        truth = sum(float(mixture.bound(schedule, times, variance, nodes=1).sum()) for schedule, mixture in apart)
        assert nats == pytest.approx(truth, rel=1e-9)
        assert nats == pytest.approx(entropy, rel=1e-9) if variance == "optimal" else nats > entropy + 1


class Half(torch.nn.Module):
    """A network that says half of what it is shown, or that and its negative, as if it had learned a variance."""

    def __init__(self, twice: bool = False):
        super().__init__()
        self.scale, self.twice = torch.nn.Parameter(torch.tensor(0.5)), twice

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        assert t.shape == (len(x),)
        return torch.cat([self.scale * x, -self.scale * x], 1) if self.twice else self.scale * x


@pytest.mark.parametrize("twice", [False, True])
def test_a_network_of_pixels_denoises_frequencies(twice: bool) -> None:
    x_t, t = torch.randn(6, 2, H, W, generator=torch.Generator().manual_seed(0)), TIMES
    denoiser = NetworkDenoiser(InPixels(Half(twice)), BLURRING, target="v", time="unit", learned_variance=twice)
    p = denoiser(x_t, t)
    x0, eps = parameterization.from_target("v", BLURRING, t, x_t, x_t / 2)
    torch.testing.assert_close((p.x0, p.eps), (x0, eps), rtol=1e-4, atol=1e-5)
    if twice:
        torch.testing.assert_close(p.variance_mix, (1 - x_t / 2) / 2)


@pytest.mark.parametrize("name", sorted(DEGRADATIONS))
def test_cold_is_its_degradation(name: str) -> None:
    x_0, eps = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    schedule = Cold(name)
    assert schedule.strength == DEGRADATIONS[name].usual
    t = torch.tensor([0.0, 0.5, 1.0])
    x_t = perturb(schedule, x_0, t, eps)
    assert torch.equal(x_t, perturb(schedule, x_0, t, torch.zeros_like(eps)))  # no noise is in it
    assert torch.equal(x_t[0], x_0[0])
    assert torch.equal(x_t[2:], DEGRADATIONS[name].run(x_0[2:], schedule.strength))
    assert torch.equal(schedule.degrade(x_0, t[1]), DEGRADATIONS[name].run(x_0, schedule.strength / 2))
    weaker = Cold(name, schedule.strength / 2)
    assert torch.equal(weaker.degrade(x_0, t[2]), schedule.degrade(x_0, t[1]))


def test_a_network_of_cold_diffusion_says_x0() -> None:
    x_t, t = torch.randn(3, 1, 4, 4), torch.tensor([1.0, 0.5, 0.1])
    p = NetworkDenoiser(Half(), Cold(), target="x0", time="unit")(x_t, t)
    assert torch.equal(p.x0, x_t / 2)
    for of, other in ((Cold().alpha, rectified().alpha), (Cold().sigma, rectified().sigma)):
        assert torch.equal(of(TIMES), other(TIMES))


def test_perturb_is_the_gaussian_one_for_every_other_schedule() -> None:
    x_0, eps, t = torch.randn(3, 2), torch.randn(3, 2), torch.tensor([1.0, 0.5, 0.1])
    assert torch.equal(perturb(linear(50), x_0, t, eps), gaussian.perturb(linear(50), x_0, t, eps))


@pytest.mark.parametrize("schedule", [BLURRING, Blurring(), Cold(), Cold("mask", 0.3), linear(50)])
def test_spec_comes_back_through_json(schedule: Schedule) -> None:
    back = corruptions.from_spec(json.loads(json.dumps(schedule.spec)))
    assert type(back) is type(schedule)
    assert back.spec == schedule.spec
    assert PROCESSES.keys() == SCHEDULES.keys() | {"blurring", "cold"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bluring", "unknown schedule 'bluring'; did you mean 'blurring'"),
        ("blurring:height=0", "option height of schedule blurring is a number above 0; got 0"),
        ("blurring:width=2.5", "a side of schedule blurring must be a whole number >= 1; got 2.5"),
        ("blurring:sigma_blur_max=-1", "option sigma_blur_max of schedule blurring is a number above 0"),
        ("blurring:d_min=1.5", "option d_min of schedule blurring is a share of the detail, at most 1; got 1.5"),
        ("blurring:size=3", "schedule 'blurring' with options"),
        ("cold:degradation=blurr", "unknown degradation 'blurr'; did you mean 'blur'"),
        ("cold:strength=0", "option strength of schedule cold is a number above 0; got 0"),
        ("cold:strength=much", "option strength of schedule cold is a number above 0; got 'much'"),
        ("cold:strength=True", "option strength of schedule cold is a number above 0; got True"),
        ("cold:degradation=mask,strength=2", "the strength of mask must be from 0 to 1; got 2.0"),
    ],
)
def test_mistakes_are_answered(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        corruptions.from_spec(text)
