"""Three families of generators beside diffusion, small, of grey 28x28 pictures, and training within a wall-clock.

VAE     z ~ N(0, I),  x ~ N(f(z), s^2) integrated over its level (`gaussian.discretised_log_likelihood`),
            ELBO = E_q(z|x) log p(x|z) - KL(q(z|x) || N(0, I))  <=  log p(x)                                    (1)
        s is one learned number ("sigma-VAE").  Pictures are f(z), without the noise, as is the custom.
GAN     z ~ N(0, I),  x = tanh(f(z)),  a critic D of pictures, non-saturating losses, real gradients held down (R1):
            L_D = softplus(D(fake)) + softplus(-D(real)) + gamma/2 |grad D(real)|^2,   L_G = softplus(-D(fake))  (2)
flow    RealNVP (zuko's): y = F^-1(z), z ~ N(0, I), affine couplings, with an exact density of dequantised pixels
            u = (k + U)/256 of level k, U ~ uniform(0, 1),   y = (logit(a + (1 - 2a) u) - m)/s, a pixel each,
            log p(u) = log N(F(y); 0, I) + log|det dF/dy| + sum log dy/du                                       (3)
        with the mean m and standard deviation s of training rows, without which couplings learn little else,
        of which E_U log p(u) - D log 256 bounds log p(k) from below.

The VAE's f and the GAN's are one network, and so, but for its outputs, are the VAE's encoder and the critic.  All are
trained as diffusion is: Adam, the same batches, averaged weights (`train.EMA`), and one learning rate that follows the
elapsed share of a wall-clock: a rise over WARMUP of it, a cosine to 0 at its end.  How many steps that gives depends on
the machine.

D. Kingma, M. Welling, "Auto-Encoding Variational Bayes", arXiv:1312.6114; O. Rybkin, K. Daniilidis, S. Levine,
"Simple and Effective VAE Training with Calibrated Decoders", arXiv:2006.13202
I. Goodfellow et al., "Generative Adversarial Networks", arXiv:1406.2661; A. Radford, L. Metz, S. Chintala, DCGAN,
arXiv:1511.06434; L. Mescheder, A. Geiger, S. Nowozin, "Which Training Methods for GANs do actually Converge?",
arXiv:1801.04406 (R1)
L. Dinh, J. Sohl-Dickstein, S. Bengio, "Density Estimation using Real NVP", arXiv:1605.08803; G. Papamakarios,
T. Pavlakou, I. Murray, MAF, arXiv:1705.07057 (the logit)
"""

from __future__ import annotations

import abc
import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from sfumato import gaussian
from sfumato.codecs import PixelCodec
from sfumato.data import Batch, Rows
from sfumato.noise import BOUND, DEQUANTISE, EPS, philox
from sfumato.options import install
from sfumato.train.ema import EMA

SHAPE = (1, 28, 28)
PIXELS = math.prod(SHAPE)
CODEC = PixelCodec(256)
WARMUP = 0.05  # share of the wall-clock over which the learning rate rises
EMA_LENGTH = 0.05
CLIP = 1.0  # the gradient's norm is clipped to this, as a Run's is
LOGIT = 1e-6  # a of (3)
LATENT, ENCODER_WIDTH, DECODER_WIDTH, GROUPS = 48, 32, 40, 8
PREPARED_ROWS = 2_000  # training rows that a family is prepared with


# --- training within a wall-clock ---


@dataclass(frozen=True)
class Trainee:
    """A training that has not begun: its optimisers, its steps (each gives its loss), its averaged weights so far."""

    optimisers: tuple[Optimizer, ...]
    steps: Iterator[float]
    weights: Callable[[], dict[str, Tensor]]


@dataclass(frozen=True)
class Spent:
    """Steps that were made, seconds they took, the last loss; it is not finite if the training came to grief."""

    steps: int
    seconds: float
    loss: float


def rate_share(share: float) -> float:
    """The learning rate as a share of its highest, at a share in [0, 1] of the wall-clock."""
    done = min(max((share - WARMUP) / (1 - WARMUP), 0.0), 1.0)
    return min(share / WARMUP, 1.0) * 0.5 * (1 + math.cos(math.pi * done))


def train_within(
    seconds: float, trainee: Trainee, rate: float, clock: Callable[[], float] = time.perf_counter
) -> Spent:
    """Train until the wall-clock is spent (the last step begins within it) or a loss is not finite."""
    begun = clock()

    def follow(optimiser: Optimizer, *_: Any) -> None:
        for group in optimiser.param_groups:
            group["lr"] = rate * rate_share((clock() - begun) / seconds)

    hooks = [optimiser.register_step_pre_hook(follow) for optimiser in trainee.optimisers]
    made, loss = 0, math.nan
    while clock() - begun < seconds and (made == 0 or math.isfinite(loss)):
        loss = next(trainee.steps)
        made += 1
    for hook in hooks:
        hook.remove()
    return Spent(made, clock() - begun, loss)


# --- the families ---


class Family(nn.Module, abc.ABC):
    """Abstract: a generator of pictures, x = draw(z) of z ~ N(0, I) with `latent` numbers a picture."""

    latent: int
    betas = (0.9, 0.99)  # Adam's

    def parts(self) -> Iterable[nn.Module]:
        """What is trained in turn, each by an optimiser of its own."""
        return (self,)

    def prepare(self, levels: Tensor) -> None:
        """What is fitted to some training rows, uint8 (N, *SHAPE), before the first step: nothing, for most."""
        return

    @abc.abstractmethod
    def losses(self, levels: Tensor, noise: Callable[..., Tensor]) -> Iterator[Tensor]:
        """Of a batch of levels, uint8 (B, *SHAPE): the loss of each of `parts`, computed when it is asked for.

        noise(*shape) draws N(0, 1) for this step.
        """

    @abc.abstractmethod
    def draw(self, z: Tensor) -> Tensor:
        """Pictures, uint8 (B, *SHAPE), of z (B, latent)."""

    def generators(self) -> nn.Module:
        """What is needed to draw."""
        return self

    def bits(self, levels: Tensor, seed: int) -> Tensor | None:
        """An upper bound of each picture's bits a pixel (B,); None where the family knows no density."""
        return None


def encoder(outputs: int, width: int) -> nn.Sequential:
    """(B, 1, 28, 28) -> (B, outputs), by strided convolutions to 14, 7 and 4 pixels a side."""
    return nn.Sequential(
        nn.Conv2d(1, width, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(2 * width, 4 * width, 3, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(4 * width * 16, outputs),
    )


def decoder(latent: int, width: int) -> nn.Sequential:
    """(B, latent) -> (B, 1, 28, 28): 7 pixels a side, 14 by a transposed convolution, 28 as patches of 2x2."""
    return nn.Sequential(
        nn.Linear(latent, 4 * width * 49),
        nn.Unflatten(1, (4 * width, 7, 7)),
        nn.GroupNorm(GROUPS, 4 * width),
        nn.ReLU(),
        nn.ConvTranspose2d(4 * width, width, 4, 2, 1),
        nn.GroupNorm(GROUPS, width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, 1, 1),
        nn.GroupNorm(GROUPS, width),
        nn.ReLU(),
        nn.Conv2d(width, 4, 3, 1, 1),
        nn.PixelShuffle(2),
    )


@final
class VAE(Family):
    """A Gaussian latent, a Gaussian posterior with a diagonal covariance, equation (1)."""

    def __init__(self, latent: int = LATENT):
        super().__init__()
        self.latent = latent
        self.encoder, self.decoder = encoder(2 * latent, ENCODER_WIDTH), decoder(latent, DECODER_WIDTH)
        self.log_std = nn.Parameter(torch.tensor(-1.0))

    def elbo(self, x_0: Tensor, eps: Tensor) -> Tensor:
        """(1), nats a picture (B,), with the one draw z = mean + std eps of each posterior."""
        mean, log_variance = self.encoder(x_0).chunk(2, dim=1)
        z = mean + torch.exp(log_variance / 2) * eps
        zero = torch.zeros_like(mean)
        rate = gaussian.kl(mean, log_variance, zero, zero).sum(1)
        log_std = self.log_std.expand(x_0.shape)
        found = gaussian.discretised_log_likelihood(x_0, self.decoder(z), log_std, CODEC.bin_width)
        return found.flatten(1).sum(1) - rate

    def losses(self, levels: Tensor, noise: Callable[..., Tensor]) -> Iterator[Tensor]:
        yield -self.elbo(CODEC.encode(levels), noise(len(levels), self.latent)).mean() / PIXELS

    def draw(self, z: Tensor) -> Tensor:
        return CODEC.decode(self.decoder(z))

    def generators(self) -> nn.Module:
        return self.decoder

    def bits(self, levels: Tensor, seed: int) -> Tensor:
        eps = torch.from_numpy(philox(seed, BOUND).standard_normal((len(levels), self.latent), dtype="float32"))
        return -self.elbo(CODEC.encode(levels), eps) / (PIXELS * math.log(2))


def critic_loss(critic: nn.Module, real: Tensor, fake: Tensor, gamma: float) -> Tensor:
    """L_D of (2)."""
    real = real.detach().requires_grad_()
    verdict = critic(real)
    (slope,) = torch.autograd.grad(verdict.sum(), real, create_graph=True)
    r1 = slope.square().flatten(1).sum(1).mean()
    return F.softplus(critic(fake)).mean() + F.softplus(-verdict).mean() + gamma / 2 * r1


def generator_loss(critic: nn.Module, fake: Tensor) -> Tensor:
    """L_G of (2)."""
    return F.softplus(-critic(fake)).mean()


@final
class GAN(Family):
    """A generator and a critic that is trained first in each step, equation (2)."""

    betas = (0.0, 0.99)

    def __init__(self, latent: int = LATENT, gamma: float = 1.0):
        super().__init__()
        self.latent, self.gamma = latent, gamma
        self.critic, self.generator = encoder(1, ENCODER_WIDTH), decoder(latent, DECODER_WIDTH)

    def parts(self) -> Iterable[nn.Module]:
        return (self.critic, self.generator)

    def losses(self, levels: Tensor, noise: Callable[..., Tensor]) -> Iterator[Tensor]:
        fake = torch.tanh(self.generator(noise(len(levels), self.latent)))
        yield critic_loss(self.critic, CODEC.encode(levels), fake.detach(), self.gamma)
        yield generator_loss(self.critic, fake)

    def draw(self, z: Tensor) -> Tensor:
        return CODEC.decode(torch.tanh(self.generator(z)))

    def generators(self) -> nn.Module:
        return self.generator


def to_logit(u: Tensor) -> tuple[Tensor, Tensor]:
    """logit(a + (1 - 2a) u) of (3), and the log of its slope, for u in (0, 1), elementwise."""
    inner = LOGIT + (1 - 2 * LOGIT) * u
    return torch.logit(inner), math.log(1 - 2 * LOGIT) - torch.log(inner) - torch.log1p(-inner)


def from_logit(y: Tensor) -> Tensor:
    """Its inverse."""
    return (torch.sigmoid(y) - LOGIT) / (1 - 2 * LOGIT)


def real_nvp(features: int, transforms: int, hidden: tuple[int, ...]) -> Any:
    """zuko's RealNVP, each coupling with a random half of its own; ValueError where zuko is not installed."""
    try:
        from zuko.flows import RealNVP
    except ImportError:
        raise ValueError(
            "the flow of experiment 'trilemma' is of the library zuko, which is not installed; " + install("trilemma")
        ) from None
    return RealNVP(features, transforms=transforms, randmask=True, hidden_features=hidden)


@final
class Flow(Family):
    """RealNVP of dequantised, standardised logit pixels, equation (3)."""

    mean: Tensor
    std: Tensor

    def __init__(self, features: int = PIXELS, transforms: int = 6, hidden: tuple[int, ...] = (112, 112)):
        super().__init__()
        self.latent = features
        self.flow = real_nvp(features, transforms, hidden)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))

    def prepare(self, levels: Tensor) -> None:
        y, _ = to_logit(_dequantised(levels, _uniform(levels, 0)))
        self.mean.copy_(y.mean(0))
        self.std.copy_(y.std(0))

    def log_density(self, u: Tensor) -> Tensor:
        """log p(u) of (3), nats a row (B,), for u (B, D) in (0, 1)."""
        y, log_slope = to_logit(u)
        found = self.flow().log_prob((y - self.mean) / self.std)
        return found + (log_slope - torch.log(self.std)).sum(1)

    def losses(self, levels: Tensor, noise: Callable[..., Tensor]) -> Iterator[Tensor]:
        uniform = torch.special.ndtr(noise(*levels.shape))
        yield -self.log_density(_dequantised(levels, uniform)).mean() / PIXELS

    def draw(self, z: Tensor) -> Tensor:
        """As in Family; a number that left the floats is black."""
        u = from_logit(self.flow().transform.inv(z) * self.std + self.mean).nan_to_num(0.0)
        return (256 * u).floor().clamp(0, 255).to(torch.uint8).reshape(-1, *SHAPE)

    def bits(self, levels: Tensor, seed: int) -> Tensor:
        return 8 - self.log_density(_dequantised(levels, _uniform(levels, seed))) / (PIXELS * math.log(2))


def _uniform(levels: Tensor, seed: int) -> Tensor:
    return torch.from_numpy(philox(seed, DEQUANTISE).random(tuple(levels.shape), dtype="float32"))


def _dequantised(levels: Tensor, uniform: Tensor) -> Tensor:
    """u of (3), (B, D)."""
    return ((levels + uniform) / 256).flatten(1)


FAMILIES: dict[str, type[Family]] = {"VAE": VAE, "GAN": GAN, "flow": Flow}


def build(name: str, seed: int) -> Family:
    """A family's untrained generator, of weights (and couplings) that the seed says."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FAMILIES[name]()


def load(name: str, weights: dict[str, Tensor]) -> Family:
    """A family's trained generator."""
    family = build(name, 0)
    family.load_state_dict(weights)
    return family.eval().requires_grad_(False)


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def trainee(name: str, rows: Rows, batch: int, seed: int) -> Trainee:
    """The training of a family on pictures."""
    net = build(name, seed)
    first = rows.take(np.arange(min(len(rows), PREPARED_ROWS)))["x"]
    assert isinstance(first, Tensor)
    net.prepare(first)
    ema = EMA(net, (EMA_LENGTH,))
    optimisers = tuple(torch.optim.Adam(part.parameters(), betas=net.betas, fused=True) for part in net.parts())

    def weights() -> dict[str, Tensor]:
        averaged = copy.deepcopy(net)
        ema.copy_to(averaged, EMA_LENGTH)
        return averaged.state_dict()

    return Trainee(optimisers, _steps(net, ema, optimisers, rows.batches(seed, batch), seed), weights)


def _steps(
    net: Family, ema: EMA, optimisers: tuple[Optimizer, ...], batches: Iterator[Batch], seed: int
) -> Iterator[float]:
    for k, rows in enumerate(batches, start=1):
        generator, levels = philox(seed, EPS, k), rows["x"]
        assert isinstance(levels, Tensor)

        def noise(*shape: int) -> Tensor:
            return torch.from_numpy(generator.standard_normal(shape, dtype="float32"))  # noqa: B023 (used in this step)

        total = 0.0
        for part, optimiser, loss in zip(net.parts(), optimisers, net.losses(levels, noise), strict=True):
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(part.parameters(), CLIP)
            optimiser.step()
            total += loss.item()
        ema.update(net, k)
        yield total
