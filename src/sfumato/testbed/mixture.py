"""A Gaussian mixture with full covariances: denoiser, score, reverse variance, density and bound, all exact.

For x_0 ~ sum_k w_k N(mu_k, S_k) and x_t = alpha x_0 + sigma eps, with C_k = alpha^2 S_k + sigma^2 I:

    p(x_t) = sum_k w_k N(x_t; alpha mu_k, C_k),   r_k = P(k | x_t)                                         (1)
    E[x_0 | x_t, k]   = mu_k + alpha S_k C_k^-1 (x_t - alpha mu_k)                                         (2)
    Cov[x_0 | x_t, k] = sigma^2 S_k C_k^-1                                                                 (3)
    E[eps | x_t, k]   = sigma C_k^-1 (x_t - alpha mu_k),   score = -E[eps | x_t]/sigma                     (4)

S_k = U_k diag(l_k) U_k^T is decomposed once; in that basis every C_k^-1 is a division, for any t, in float64.

The variational bound needs only E over x_t ~ p_t of functions of Var[x_0 | x_t]: Gauss-Hermite quadrature in each
component (nodes^D points).  For one Gaussian (3) does not depend on x_t, so one node gives the closed form.

B. Efron, "Tweedie's Formula and Selection Bias" (2011); F. Bao et al., "Analytic-DPM", arXiv:2201.06503
"""

from __future__ import annotations

import math
from typing import final

import numpy as np
import torch
from torch import Tensor

from sfumato import gaussian, grids
from sfumato.denoiser import Cond, Denoiser, Prediction
from sfumato.noise import DATA, philox
from sfumato.schedules import Schedule
from sfumato.variances import VARIANCES


@final
class GaussianMixture:
    """weights (K,) positive, means (K, D), covariances (K, D, D) symmetric positive semi-definite; kept in float64."""

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor):
        w, m, c = (torch.as_tensor(a, dtype=torch.float64) for a in (weights, means, covariances))
        if (
            w.ndim != 1
            or m.shape != (len(w), m.shape[-1])
            or c.shape != (*m.shape, m.shape[-1])
            or not bool((w > 0).all())
        ):
            raise ValueError(
                "a mixture needs positive weights (K,), means (K, D), covariances (K, D, D); "
                f"got {tuple(w.shape)}, {tuple(m.shape)}, {tuple(c.shape)}"
            )
        eigenvalues, self.axes = torch.linalg.eigh(c)
        if not torch.allclose(c, c.mT) or bool((eigenvalues < -1e-9).any()):
            raise ValueError("covariances must be symmetric with eigenvalues >= 0")
        self.weights, self.means, self.covariances = w / w.sum(), m, c
        self.eigenvalues = eigenvalues.clamp(min=0)

    @property
    def dimension(self) -> int:
        return self.means.shape[1]

    def denoiser(self, schedule: Schedule, shape: tuple[int, ...] | None = None) -> Denoiser:
        """The exact Denoiser; x_t is (B, D), or (B, *shape) with prod(shape) = D."""
        return MixtureDenoiser(self, schedule, shape)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n exact draws, (n, D), float64."""
        draw = philox(seed, DATA)
        k = torch.from_numpy(draw.choice(len(self.weights), size=n, p=self.weights.numpy()))
        z = torch.from_numpy(draw.standard_normal((n, self.dimension))) * self.eigenvalues[k].sqrt()
        return self.means[k] + torch.einsum("nij,nj->ni", self.axes[k], z)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x_0), nats, (B,)."""
        one, zero = torch.ones(len(x), dtype=torch.float64), torch.zeros(len(x), dtype=torch.float64)
        return self._components(x.double(), one, zero)[0].logsumexp(1)

    def log_prob_at(self, x_t: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        """log p(x_t) of (1), nats, (B,)."""
        return self._components(x_t.double(), schedule.alpha(t), schedule.sigma(t))[0].logsumexp(1)

    def score(self, x_t: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        """grad log p(x_t) (4), (B, D)."""
        return -self.denoiser(schedule)(x_t.double(), t).eps / schedule.sigma(t)[:, None]

    def posterior(self, x_t: Tensor, t: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """E[x_0 | x_t] (B, D) and the full Cov[x_0 | x_t] (B, D, D)."""
        r, mean, _, spread = self._moments(x_t.double(), schedule.alpha(t), schedule.sigma(t))
        within = torch.einsum("bk,kij,bkj,klj->bil", r, self.axes, spread, self.axes)
        x0 = torch.einsum("bk,bki->bi", r, mean)
        off = mean - x0[:, None]
        return x0, within + torch.einsum("bk,bki,bkj->bij", r, off, off)

    def expectations(self, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        """E[x_0 | x] and E[eps | x] at x = alpha x_0 + sigma eps, (B, D) each, float64."""
        scales = (torch.tensor([value], dtype=torch.float64) for value in (alpha, sigma))
        r, mean, eps, _ = self._moments(x.double(), *scales)
        return torch.einsum("bk,bki->bi", r, mean), torch.einsum("bk,bki->bi", r, eps)

    def bound(self, schedule: Schedule, times: Tensor, variance: str = "small", nodes: int = 32) -> Tensor:
        """The expected terms of the bound (`gaussian` (4)) on the density, nats: [L_T, L at each of times], (S + 1,).

        times is a grid (S + 1,); variance a row of VARIANCES, the reverse chain that of the exact denoiser.
        """
        second = (self.weights[:, None] * (self.means.square() + torch.diagonal(self.covariances, dim1=1, dim2=2))).sum(
            0
        )
        terms = [gaussian.prior_term(schedule, second.sqrt()[None]).sum()]
        terms += [self._bound_step(schedule, t, s, variance, nodes) for t, s in grids.pairs(times)]
        return torch.stack(terms)

    def _bound_step(self, schedule: Schedule, t: Tensor, s: Tensor, variance: str, nodes: int) -> Tensor:
        x_t, weight = self._quadrature(schedule, t, nodes)
        p = self.denoiser(schedule)(x_t, t.expand(len(x_t)))
        assert p.x0_variance is not None
        log_variance = torch.broadcast_to(gaussian.expand(VARIANCES[variance](schedule, t, s, p), x_t), x_t.shape)
        _, c_0, u_ts = gaussian.posterior_coefficients(schedule, t, s)
        error = c_0.square() * p.x0_variance * torch.exp(-log_variance)  # E[(mean error)^2 | x_t] / variance
        if s == 0:
            nats = 0.5 * (math.log(2 * math.pi) + log_variance + error)
        else:
            spread = u_ts.log() - log_variance
            nats = 0.5 * (spread.expm1() - spread + error)
        return (weight * nats.sum(1)).sum()

    def _quadrature(self, schedule: Schedule, t: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
        """Points (K nodes^D, D) and weights that integrate against p(x_t)."""
        z, w = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(nodes))
        w = w / w.sum()
        grid = torch.cartesian_prod(*[z] * self.dimension).reshape(-1, self.dimension)
        mass = torch.cartesian_prod(*[w] * self.dimension).reshape(-1, self.dimension).prod(1)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        std = (alpha.square() * self.eigenvalues + sigma.square()).sqrt()  # (K, D)
        x = alpha * self.means[:, None] + torch.einsum("kij,knj->kni", self.axes, std[:, None] * grid)
        return x.reshape(-1, self.dimension), (self.weights[:, None] * mass).reshape(-1)

    def _components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log(w_k N(x_t; .)) (B, K), x_t - alpha mu_k in the basis of component k (B, K, D), eigenvalues of C_k."""
        alpha, sigma = alpha.reshape(-1, 1, 1), sigma.reshape(-1, 1, 1)
        off = torch.einsum("bki,kij->bkj", x[:, None] - alpha * self.means, self.axes)
        spread = alpha.square() * self.eigenvalues + sigma.square()
        square = (off.square() / spread + spread.log() + math.log(2 * math.pi)).sum(2)
        return self.weights.log() - 0.5 * square, off, spread

    def _moments(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """r_k (B, K), then per component E[x_0] (2), E[eps] (4), (B, K, D), and the eigenvalues of (3)."""
        log_p, off, spread = self._components(x, alpha, sigma)
        alpha, sigma = alpha.reshape(-1, 1, 1), sigma.reshape(-1, 1, 1)
        mean = self.means + torch.einsum("kij,bkj->bki", self.axes, alpha * self.eigenvalues * off / spread)
        eps = torch.einsum("kij,bkj->bki", self.axes, sigma * off / spread)
        return log_p.softmax(1), mean, eps, sigma.square() * self.eigenvalues / spread


@final
class MixtureDenoiser(Denoiser):
    """E[x_0 | x_t], E[eps | x_t] and the diagonal of Cov[x_0 | x_t], computed in float64, in the dtype of x_t."""

    def __init__(self, mixture: GaussianMixture, schedule: Schedule, shape: tuple[int, ...] | None = None):
        self.mixture, self.schedule, self.shape = mixture, schedule, shape or (mixture.dimension,)
        if math.prod(self.shape) != mixture.dimension:
            raise ValueError(f"shape {self.shape} has {math.prod(self.shape)} values, the mixture {mixture.dimension}")

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        if x_t.shape[1:] != self.shape:
            raise ValueError(f"x_t must be (B, {', '.join(map(str, self.shape))}); got {tuple(x_t.shape)}")
        t = t.double()
        moments = self.mixture._moments(x_t.double().flatten(1), self.schedule.alpha(t), self.schedule.sigma(t))
        r, mean, eps, spread = moments
        x0 = torch.einsum("bk,bki->bi", r, mean)
        within = torch.einsum("kij,bkj->bi", self.mixture.axes.square(), r[..., None] * spread)
        between = torch.einsum("bk,bki->bi", r, (mean - x0[:, None]).square())
        noise = torch.einsum("bk,bki->bi", r, eps)
        return Prediction(
            x0.to(x_t).view_as(x_t), noise.to(x_t).view_as(x_t), None, (within + between).to(x_t).view_as(x_t)
        )
