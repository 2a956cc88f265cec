"""MeanFlow's loss where the average velocity is known: Gaussian data on the straight path, and two bumps on a line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfumato import data, losses, samplers, schedules
from sfumato.denoiser import Cond, Denoiser, NetworkDenoiser, Prediction
from sfumato.losses import LOSSES, WEIGHTINGS, Noised
from sfumato.model import Sampling
from sfumato.nn import MLP, Conditions, DiTConfig, MLPConfig, UNetConfig
from sfumato.nn.dit import DiT
from sfumato.nn.unet import UNet
from sfumato.testbed import GaussianMixture
from sfumato.train import Loss, Optimiser, Training, train
from sfumato.train.objectives import OBJECTIVES, meanflow

from ..tiny import silent, tiny

MEAN = torch.tensor([0.6, -0.4], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.8, 0.35], [0.35, 0.3]], dtype=torch.float64)
VALUES, AXES = torch.linalg.eigh(COVARIANCE)
PATH = schedules.rectified()
VELOCITY = WEIGHTINGS["velocity"]

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]  # x (B, ...), t, span (B,) -> u (B, ...)


class Says(Denoiser):
    """A Denoiser of the straight path that says the velocity u(x, t, span) + nudge."""

    def __init__(self, velocity: Velocity, nudge: Tensor | float = 0.0):
        self.schedule, self.velocity, self.nudge = PATH, velocity, nudge

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        assert cond is not None
        u = self.velocity(x_t, t, cond["span"]) + self.nudge
        rows = t.reshape(-1, *[1] * (x_t.ndim - 1))
        return Prediction(x_t - rows * u, x_t + (1 - rows) * u)


def exact(x: Tensor, t: Tensor, span: Tensor) -> Tensor:
    """u of N(MEAN, COVARIANCE): along each axis x_t = (1 - t) m + sqrt(c_t) z with c_t = (1 - t)^2 l + t^2, z held.

    So u = (x_t - x_s)/(t - s) = -m + (sqrt(c_t) - sqrt(c_s))/(t - s) z, written without its cancellation.
    """
    t, s = t[:, None], (t - span)[:, None]
    now, then = ((1 - a).square() * VALUES + a.square() for a in (t, s))
    slope = (t + s - VALUES * (2 - t - s)) / (now.sqrt() + then.sqrt())
    z = (x - (1 - t) * MEAN) @ AXES / now.sqrt()
    return -MEAN + (slope * z) @ AXES.T


def instantaneous(x: Tensor, t: Tensor, span: Tensor) -> Tensor:
    return exact(x, t, torch.zeros_like(span))


def test_the_exact_velocity_is_the_flow_of_the_mixture() -> None:
    """`exact` with span 0 is the testbed's eps - x0, with a span its mean on the way: what the tests below lean on."""
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t, span = torch.linspace(0.3, 1, 5, dtype=torch.float64), torch.linspace(0.3, 0.6, 5, dtype=torch.float64)
    truth = GaussianMixture(torch.ones(1), MEAN[None], COVARIANCE[None]).denoiser(PATH)
    p = truth(x, t)
    torch.testing.assert_close(exact(x, t, 0 * t), p.eps - p.x0, rtol=1e-12, atol=1e-12)
    way, state, steps = torch.zeros_like(x), x, 150  # the midpoint rule down to s
    for _ in range(steps):
        p = truth(state, t)
        p = truth(state - (p.eps - p.x0) * span[:, None] / steps / 2, t - span / steps / 2)
        way = way + (p.eps - p.x0) / steps
        state, t = state - (p.eps - p.x0) * span[:, None] / steps, t - span / steps
    torch.testing.assert_close(exact(x, torch.linspace(0.3, 1, 5, dtype=torch.float64), span), way, rtol=0, atol=5e-5)


def residual(velocity: Velocity, at: Noised, span: Tensor) -> Tensor:
    """u - (v - span du/dt), (B, D): the loss with weight 1 is its mean square, so D/2 times the gradient by u."""
    nudge = torch.zeros_like(at.x_t, requires_grad=True)
    value = meanflow(at, Says(velocity, nudge), {"span": span}, VELOCITY, power=0.0)
    (gradient,) = torch.autograd.grad(value.sum(), nudge)
    found = gradient * at.x_t[0].numel() / 2
    torch.testing.assert_close(value.detach(), found.square().flatten(1).mean(1))
    return found


def given_x_t(x_t: Tensor, t: float) -> tuple[Noised, Tensor]:
    """Every pair (x_0, eps) that a Gauss-Hermite rule sees behind x_t (2,) at t, with the posterior's weights."""
    z, w = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(4))
    nodes, weight = torch.cartesian_prod(z, z), torch.cartesian_prod(w, w).prod(1)
    mixture = GaussianMixture(torch.ones(1), MEAN[None], COVARIANCE[None])
    times = torch.full((len(nodes),), t, dtype=torch.float64)
    x = x_t.repeat(len(nodes), 1)
    x0, spread = mixture.posterior(x, times, PATH)
    x_0 = x0 + (torch.linalg.cholesky(spread) @ nodes[..., None])[..., 0]
    return Noised(PATH, x_0, x, times, None, (x - (1 - t) * x_0) / t), weight / weight.sum()


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.0), (0.9, 0.2), (0.5, 0.4), (0.3, 0.3), (0.05, 0.0)])
def test_the_true_average_velocity_is_where_the_loss_rests(t: float, s: float) -> None:
    """E[u - (v - span du/dt) | x_t] = 0, by exact quadrature over the posterior; other velocities are pulled away."""
    wrong: list[Velocity] = [instantaneous, lambda x, t, span: exact(x, t, span) + 0.1 * x]
    off = torch.zeros(2)
    for x_t in torch.tensor([[0.0, 0.0], [1.3, -0.7], [-2.0, 1.5]], dtype=torch.float64):
        at, weight = given_x_t(x_t, t)
        span = torch.full_like(at.t, t - s)
        pulls = [(weight[:, None] * residual(u, at, span)).sum(0) for u in (exact, *wrong)]
        torch.testing.assert_close(pulls[0], torch.zeros_like(pulls[0]), rtol=0, atol=1e-12)
        off = off + torch.stack([pull.norm() for pull in pulls[1:]])
    if t - s > 0.01:
        assert float(off.min()) > 0.01


def test_the_true_velocity_rests_on_average_over_data_too() -> None:
    """Without the quadrature: over draws of x_0, eps, s and t the mean residual, in bins of x_t, is 0 within 4 sd."""
    n, generator = 50_000, torch.Generator().manual_seed(1)
    x_0 = MEAN + torch.randn(n, 2, dtype=torch.float64, generator=generator) * VALUES.sqrt() @ AXES.T
    eps = torch.randn(n, 2, dtype=torch.float64, generator=generator)
    a, b = torch.rand(2, n, dtype=torch.float64, generator=generator)
    t, span = torch.maximum(a, b), (a - b).abs()
    at = Noised(PATH, x_0, (1 - t)[:, None] * x_0 + t[:, None] * eps, t, None, eps)
    pull, wrong = residual(exact, at, span), residual(instantaneous, at, span)
    features = torch.stack([torch.ones(n, dtype=torch.float64), at.x_t[:, 0], at.x_t[:, 1], span, span * at.x_t[:, 0]])
    deviations = []
    for error in (pull, wrong):
        products = features[:, :, None] * error  # (5, n, 2), each of mean 0
        deviations.append(products.mean(1) / products.std(1) * n**0.5)
    assert float(deviations[0].abs().max()) < 4
    assert float(deviations[1].abs().max()) > 10


# ---- du/dt, in float64, of networks that know nothing


def _perturbed(net: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    with torch.no_grad():
        for p in net.double().parameters():
            p.add_(0.2 * torch.randn_like(p))
    return net


SPAN = Conditions(span=1)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: MLP(MLPConfig(width=16, depth=2, time_scale=3.0), (3,), SPAN), (3,)),
    "unet with attention": (
        lambda: UNet(
            UNetConfig(channels=8, multipliers=(1, 2), blocks=1, groups=4, attention=(1,), head_channels=8),
            (1, 4, 4),
            SPAN,
        ),
        (1, 4, 4),
    ),
    "dit": (lambda: DiT(DiTConfig(patch=2, width=16, depth=1, heads=2), (1, 4, 4), SPAN), (1, 4, 4)),
}


def batch(shape: tuple[int, ...], n: int = 4) -> tuple[Noised, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x_0, eps = torch.randn(2, n, *shape, dtype=torch.float64, generator=generator)
    t = torch.linspace(0.35, 0.95, n, dtype=torch.float64)
    rows = t.reshape(-1, *[1] * len(shape))
    return Noised(PATH, x_0, (1 - rows) * x_0 + rows * eps, t, None, eps), t * torch.linspace(0.2, 0.9, n).double()


def by_difference(velocity: Velocity, at: Noised, span: Tensor, h: float = 1e-5) -> Tensor:
    """du/dt along the path, s held: (u(x + h v, t + h, span + h) - u(x - h v, t - h, span - h))/2h."""
    assert at.eps is not None
    v = at.eps - at.x_0
    there, back = (velocity(at.x_t + a * v, at.t + a, span + a) for a in (h, -h))
    return (there - back) / (2 * h)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_du_dt_is_the_difference_quotient_and_the_gradient_that_of_a_stopped_target(name: str) -> None:
    """Through attention too; weights move as under w |u - constant|^2/D with w = 1/(|.|^2/D + c) a constant."""
    make, shape = NETWORKS[name]
    net = _perturbed(make())
    at, span = batch(shape)
    assert at.eps is not None

    def velocity(x: Tensor, t: Tensor, span: Tensor) -> Tensor:
        return net(x, t, {"span": span})

    with torch.no_grad():
        u, moved = velocity(at.x_t, at.t, span), by_difference(velocity, at, span)
    rows = span.reshape(-1, *[1] * len(shape))
    target = at.eps - at.x_0 - rows * moved
    torch.testing.assert_close(residual(velocity, at, span), u - target, rtol=1e-6, atol=1e-7)
    assert float((rows * moved).norm() / target.norm()) > 0.1

    ours = meanflow(at, Says(velocity), {"span": span}, VELOCITY)
    error = (velocity(at.x_t, at.t, span) - target).square().flatten(1).mean(1)
    torch.testing.assert_close(ours, error / (error + 1e-3), rtol=1e-7, atol=0)
    by_hand = error / (error.detach() + 1e-3)
    parameters = [p for p in net.parameters() if p.requires_grad]
    for power, value in ((1.0, by_hand), (0.0, error)):
        loss = meanflow(at, Says(velocity), {"span": span}, VELOCITY, power=power)
        got = torch.autograd.grad(loss.sum(), parameters)
        wanted = torch.autograd.grad(value.sum(), parameters, retain_graph=True)
        scale = torch.cat([g.flatten() for g in wanted]).norm()
        assert max(float((a - b).norm() / scale) for a, b in zip(got, wanted, strict=True)) < 1e-6


def test_without_a_span_it_is_the_flow_loss() -> None:
    """power 0: |velocity error|^2, as loss simple with weighting velocity; else its adaptive weight; mixed rows too."""
    net = _perturbed(MLP(MLPConfig(width=16, depth=2), (3,), SPAN))
    denoiser = NetworkDenoiser(net, PATH, target="flow", time="unit")
    at, span = batch((3,))
    span[[0, 2]] = 0
    flow = LOSSES["simple"](at, denoiser(at.x_t, at.t, {"span": span}), VELOCITY)
    plain = meanflow(at, denoiser, {"span": span}, VELOCITY, power=0.0)
    torch.testing.assert_close(plain[[0, 2]], flow[[0, 2]], rtol=1e-9, atol=0)
    assert bool(((plain - flow)[[1, 3]].abs() > 0.01 * flow[[1, 3]]).all())
    for power, c in ((1.0, 1e-3), (0.5, 0.1)):
        ours = meanflow(at, denoiser, {"span": span}, VELOCITY, power=power, c=c)
        torch.testing.assert_close(ours[[0, 2]], flow[[0, 2]] * (flow[[0, 2]] + c) ** -power, rtol=1e-9, atol=0)
    for weighting in WEIGHTINGS.values():
        assert torch.equal(
            meanflow(at, denoiser, {"span": span}, weighting), meanflow(at, denoiser, {"span": span}, VELOCITY)
        )


def test_other_conditions_reach_the_network() -> None:
    seen: list[set[str]] = []

    def watch(x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        assert cond is not None
        seen.append(set(cond))
        return cond["label"][:, None] * x

    at, span = batch((3,))
    label = torch.tensor([0, 1, 2, 3])
    denoiser = NetworkDenoiser(watch, PATH, target="flow", time="unit")
    meanflow(at, denoiser, {"span": span, "label": label}, VELOCITY)
    assert seen == [{"span", "label"}]


def test_the_other_rows_are_those_of_losses() -> None:
    """OBJECTIVES gives each row of LOSSES what the denoiser says under cond."""
    net = _perturbed(MLP(MLPConfig(width=16, depth=1), (3,), Conditions(classes=4)))
    denoiser = NetworkDenoiser(net, schedules.cosine(20), target="v", learned_variance=False)
    at, _ = batch((3,))
    at = Noised(denoiser.schedule, at.x_0, at.x_t, (at.t * 20).round() / 20, 0.125, at.eps)
    cond = {"label": torch.tensor([0, 1, 2, 3])}
    assert set(OBJECTIVES) == {*LOSSES, "meanflow"}
    for name, loss in LOSSES.items():
        value = OBJECTIVES[name](at, denoiser, cond, losses.WEIGHTINGS["v"])
        assert torch.equal(value, loss(at, denoiser(at.x_t, at.t, cond), losses.WEIGHTINGS["v"]))
        assert not torch.equal(value, loss(at, denoiser(at.x_t, at.t, None), losses.WEIGHTINGS["v"]))


def two_bumps() -> GaussianMixture:
    return GaussianMixture(
        torch.tensor([0.35, 0.65]), torch.tensor([[-1.0], [0.9]]), torch.tensor([[[0.09]], [[0.16]]])
    )


def transported(mixture: GaussianMixture, x: Tensor) -> Tensor:
    """The exact end of the flow from N(0, 1) on a line, which keeps the order: F^-1(Phi(x)), (B, 1)."""
    wanted = torch.special.ndtr(x)
    std = mixture.covariances[:, 0, 0].sqrt()
    low, high = torch.full_like(x, -20.0), torch.full_like(x, 20.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = (mixture.weights * torch.special.ndtr((middle - mixture.means[:, 0]) / std)).sum(
            1, keepdim=True
        ) < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return high


@pytest.mark.slow
def test_a_trained_network_takes_one_step_where_a_velocity_needs_many(tmp_path: Path) -> None:
    """Two bumps on a line through a whole Training; the best instantaneous network, the exact one, gives the mean."""
    mixture = two_bumps()
    np.save(tmp_path / "x.npy", mixture.sample(20_000).float().numpy())
    run = tiny(
        data=data.Data("file", path=str(tmp_path / "x.npy")),
        network=MLPConfig(width=32, depth=2),
        schedule="rectified",
        target="flow",
        time="unit",
        loss=Loss(kind="meanflow", times="logit_normal:mean=-0.4", average_share=0.75),
        optimiser=Optimiser(learning_rate=1e-2, warmup=50),
        sampling=Sampling(sampler="meanflow", steps=1),
        steps=700,
        batch=128,
    )
    training = Training(run, tmp_path / "out", say=silent, resume=False)
    for _ in train(training):
        pass
    denoiser, codec = training.model().denoiser, training.codec
    x_T = torch.special.ndtri((torch.arange(400, dtype=torch.float64) + 0.5) / 400)[:, None]
    truth = transported(mixture, x_T)

    def error(x: Tensor) -> float:
        return float((x.double() - truth).square().mean().sqrt())

    ours = {k: error(codec.decode(samplers.sample(denoiser, x_T.float(), "meanflow", k))) for k in (1, 2)}
    # the codec's units are those of the training, where the mixture is shifted and scaled
    shift, scale = (torch.tensor(a, dtype=torch.float64) for a in (codec.spec["mean"], codec.spec["std"]))
    own = GaussianMixture(mixture.weights, (mixture.means - shift) / scale, mixture.covariances / scale.square())
    best = {k: error(samplers.sample(own.denoiser(PATH), x_T, "meanflow", k) * scale + shift) for k in (1, 2)}
    assert best[1] == pytest.approx(float((truth - truth.mean()).square().mean().sqrt()), rel=1e-3)
    assert ours[1] < 0.3 * best[1]
    assert ours[2] < 0.6 * best[2]
