"""VAE, GAN and flow against closed forms, and the wall-clock that they are trained within."""

from __future__ import annotations

import builtins
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm
from torch import Tensor, nn

from sfumato.experiments import families
from sfumato.experiments.families import (
    FAMILIES,
    GAN,
    PIXELS,
    SHAPE,
    VAE,
    WARMUP,
    Flow,
    Trainee,
    build,
    critic_loss,
    from_logit,
    generator_loss,
    rate_share,
    to_logit,
    train_within,
)


def some_levels(n: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, *SHAPE), dtype=np.uint8))


class Rows:
    """Rows of the shape `trainee` asks for."""

    def __len__(self) -> int:
        return 16

    def take(self, index: np.ndarray) -> dict[str, Tensor]:
        return {"x": some_levels(16)[index]}

    def batches(self, seed: int, batch: int) -> Iterator[dict[str, Tensor]]:
        while True:
            yield {"x": some_levels(16)[:batch]}


class TestFlow:
    @pytest.fixture
    def flow(self) -> Flow:
        """Four dimensions, float64, far from the identity, with a mean and a spread of its own."""
        torch.manual_seed(0)
        flow = Flow(4, transforms=4, hidden=(8,)).double()
        for p in flow.parameters():
            p.data = 0.7 * torch.randn_like(p)
        flow.mean.copy_(torch.tensor([0.3, -1.0, 2.0, 0.0]))
        flow.std.copy_(torch.tensor([0.5, 2.0, 1.5, 1.0]))
        return flow

    def test_density_is_the_change_of_variables(self, flow: Flow) -> None:
        """log p(u) = log N(z(u)) + log|det dz/du|, the Jacobian by autograd of the whole map from u to z."""

        def z_of(u: Tensor) -> Tensor:
            y = torch.logit(families.LOGIT + (1 - 2 * families.LOGIT) * u)
            return flow.flow().transform((y - flow.mean) / flow.std)

        u = torch.rand(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        for row, found in zip(u, flow.log_density(u), strict=True):
            jacobian = torch.autograd.functional.jacobian(z_of, row)
            assert (jacobian - torch.diag(jacobian.diagonal())).abs().max() > 1e-3  # it does couple
            exact = norm.logpdf(z_of(row).detach().numpy()).sum() + torch.linalg.slogdet(jacobian)[1].item()
            assert found.item() == pytest.approx(exact, rel=1e-10)

    def test_drawing_inverts_the_density(self, flow: Flow) -> None:
        u = torch.rand(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        y, _ = to_logit(u)
        z = flow.flow().transform((y - flow.mean) / flow.std)
        assert torch.allclose(from_logit(flow.flow().transform.inv(z) * flow.std + flow.mean), u, atol=1e-8)

    def test_bits_of_a_known_density(self) -> None:
        """Couplings at the identity and no standardising: y ~ N(0, 1), whose density of u scipy knows."""
        flow = build("flow", 0)
        for p in flow.parameters():
            p.data.zero_()
        levels = some_levels(3)
        u = (levels.numpy() + families._uniform(levels, 5).numpy()).reshape(3, -1).astype(np.float64) / 256
        inner = families.LOGIT + (1 - 2 * families.LOGIT) * u
        y = np.log(inner / (1 - inner))
        nats = norm.logpdf(y) + np.log(1 - 2 * families.LOGIT) - np.log(inner * (1 - inner)) - math.log(256)
        bits = flow.bits(levels, 5)
        assert bits is not None
        np.testing.assert_allclose(bits.detach().numpy(), -nats.sum(1) / (PIXELS * math.log(2)), rtol=1e-4)

    def test_prepared_rows_are_standard(self) -> None:
        flow, levels = Flow(transforms=2, hidden=(4,)), some_levels(500)
        flow.prepare(levels)
        y, _ = to_logit(families._dequantised(levels, families._uniform(levels, 0)))
        y = (y - flow.mean) / flow.std
        assert y.mean(0).abs().max() < 1e-4
        assert (y.std(0) - 1).abs().max() < 1e-4

    def test_what_left_the_floats_is_black(self) -> None:
        flow = build("flow", 0)
        flow.mean.fill_(math.nan)
        assert flow.draw(torch.zeros(2, PIXELS)).eq(0).all()

    def test_without_zuko_one_line_names_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = builtins.__import__

        def without(name: str, *given: Any, **told: Any) -> Any:
            if name.startswith("zuko"):
                raise ImportError(name)
            return found(name, *given, **told)

        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(ValueError, match=r"^[^\n]*sfumato\[trilemma\][^\n]*$"):
            build("flow", 0)


class LinearDecoder(nn.Module):
    """f(z) = A z + b, as pictures."""

    def __init__(self, a: Tensor, b: Tensor):
        super().__init__()
        self.a, self.b = a, b

    def forward(self, z: Tensor) -> Tensor:
        return (z @ self.a.T + self.b).reshape(-1, *SHAPE)


class Affine(nn.Module):
    """x -> [mean, log variance] of the posterior, one variance for all x."""

    def __init__(self, gain: Tensor, bias: Tensor, log_variance: Tensor):
        super().__init__()
        self.gain, self.bias, self.log_variance = gain, bias, log_variance

    def forward(self, x: Tensor) -> Tensor:
        mean = (x.flatten(1).double() - self.bias) @ self.gain.T
        return torch.cat([mean, self.log_variance.expand(len(x), -1)], 1)


class TestVAE:
    """A linear-Gaussian toy, whose posterior and likelihood are known: x = A z + b + s n."""

    STD, LATENT = 0.3, 2

    @pytest.fixture
    def toy(self) -> tuple[VAE, Tensor, float]:
        """The VAE with the exact posterior of a 784-dimensional toy, a picture, and its exact log-likelihood.

        Orthogonal columns of A give a diagonal posterior; mid-grey pictures lie far from the open end bins, and bins
        of 2/255 are narrow beside s, so that a bin's probability is the density times its width.
        """
        generator = torch.Generator().manual_seed(3)
        columns, _ = torch.linalg.qr(torch.randn(PIXELS, self.LATENT, dtype=torch.float64, generator=generator))
        a, b = columns * torch.tensor([1.5, 0.8]), torch.zeros(PIXELS, dtype=torch.float64)
        precision = 1 + (a.T @ a).diagonal() / self.STD**2
        vae = VAE(self.LATENT).double()
        vae.decoder = LinearDecoder(a, b)  # type: ignore[assignment]
        vae.encoder = Affine((a / (precision * self.STD**2)).T, b, -precision.log())  # type: ignore[assignment]
        vae.log_std.data.fill_(math.log(self.STD))
        levels = torch.from_numpy(np.random.default_rng(1).integers(100, 156, (1, *SHAPE), dtype=np.uint8))
        x_0 = families.CODEC.encode(levels).double()
        covariance = (a @ a.T + self.STD**2 * torch.eye(PIXELS, dtype=torch.float64)).numpy()
        density = multivariate_normal.logpdf(x_0.flatten().numpy(), b.numpy(), covariance)
        return vae, x_0, float(density) + PIXELS * math.log(2 / 255)

    def test_the_elbo_of_the_exact_posterior_is_the_likelihood(self, toy: tuple[VAE, Tensor, float]) -> None:
        vae, x_0, exact = toy
        eps = torch.randn(1500, self.LATENT, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        found = vae.elbo(x_0.expand(len(eps), -1, -1, -1), eps)
        assert abs(found.mean().item() - exact) < 4 * found.std().item() / math.sqrt(len(eps)) + 0.02

    def test_the_elbo_of_another_posterior_is_below_by_its_divergence(self, toy: tuple[VAE, Tensor, float]) -> None:
        """log p(x) - ELBO = KL(q || posterior), here of half the variance and three standard deviations away."""
        vae, x_0, exact = toy
        encoder: Any = vae.encoder
        shift = 3.0 * torch.exp(encoder.log_variance / 2)  # three standard deviations
        spread = vae.encoder
        vae.encoder = Shifted(spread, shift, math.log(0.5))  # type: ignore[assignment]
        eps = torch.randn(1500, self.LATENT, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        found = vae.elbo(x_0.expand(len(eps), -1, -1, -1), eps)
        kl = self.LATENT * (9 + 0.5 - 1 + math.log(2)) / 2
        assert exact - found.mean().item() == pytest.approx(kl, abs=4 * found.std().item() / 1500**0.5 + 0.02)

    def test_bits_are_the_elbo_a_pixel(self) -> None:
        vae, levels = build("VAE", 0), some_levels(2)
        bits = vae.bits(levels, 7)
        assert isinstance(vae, VAE)
        assert bits is not None
        eps = torch.from_numpy(families.philox(7, families.BOUND).standard_normal((2, vae.latent), dtype="float32"))
        wanted = -vae.elbo(families.CODEC.encode(levels), eps) / (784 * math.log(2))
        assert torch.allclose(bits, wanted)
        assert 1 < bits.mean() < 20  # noise of 256 levels costs 8 bits, an untrained guess more


class Shifted(nn.Module):
    def __init__(self, inner: nn.Module, shift: Tensor, log_variance: float):
        super().__init__()
        self.inner, self.shift, self.log_variance = inner, shift, log_variance

    def forward(self, x: Tensor) -> Tensor:
        mean, log_variance = self.inner(x).chunk(2, 1)
        return torch.cat([mean + self.shift, log_variance + self.log_variance], 1)


class TestGAN:
    """D(x) = w . x + b and fixed pictures: every gradient is known."""

    @pytest.fixture
    def critic(self) -> nn.Sequential:
        critic = nn.Sequential(nn.Flatten(), nn.Linear(4, 1)).double()
        linear: Any = critic[1]
        linear.weight.data = torch.tensor([[0.5, -1.0, 2.0, 0.25]], dtype=torch.float64)
        linear.bias.data = torch.tensor([0.1], dtype=torch.float64)
        return critic

    def test_critic_loss_and_its_gradient(self, critic: nn.Sequential) -> None:
        linear: Any = critic[1]
        w, gamma = linear.weight.detach()[0], 3.0
        real = torch.tensor([[[[0.2, 0.4], [-0.1, 0.3]]]], dtype=torch.float64)
        fake = torch.tensor([[[[-0.5, 0.1], [0.7, 0.0]]]], dtype=torch.float64)
        loss = critic_loss(critic, real, fake, gamma)
        d_real, d_fake = (w @ x.flatten() + 0.1 for x in (real, fake))
        exact = torch.log1p(d_fake.exp()) + torch.log1p((-d_real).exp()) + gamma / 2 * w.square().sum()
        assert loss.item() == pytest.approx(exact.item(), rel=1e-12)
        loss.backward()
        wanted = torch.sigmoid(d_fake) * fake.flatten() - torch.sigmoid(-d_real) * real.flatten() + gamma * w
        assert torch.allclose(linear.weight.grad[0], wanted, rtol=1e-12)

    def test_generator_loss_does_not_saturate(self, critic: nn.Sequential) -> None:
        """-sigmoid(-D) w, which for a picture that is surely refused is -w, not 0."""
        linear: Any = critic[1]
        fake = torch.full((1, 1, 2, 2), -50.0, dtype=torch.float64, requires_grad=True)
        generator_loss(critic, fake).backward()
        assert fake.grad is not None
        assert torch.allclose(fake.grad.flatten(), -linear.weight.detach()[0], rtol=1e-6)

    def test_each_part_is_moved_by_its_own_loss(self) -> None:
        gan = build("GAN", 0)
        assert isinstance(gan, GAN)
        losses = gan.losses(some_levels(4), lambda *shape: torch.randn(*shape))
        next(losses).backward()
        assert all(p.grad is None for p in gan.generator.parameters())
        assert all(p.grad is not None for p in gan.critic.parameters())
        next(losses).backward()
        assert all(p.grad is not None for p in gan.generator.parameters())


class TestWallClock:
    def trainee(self, losses: Iterator[float], seen: list[float]) -> Trainee:
        weight = nn.Parameter(torch.zeros(1))
        optimiser = torch.optim.SGD([weight], lr=9.0)

        def steps() -> Iterator[float]:
            for loss in losses:
                weight.grad = torch.ones(1)
                optimiser.step()
                seen.append(optimiser.param_groups[0]["lr"])
                yield loss

        return Trainee((optimiser,), steps(), dict)

    def test_steps_end_with_the_budget_and_rates_follow_it(self) -> None:
        now, seen = [100.0], []

        def slow() -> Iterator[float]:
            while True:
                now[0] += 2.0
                yield 0.5

        spent = train_within(20.0, self.trainee(slow(), seen), 0.1, clock=lambda: now[0])
        assert (spent.steps, spent.seconds, spent.loss) == (10, 20.0, 0.5)
        assert seen == pytest.approx([0.1 * rate_share(0.1 * k) for k in range(1, 11)])
        assert seen[-1] == pytest.approx(0, abs=1e-12)

    def test_a_real_budget_is_kept_by_every_family(self) -> None:
        for name in FAMILIES:
            trainee = families.trainee(name, Rows(), 4, 0)  # type: ignore[arg-type]
            before = trainee.weights()
            spent = train_within(0.3, trainee, 1e-3)
            assert spent.steps >= 1
            assert 0.3 <= spent.seconds < 2
            assert math.isfinite(spent.loss)
            after = trainee.weights()
            assert any(not torch.equal(x, after[key]) for key, x in before.items())
            x = families.load(name, after).draw(torch.zeros(2, FAMILIES[name]().latent))
            assert (x.dtype, x.shape) == (torch.uint8, (2, *SHAPE))

    def test_it_stops_where_the_loss_is_no_number(self) -> None:
        spent = train_within(60.0, self.trainee(iter([1.0, math.nan, 2.0]), []), 0.1)
        assert spent.steps == 2
        assert math.isnan(spent.loss)

    def test_the_rate_rises_then_falls(self) -> None:
        assert rate_share(0) == 0
        assert rate_share(WARMUP) == pytest.approx(1)
        assert rate_share(WARMUP / 2) == pytest.approx(0.5)
        assert rate_share((1 + WARMUP) / 2) == pytest.approx(0.5)
        assert rate_share(1) == pytest.approx(0)

    def test_equal_seeds_train_alike(self) -> None:
        first, second = (families.trainee("VAE", Rows(), 4, 3) for _ in range(2))  # type: ignore[arg-type]
        assert [next(first.steps) for _ in range(3)] == [next(second.steps) for _ in range(3)]


def test_families_are_of_like_size() -> None:
    sizes = [families.parameters(build(name, 0)) for name in FAMILIES]
    assert max(sizes) < 1.5 * min(sizes)
