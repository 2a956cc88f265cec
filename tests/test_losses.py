"""Losses against their papers, and against torch.distributions."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from sfumato import gaussian, losses, schedules, times
from sfumato import parameterization as par
from sfumato.corruptions import PROCESSES
from sfumato.denoiser import NetworkDenoiser, Prediction
from sfumato.losses import LOSSES, WEIGHTINGS, Noised
from sfumato.parameterization import TARGETS, ends_in_noise
from sfumato.schedules import Schedule
from sfumato.times import TIMES


def noised(
    schedule: Schedule, t: Tensor, bin_width: float | None = None, seed: int = 0, shape: tuple[int, ...] = (2, 3)
) -> tuple[Noised, Tensor]:
    """A batch of 17-level "pictures" at the times t, in float64, and the eps it was made with."""
    generator = torch.Generator().manual_seed(seed)
    x_0 = torch.randint(0, 17, (len(t), *shape), generator=generator).double() / 8 - 1
    eps = torch.randn(x_0.shape, dtype=torch.float64, generator=generator)
    return Noised(schedule, x_0, gaussian.perturb(schedule, x_0, t, eps), t, bin_width), eps


def says(target: str, at: Noised, x0: Tensor, eps: Tensor) -> Prediction:
    """What a network of this target makes of the y that stands for x0 and eps."""
    y = par.to_target(target, at.schedule, at.t, x0, eps)
    return NetworkDenoiser(lambda x, t, cond: y, at.schedule, target=target, time="unit")(at.x_t, at.t)


def allowed(schedule: Schedule) -> list[str]:
    names = []
    for target in TARGETS:
        try:
            par.check(target, schedule)
        except ValueError:
            continue
        names.append(target)
    return names


PROCESS_NAMES = sorted({*PROCESSES} - {"cold"})  # which has no noise, and so neither weights nor targets


def process(name: str) -> tuple[Schedule, tuple[int, ...]]:
    """A schedule and a shape of data for it."""
    options: dict[str, dict[str, Any]] = {
        "from_betas": {"betas": [0.001, 0.01, 0.05, 0.2, 0.1, 0.5]},
        "blurring": {"height": 2, "width": 3},
    }
    return PROCESSES[name](**options.get(name, {})), (1, 2, 3) if name == "blurring" else (2, 3)


def times_of(schedule: Schedule) -> Tensor:
    """The first and last steps, and some between: 1 itself where alpha(1) > 0, so that no weight is 0."""
    total = schedule.steps or 1000
    steps = torch.tensor([1, 2, total // 3, total // 2, total - 1, total - ends_in_noise(schedule)])
    return steps.double() / total


@pytest.mark.parametrize("name", PROCESS_NAMES)
def test_networks_that_make_the_same_x0_have_the_same_loss(name: str) -> None:
    """Every target that is not refused, under every weight, at every time, to 1e-10; and so for the bounds.

    It is the weight on the x_0 error, times (sigma/det)^2 on the target's own.
    """
    schedule, shape = process(name)
    t = times_of(schedule)
    at, eps = noised(schedule, t, shape=shape)
    x0 = at.x_0 + 0.1 * torch.randn(at.x_0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    alpha, sigma = gaussian.expand(schedule.alpha(t), x0), gaussian.expand(schedule.sigma(t), x0)
    implied = (at.x_t - alpha * x0) / sigma
    targets = allowed(schedule)
    predictions = {target: says(target, at, x0, implied) for target in targets}
    assert len(targets) >= (3 if name == "blurring" else 4)
    for kind, weighting in [*product(["simple"], WEIGHTINGS), *product(LOSSES, ["simple"])]:  # bounds have no weight
        values = {target: LOSSES[kind](at, p, WEIGHTINGS[weighting]) for target, p in predictions.items()}
        for value in values.values():
            assert value.shape == t.shape
            torch.testing.assert_close(value, values["x0"], rtol=1e-10, atol=0)
    factors = {y: gaussian.expand((schedule.sigma(t) / par.determinant(y, schedule, t)).square(), x0) for y in targets}
    errors = {y: par.to_target(y, schedule, t, x0 - at.x_0, implied - eps) for y in targets}
    for weigh in WEIGHTINGS.values():
        weight = gaussian.expand(weigh(schedule, t), x0)
        value = LOSSES["simple"](at, predictions["x0"], weigh)
        assert bool((value > 0).all())
        for target in targets:
            direct = (weight * factors[target] * errors[target].square()).flatten(1).mean(1)
            torch.testing.assert_close(value, direct, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("weighting", "target", "name"),
    [
        ("simple", "eps", "linear"),
        ("simple", "eps", "cosine"),
        ("simple", "eps", "edm"),
        ("x0", "x0", "rectified"),
        ("v", "v", "cosine"),
        ("v", "v", "linear_continuous"),
        ("v", "v", "cosine_continuous"),
        ("velocity", "flow", "rectified"),
        ("velocity", "flow", "cosine_continuous"),
        ("edm", "edm", "edm"),
    ],
)
def test_weight_one_on_its_own_target(weighting: str, target: str, name: str) -> None:
    """simple is the mean squared error of eps, v of v (where alpha^2 + sigma^2 = 1), velocity of dx/dt, edm of F."""
    schedule = schedules.SCHEDULES[name]()
    at, eps = noised(schedule, torch.tensor([0.05, 0.3, 0.7, 0.95], dtype=torch.float64))
    y = par.to_target(target, schedule, at.t, at.x_0, eps)
    error = 0.3 * torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    net = NetworkDenoiser(lambda x, t, cond: y + error, schedule, target=target, time="unit")
    ours = LOSSES["simple"](at, net(at.x_t, at.t), WEIGHTINGS[weighting])
    torch.testing.assert_close(ours, error.square().flatten(1).mean(1), rtol=1e-9, atol=1e-14)


def test_edm_weight_as_karras() -> None:
    """lambda(sigma) = (sigma^2 + sigma_data^2)/(sigma sigma_data)^2 on |D - y|^2."""
    schedule, t = schedules.edm(), torch.tensor([0.001, 0.1, 1.0], dtype=torch.float64)
    sigma = 80 * t
    torch.testing.assert_close(WEIGHTINGS["edm"](schedule, t), (sigma**2 + 0.25) / (sigma * 0.5) ** 2)


def test_min_snr_as_hang() -> None:
    """arXiv:2303.09556: min(snr, 5) on x0, min(snr, 5)/snr on eps, min(snr, 5)/(snr + 1) on v: the clamp is on top."""
    schedule = schedules.cosine(100)
    t = torch.arange(1, 101, dtype=torch.float64) / 100
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    weight = WEIGHTINGS["min_snr"](schedule, t)
    torch.testing.assert_close(weight, torch.minimum(snr, torch.tensor(5.0)), rtol=1e-10, atol=0)
    assert weight.max() == 5
    on = {y: weight * (schedule.sigma(t) / par.determinant(y, schedule, t)).square() for y in ("eps", "v")}
    torch.testing.assert_close(on["eps"], torch.minimum(snr, torch.tensor(5.0)) / snr, rtol=1e-9, atol=0)
    torch.testing.assert_close(on["v"], torch.minimum(snr, torch.tensor(5.0)) / (snr + 1), rtol=1e-9, atol=0)
    assert losses.min_snr(schedule, t, gamma=2.0).max() == 2


def test_sigmoid_weight() -> None:
    """On eps it is sigmoid(bias - logsnr), whatever the size of logsnr."""
    schedule = schedules.rectified()
    t = torch.tensor([1e-8, 0.2, 0.5, 0.9, 1 - 1e-8], dtype=torch.float64)
    snr = ((1 - t) / t).square()
    for bias in (0.0, -3.0):
        wanted = snr / (1 + snr * math.exp(-bias))
        torch.testing.assert_close(losses.sigmoid(schedule, t, bias=bias), wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["linear", "quadratic", "cosine", "sigmoid"])
def test_lambda_t_as_ddpm(name: str) -> None:
    """beta^2/(2 variance alpha (1 - abar)) on eps (arXiv:2006.11239, eq. 12); if small, (snr_s - snr_t)/2."""
    schedule = schedules.SCHEDULES[name]()
    assert isinstance(schedule, schedules.Discrete)
    i = torch.arange(2, 1001, dtype=torch.float64)
    beta, now = schedule.betas[1:], schedule.alphas_cumprod[1:]
    before = schedule.alphas_cumprod[:-1]
    snr_s, snr_t = before / (1 - before), now / (1 - now)
    small = losses.bound(schedule, i / 1000)
    torch.testing.assert_close(small, (snr_s - snr_t) / 2, rtol=1e-8, atol=0)
    for variance, value in (("small", beta * (1 - before) / (1 - now)), ("large", beta)):
        on_eps = losses.bound(schedule, i / 1000, variance=variance) / snr_t
        torch.testing.assert_close(on_eps, beta**2 / (2 * value * (1 - beta) * (1 - now)), rtol=1e-8, atol=0)


def test_the_bound_weight_is_the_bounds_term(schedule: Schedule) -> None:
    """lambda_t |x0 error|^2 is L_{t-1} of the small variance, for every schedule, steps of 1/T or 1/1000."""
    total = schedule.steps or losses.CONTINUOUS_STEPS
    t = torch.tensor([2, total // 2, total - 1], dtype=torch.float64) / total
    at, eps = noised(schedule, t)
    x0 = at.x_0 + 0.2
    p = Prediction(x0, eps)
    nats = LOSSES["vlb"](at, p, losses.bound) * math.log(2) / total
    torch.testing.assert_close(LOSSES["simple"](at, p, losses.bound), nats, rtol=1e-7, atol=0)


def test_previous_is_exactly_zero_under_the_first_step() -> None:
    for total in (1, 3, 10, 1000, 4000):
        schedule = schedules.from_betas([0.001] * total)
        i = torch.arange(1, total + 1)
        for dtype in (torch.float32, torch.float64):
            s = losses.previous(schedule, i.to(dtype) / total)
            assert s[0] == 0
            assert torch.equal(schedule.position(s), (i - 1).double())


def test_vlb_against_torch_distributions() -> None:
    """T times KL(q || p) for s > 0 and minus the log-probability of the bin for s = 0, in bits a dimension."""
    schedule = schedules.linear(50)
    t = torch.tensor([40, 2, 1, 50], dtype=torch.float64) / 50
    at, eps = noised(schedule, t, bin_width=0.125)
    generator = torch.Generator().manual_seed(4)
    x0 = at.x_0 + 0.02 * torch.randn(at.x_0.shape, dtype=torch.float64, generator=generator)
    mix = torch.rand(at.x_0.shape, dtype=torch.float64, generator=generator)
    index = (t * 50).round().long() - 1
    beta, now = (a[index][:, None, None] for a in (schedule.betas, schedule.alphas_cumprod))
    before = torch.where(index[:, None, None] == 0, 1.0, now / (1 - beta))
    tilde = (1 - before) / (1 - now) * beta
    clipped = torch.where(
        tilde > 0, tilde, (schedule.betas[1] * (1 - schedule.alphas_cumprod[0])) / (1 - schedule.alphas_cumprod[1])
    )

    def mean(x: Tensor) -> Tensor:
        return before.sqrt() * beta / (1 - now) * x + (1 - beta).sqrt() * (1 - before) / (1 - now) * at.x_t

    for given, variance in (
        (None, clipped.expand_as(mix)),
        (mix, torch.exp(mix * beta.log() + (1 - mix) * clipped.log())),
    ):
        ours = LOSSES["vlb"](at, Prediction(x0, eps, given), WEIGHTINGS["simple"])
        p = Normal(mean(x0), variance.sqrt())
        kl = kl_divergence(Normal(mean(at.x_0), clipped.sqrt()), p)
        low, high = p.cdf(at.x_0 - 0.0625), p.cdf(at.x_0 + 0.0625)
        low, high = torch.where(at.x_0 == -1, 0.0, low), torch.where(at.x_0 == 1, 1.0, high)
        nats = torch.where(index[:, None, None] == 0, -(high - low).log(), kl)
        wanted = 50 * nats.flatten(1).mean(1) / math.log(2)
        torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-9)


def test_hybrid_teaches_the_mean_by_simple_and_the_variance_by_the_bound() -> None:
    schedule = schedules.cosine(40)
    t = torch.tensor([1, 2, 25, 40], dtype=torch.float64) / 40
    at, eps = noised(schedule, t, bin_width=0.125)
    x0, mix = (at.x_0 + 0.1).requires_grad_(), torch.full_like(at.x_0, 0.4).requires_grad_()
    p = Prediction(x0, eps, mix)
    weight = WEIGHTINGS["simple"]
    simple, vlb, hybrid = (LOSSES[name](at, p, weight) for name in ("simple", "vlb", "hybrid"))
    torch.testing.assert_close(hybrid, simple + 0.001 * vlb)
    to_x0, to_mix = torch.autograd.grad(hybrid.sum(), (x0, mix), retain_graph=True)
    assert torch.equal(to_x0, torch.autograd.grad(simple.sum(), x0, retain_graph=True)[0])
    from_bound_x0, from_bound_mix = torch.autograd.grad(vlb.sum(), (x0, mix))
    torch.testing.assert_close(to_mix, 0.001 * from_bound_mix)
    assert bool((to_mix.flatten(1).abs().sum(1) > 0).all())
    assert from_bound_x0.abs().sum() > 0  # it would move the mean, were it not stopped


def test_losses_keep_the_dtype_of_the_data() -> None:
    schedule = schedules.cosine(10)
    at, eps = noised(schedule, torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64), bin_width=0.125)
    at32 = Noised(schedule, at.x_0.float(), at.x_t.float(), at.t, at.bin_width)
    for name, loss in LOSSES.items():
        p = Prediction(at.x_0 + 0.05, eps)
        p32 = Prediction(p.x0.float(), p.eps.float())
        value = loss(at32, p32, WEIGHTINGS["v"])
        assert value.dtype == torch.float32, name
        torch.testing.assert_close(value.double(), loss(at, p, WEIGHTINGS["v"]), rtol=2e-3, atol=1e-5)


# ---- times: deterministic, by giving u its quantiles


def quantiles(n: int) -> Tensor:
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def test_uniform_times_visit_each_step_alike() -> None:
    schedule = schedules.cosine(50)
    t, weight = times.uniform(quantiles(5000), schedule, None)
    steps, counts = (t * 50).round().long().unique(return_counts=True)
    assert torch.equal(steps, torch.arange(1, 51))
    assert bool((counts == 100).all())
    assert bool((weight == 1).all())
    edge, _ = times.uniform(torch.tensor([0.0, 1 - 1e-16], dtype=torch.float64), schedule, None)
    assert edge.tolist() == [1 / 50, 1]


def test_uniform_times_of_a_continuous_schedule() -> None:
    u = quantiles(1000)
    t, _ = times.uniform(u, schedules.rectified(), None)
    assert torch.equal(t, u)
    t, _ = times.uniform(torch.tensor([0.0, 1.0], dtype=torch.float64), schedules.rectified(), None)
    assert t.tolist() == [times.EDGE, 1 - times.EDGE]


def test_stratified_times_are_one_in_each_part() -> None:
    """Of B draws one lies in each B-th of (0, 1); over the first draw each is uniform."""
    generator = torch.Generator().manual_seed(0)
    everything = []
    for _ in range(200):
        u = torch.rand(8, dtype=torch.float64, generator=generator)
        t, weight = times.stratified(u, schedules.rectified(), None)
        assert (t * 8).floor().sort().values.tolist() == list(range(8))
        assert bool((weight == 1).all())
        everything.append(t[3].item())
    assert stats.kstest(everything, "uniform").pvalue > 1e-4
    t, _ = times.stratified(torch.full((50,), 0.37, dtype=torch.float64), schedules.cosine(50), None)
    assert sorted((t * 50).round().tolist()) == list(range(1, 51))


def test_logit_normal_times() -> None:
    u = quantiles(4000)
    for mean, std in ((0.0, 1.0), (-0.5, 0.7)):
        t, weight = times.logit_normal(u, schedules.rectified(), None, mean=mean, std=std)
        assert stats.kstest(torch.logit(t).numpy(), "norm", args=(mean, std)).statistic < 1e-3
        assert bool((weight == 1).all())
    t, _ = times.logit_normal(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), schedules.cosine(10), None)
    assert t.tolist() == [0.1, 0.6, 1.0]


def test_importance_times_follow_p_and_stay_unbiased() -> None:
    """Steps come with probability p; weighted by 1/(T p), the mean over draws is the plain mean over steps."""
    p = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2], dtype=torch.float64)
    schedule = schedules.cosine(5)
    u = quantiles(10_000)
    t, weight = times.importance(u, schedule, p)
    i = (t * 5).round().long() - 1
    torch.testing.assert_close(i.bincount(minlength=5).double() / 10_000, p, rtol=1e-3, atol=0)
    value = torch.tensor([3.0, -1.0, 10.0, 0.5, 7.0], dtype=torch.float64)
    torch.testing.assert_close((weight * value[i]).mean(), value.mean(), rtol=1e-3, atol=0)
    last, _ = times.importance(torch.tensor([1 - 1e-17], dtype=torch.float64), schedule, p)
    assert last == 1
    with pytest.raises(ValueError, match="need a T-step schedule"):
        times.importance(u, schedules.rectified(), None)


def test_importance_probabilities() -> None:
    """arXiv:2102.09672, eq. (18): sqrt(E[L^2]) of the last ten; uniform until every step has ten."""
    seen = (
        torch.rand(6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7)[:, None]
    )
    p = times.importance_probabilities(seen)
    rms = np.sqrt((seen.numpy() ** 2).mean(1))
    np.testing.assert_allclose(p.numpy(), 0.999 * rms / rms.sum() + 0.001 / 6, rtol=1e-12)
    assert p.sum().item() == pytest.approx(1)
    seen[2, 9] = math.nan
    assert torch.equal(times.importance_probabilities(seen), torch.full((6,), 1 / 6, dtype=torch.float64))


def test_every_way_to_draw_times_gives_times_of_the_schedule(schedule: Schedule) -> None:
    u = torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for name, draw in TIMES.items():
        if name == "importance" and schedule.steps is None:
            continue
        p = None if schedule.steps is None else torch.full((schedule.steps,), 1 / schedule.steps, dtype=torch.float64)
        t, weight = draw(u, schedule, p)
        assert t.shape == weight.shape == (64,)
        assert t.dtype == torch.float64
        assert bool(((t > 0) & (t <= 1)).all())
        if schedule.steps:
            i = schedule.steps * t
            assert bool(((i - i.round()).abs() < 1e-9).all())


# ---- EDM's log-normal noise


def test_log_normal_noise_as_karras() -> None:
    """ln sigma ~ N(-1.2, 1.2^2) on EDM's own schedule, and ln(sigma/alpha) so on every continuous one."""
    u = quantiles(4000)
    for name in ("edm", "rectified", "linear_continuous", "cosine_continuous"):
        schedule = schedules.SCHEDULES[name]()
        t, weight = times.log_normal(u, schedule, None)
        ratio = (schedule.sigma(t) / schedule.alpha(t)).log().numpy()
        assert stats.kstest(ratio, "norm", args=(-1.2, 1.2)).statistic < 1e-3, name
        assert ratio.mean() == pytest.approx(-1.2, abs=2e-3)
        assert ratio.std() == pytest.approx(1.2, abs=5e-3)
        assert bool((weight == 1).all())
    t, _ = times.log_normal(u, schedules.edm(), None, mean=0.5, std=0.3)
    assert stats.kstest((80 * t).log().numpy(), "norm", args=(0.5, 0.3)).statistic < 1e-3
    drawn = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t, _ = times.log_normal(drawn, schedules.edm(), None)
    assert stats.kstest((80 * t).log().numpy(), "norm", args=(-1.2, 1.2)).pvalue > 1e-4
    ends, _ = times.log_normal(torch.tensor([0.0, 1.0], dtype=torch.float64), schedules.edm(), None)
    assert ends.tolist() == [times.EDGE, 1 - times.EDGE]


@pytest.mark.parametrize("name", ["linear", "cosine", "zero_terminal"])
def test_log_normal_noise_of_a_discrete_schedule_is_on_its_grid(name: str) -> None:
    """Step i is drawn as often as ln(sigma/alpha) of (i - 1)/T .. i/T is."""
    schedule = schedules.SCHEDULES[name](steps=50)
    t, _ = times.log_normal(quantiles(20_000), schedule, None)
    i = (t * 50).round()
    assert bool(((t * 50 - i).abs() < 1e-9).all())
    grid = torch.arange(51, dtype=torch.float64) / 50
    below = stats.norm.cdf(-0.5 * schedule.logsnr(grid).numpy(), -1.2, 1.2)
    below[-1] = 1  # what lies beyond the schedule's own noise is its last step
    np.testing.assert_allclose(np.bincount(i.long(), minlength=51)[1:] / 20_000, np.diff(below), atol=1.1e-4)


def test_log_normal_noise_of_frequencies_is_that_of_frequency_zero() -> None:
    """Blurring has an alpha for every frequency; its path is the one whose noise is drawn."""
    from sfumato.corruptions import Blurring

    schedule = Blurring(8, 8)
    t, _ = times.log_normal(quantiles(1000), schedule, None)
    assert torch.equal(t, times.log_normal(quantiles(1000), schedule.path, None)[0])
