"""A denoiser of one schedule, asked along another, is the other's own: exactly on mixtures, and for a network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sfumato
from sfumato import samplers, schedules
from sfumato.denoiser import Denoiser, NetworkDenoiser
from sfumato.guidance import Rescheduled, cfg, clip
from sfumato.model import Model
from sfumato.nn import MLP, Conditions, MLPConfig
from sfumato.noise import PRIOR, normal
from sfumato.recipes import assumptions
from sfumato.schedules import Schedule
from sfumato.testbed import GaussianMixture

from ..tiny import random_model, tiny

PAIRS = [
    ("linear_continuous", "rectified"),
    ("cosine_continuous", "rectified"),
    ("cosine_continuous", "edm:sigma_max=20"),
    ("rectified", "cosine_continuous"),
    ("rectified", "edm"),
    ("edm", "rectified"),
    ("edm:sigma_max=200", "linear_continuous"),
    ("linear:steps=1000", "rectified"),
    ("cosine:steps=50", "linear:steps=1000"),
    ("zero_terminal", "rectified"),
]


def inside(own: Schedule, other: Schedule, n: int = 40) -> Tensor:
    """Times of the other schedule whose signal-to-noise ratios the own one has too."""
    t = torch.linspace(0.02, 0.98, n, dtype=torch.float64)
    logsnr = other.logsnr(t)
    ends = own.logsnr(torch.tensor([1e-6, 1.0], dtype=torch.float64))
    return t[(logsnr < ends[0]) & (logsnr > ends[1])]


@pytest.mark.parametrize(("trained", "asked"), PAIRS)
def test_of_a_mixture_it_is_the_other_schedules_own_denoiser(
    trained: str, asked: str, mixture_2d: GaussianMixture
) -> None:
    own, other = schedules.from_spec(trained), schedules.from_spec(asked)
    t = inside(own, other)
    assert len(t) > 20
    x_t = 1.5 * other.sigma(t)[:, None] * normal(range(len(t)), (2,), PRIOR).double() + other.alpha(t)[:, None]
    ours = Rescheduled(mixture_2d.denoiser(own), other)
    truth = mixture_2d.denoiser(other)(x_t, t)
    p = ours(x_t, t)
    assert ours.schedule is other
    torch.testing.assert_close(p.x0, truth.x0, rtol=0, atol=1e-9)
    torch.testing.assert_close(p.eps, truth.eps, rtol=0, atol=1e-9)
    back = other.alpha(t)[:, None] * p.x0 + other.sigma(t)[:, None] * p.eps
    torch.testing.assert_close(back, x_t, rtol=1e-12, atol=1e-12)
    alone = mixture_2d.denoiser(own)(x_t, t)  # what one gets by forgetting to ask elsewhere
    assert float((alone.x0 - truth.x0).abs().max()) > 0.01


def test_at_the_ratios_of_a_thousand_steps_it_is_exact_too(mixture_2d: GaussianMixture) -> None:
    """Where the other schedule has the logsnr of step i, the mixture's own answer, and a network is told i - 1."""
    own, other = schedules.linear(1000), schedules.rectified()
    i = torch.arange(1, 1001)
    alpha, sigma = own.alpha(i / 1000), own.sigma(i / 1000)
    t = sigma / (alpha + sigma)  # the straight path's time with this sigma/alpha
    x_t = normal(range(1000), (2,), PRIOR).double()
    truth = mixture_2d.denoiser(other)(x_t, t)
    p = Rescheduled(mixture_2d.denoiser(own), other)(x_t, t)
    torch.testing.assert_close(p.x0, truth.x0, rtol=0, atol=1e-9)
    torch.testing.assert_close(p.eps, truth.eps, rtol=0, atol=1e-9)

    told: list[tuple[Tensor, Tensor]] = []

    def net(x: Tensor, index: Tensor, cond: object) -> Tensor:
        told.append((x, index))
        return x

    Rescheduled(NetworkDenoiser(net, own, target="eps"), other)(x_t, t)
    ((shown, index),) = told
    assert torch.equal(index, (i - 1).float())
    # alpha x_0 + sigma eps, where x_t = (alpha x_0 + sigma eps)/(alpha + sigma)
    torch.testing.assert_close(shown, x_t * (alpha + sigma)[:, None], rtol=1e-10, atol=1e-10)


def test_beyond_the_training_the_nearest_end_is_asked(mixture_2d: GaussianMixture) -> None:
    """The straight path begins at logsnr = -inf; there the network is asked at its own t = 1, with x_1 of its size."""
    own, other = schedules.linear(1000), schedules.rectified()
    x = normal(range(4), (2,), PRIOR).double()
    one = torch.ones(4, dtype=torch.float64)
    p = Rescheduled(mixture_2d.denoiser(own), other)(x, one)
    truth = mixture_2d.denoiser(own)(x, one)
    torch.testing.assert_close(p.x0, truth.x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(p.eps, x, rtol=0, atol=1e-12)
    assert bool(torch.isfinite(Rescheduled(mixture_2d.denoiser(own), other)(x, 1e-9 * one).x0).all())


@pytest.mark.parametrize(("trained", "asked"), [("cosine_continuous", "rectified"), ("edm", "linear_continuous")])
def test_both_ways_is_no_change_and_conditions_pass(trained: str, asked: str) -> None:
    own, other = schedules.from_spec(trained), schedules.from_spec(asked)
    torch.manual_seed(0)
    net = MLP(MLPConfig(width=16, depth=1), (2,), Conditions(classes=3)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn_like(p))
    inner: Denoiser = NetworkDenoiser(net, own, target="v", time="logsnr", null_cond={"label": torch.tensor([3])})
    again = Rescheduled(Rescheduled(inner, other), own)
    t = inside(other, own, 9)
    x_t, label = normal(range(len(t)), (2,), PRIOR).double(), torch.arange(len(t)) % 3
    told, plain = again(x_t, t, {"label": label}), inner(x_t, t, {"label": label})
    torch.testing.assert_close(told.x0, plain.x0, rtol=1e-5, atol=1e-5)  # a network's time is a float32
    assert float((told.x0 - inner(x_t, t).x0).abs().max().detach()) > 1e-3
    assert torch.equal(again.null_cond["label"], torch.tensor([3]))
    guided = cfg(clip(again, -0.5, 0.5))(x_t, t, {"label": label, "guidance": torch.full((len(t),), 2.0)})
    assert guided.x0.shape == x_t.shape


@pytest.mark.parametrize(("trained", "asked"), [("cosine_continuous", "rectified"), ("linear_continuous", "edm")])
def test_ddim_takes_the_same_steps_on_every_schedule(trained: str, asked: str, mixture_2d: GaussianMixture) -> None:
    """It knows x/alpha and sigma/alpha alone: over the same logsnr, from the same state, to the same x_0."""
    own, other = schedules.from_spec(trained), schedules.from_spec(asked)
    there = torch.tensor([0.9, 0.7, 0.5, 0.3, 0.1, 0.0], dtype=torch.float64)
    here = other.time_of_logsnr(own.logsnr(there))
    here[-1] = 0
    x = normal(range(30), (2,), PRIOR).double()
    size = [(s.alpha(t).square() + s.sigma(t).square()).sqrt() for s, t in ((own, there[0]), (other, here[0]))]
    direct = samplers.sample(mixture_2d.denoiser(own), x, "ddim", grid=there)
    ours = samplers.sample(Rescheduled(mixture_2d.denoiser(own), other), size[1] / size[0] * x, "ddim", grid=here)
    torch.testing.assert_close(ours, direct, rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model()


@pytest.mark.parametrize("schedule", ["rectified", "edm:sigma_max=30"])
def test_a_model_walks_another_schedule_whatever_the_batch(schedule: str, model: Model) -> None:
    asked = {"schedule": schedule, "steps": 4, "guidance": 1.5, "grid": "trailing"}
    whole = model.sample(12, seed=4, **asked)  # type: ignore[arg-type]
    parts = model.sample(12, seed=4, batch=5, **asked)  # type: ignore[arg-type]
    assert int((whole.int() - parts.int()).abs().max()) <= 1
    assert float((whole != parts).float().mean()) < 3e-3
    assert not torch.equal(whole, model.sample(12, seed=4, steps=4, guidance=1.5, grid="trailing"))


def test_a_walk_along_edm_starts_with_its_own_noise(model: Model) -> None:
    (_, x, _), *_ = model.trajectory(range(200), model.labels(200), schedule="edm:sigma_max=30", steps=1)
    assert float(x.std()) == pytest.approx(30, rel=0.05)


@pytest.mark.slow
def test_the_zoos_digits_walk_a_straight_path_to_about_the_same_pictures() -> None:
    """Same x_T, same ODE, 30 steps: on the trained cosine, and on the straight path."""
    digits = sfumato.load("digits")

    def drawn(seed: int, schedule: str | None) -> Tensor:
        return digits.sample(10, seed=seed, steps=30, sampler="heun", schedule=schedule, grid="trailing").float()

    one, two, other = drawn(0, None), drawn(0, "rectified"), drawn(20, "rectified")
    assert float((one - two).abs().mean()) < 0.2 * float((one - other).abs().mean())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schedule": "cold", "target": "x0", "time": "unit"}, "cold"),
        ({"schedule": "blurring:height=8,width=8", "time": "unit", "codec": "dct"}, "blurring"),
        ({"schedule": "rectified", "target": "flow", "time": "unit", "loss": assumptions.meanflow().loss}, "meanflow"),
    ],
)
def test_other_processes_keep_their_schedule(changes: dict[str, object], reason: str) -> None:
    from sfumato.train import Loss

    if reason == "cold":
        changes = {**changes, "loss": Loss(weighting="x0")}
    other = random_model(tiny(**changes))
    with pytest.raises(
        ValueError, match=r"another schedule is for models that denoise plain Gaussian noise.*leave the"
    ) as told:
        other.guided(schedule="rectified")
    assert "\n" not in str(told.value)


def test_an_unknown_schedule_is_answered(model: Model) -> None:
    with pytest.raises(ValueError, match="unknown schedule 'rectifyed'; did you mean 'rectified'"):
        model.sample(1, schedule="rectifyed")
