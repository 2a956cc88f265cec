"""What guidance is, and what it samples, where both are known exactly.

On a mixture whose components have labels everything is a mixture again: p(x_t | y), the classifier p(y | x_t), and the
denoiser under a label or under none.

On Gaussians guidance is linear.  Let p_0 = N(m_0, S_0) be the unconditional and p_1 = N(m_1, S_1) the conditional (or a
weaker model and the good one); classifier-free guidance by w, autoguidance by w and the exact classifier of scale s = w
all walk along

    score_w = (1 - w) score_0 + w score_1                                                                  (1)

since grad log p(y|x_t) = score_1 - score_0.  With x_t = alpha x_0 + sigma eps, alpha = r cos(phi), sigma = r sin(phi),
z = x/r and C_i = cos^2 S_i + sin^2 I, small steps end as the ODE or the reverse SDE does, whatever the schedule:

    ODE   dz/dphi = -sin(phi) x0_w(z) + cos(phi) eps_w(z)                                                  (2)
    SDE   the mean m and covariance C of z by u = -log cos(phi), from infinity to 0,
          -dm/du = F m + 2 cos(phi) ((1 - w) C_0^-1 m_0 + w C_1^-1 m_1),   -dC/du = F C + C F^T + 2 I,
          F = I - 2 (1 - w) C_0^-1 - 2 w C_1^-1                                                            (3)

from N(0, I) at pure noise.  In one dimension (2) has the variance S_0^(1-w) S_1^w, and one might think that guidance
samples

    p_0^(1-w) p_1^w ~ p(x) p(y|x)^w:   precision (1-w) S_0^-1 + w S_1^-1                                   (4)

but it does not: the noised (4) is not the product of the noised ones.  They agree at w = 0 and 1 only.

J. Ho, T. Salimans, arXiv:2207.12598; P. Dhariwal, A. Nichol, arXiv:2105.05233
A. Bradley, P. Nakkiran, "Classifier-Free Guidance is a Predictor-Corrector", arXiv:2408.09000, sec. 3
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from sfumato.denoiser import Cond, Denoiser, Prediction
from sfumato.schedules import Schedule
from sfumato.testbed.mixture import GaussianMixture
from sfumato.testbed.moments import Moments

Logits = Callable[[Tensor, Tensor], Tensor]  # (x_t (B, D), t (B,)) -> logits (B, K)


@final
class ByLabel(Denoiser):
    """Rows of cond["label"] = y are answered by known[y], rows without a label, or of label len(known), by `whole`."""

    def __init__(self, known: Sequence[Denoiser], whole: Denoiser):
        self.known, self.schedule, self.null_cond = (
            [*known, whole],
            whole.schedule,
            {"label": torch.tensor([len(known)])},
        )

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        label = (cond or {}).get("label", self.null_cond["label"]).expand(len(x_t))
        x0, eps, variance = torch.zeros_like(x_t), torch.zeros_like(x_t), torch.zeros_like(x_t)
        for y in label.unique().tolist():
            rows = label == y
            p = self.known[y](x_t[rows], t[rows])
            assert p.x0_variance is not None
            x0[rows], eps[rows], variance[rows] = p.x0, p.eps, p.x0_variance
        return Prediction(x0, eps, None, variance)


@final
class Labelled:
    """A mixture and the label of each of its components, 0..L-1, all of which occur."""

    def __init__(self, mixture: GaussianMixture, labels: Sequence[int]):
        self.mixture, self.labels = mixture, torch.tensor(labels)
        classes = sorted(set(labels))
        if len(labels) != len(mixture.weights) or classes != list(range(len(classes))):
            raise ValueError(
                f"a label 0..L-1 for each of {len(mixture.weights)} components, none left out; got {list(labels)}"
            )
        self.parts = [self._part(self.labels == y) for y in classes]
        self.shares = torch.stack([mixture.weights[self.labels == y].sum() for y in classes])

    def _part(self, at: Tensor) -> GaussianMixture:
        return GaussianMixture(self.mixture.weights[at], self.mixture.means[at], self.mixture.covariances[at])

    def conditional(self, label: int) -> GaussianMixture:
        """p(x_0 | y)."""
        return self.parts[label]

    def denoiser(self, schedule: Schedule, shape: tuple[int, ...] | None = None) -> Denoiser:
        """E[x_0 | x_t, y] for rows of label y, E[x_0 | x_t] for rows of none; x_t as `GaussianMixture.denoiser`'s."""
        return ByLabel([part.denoiser(schedule, shape) for part in self.parts], self.mixture.denoiser(schedule, shape))

    def classifier(self, schedule: Schedule) -> Logits:
        """log p(x_t, y) for each y, whose softmax is p(y | x_t), (B, L)."""
        log_shares = self.shares.log()

        def logits(x_t: Tensor, t: Tensor) -> Tensor:
            logs = [part.log_prob_at(x_t.flatten(1), t, schedule) for part in self.parts]
            return torch.stack(logs, 1) + log_shares

        return logits


def gaussian_classifier(null: GaussianMixture, given: GaussianMixture, schedule: Schedule) -> Logits:
    """Two classes, of which p(x_0) = null (one Gaussian) and p(x_0 | y = 1) = given (one Gaussian, the narrower).

    p(y=1 | x_t) = P given(x_t)/null(x_t), with P as large as leaves it below 1; its log has an affine gradient.
    """
    (p_0, m_0), (p_1, m_1) = _natural(null), _natural(given)
    if not bool((torch.linalg.eigvalsh(p_1 - p_0) > 1e-9).all()):
        raise ValueError("no classifier makes this of that: given must be narrower than null in every direction")
    top = torch.linalg.solve(p_1 - p_0, p_1 @ m_1 - p_0 @ m_0)[
        None
    ]  # where given/null is largest at t = 0, and at all t
    log_share = math.log(0.9) - float(given.log_prob(top) - null.log_prob(top))

    def logits(x_t: Tensor, t: Tensor) -> Tensor:
        log_p = log_share + given.log_prob_at(x_t, t, schedule) - null.log_prob_at(x_t, t, schedule)
        return torch.stack([torch.log(-torch.expm1(log_p)), log_p], 1)

    return logits


def product_moments(null: GaussianMixture, given: GaussianMixture, w: float) -> Moments:
    """(4), which is what guidance does not sample; ValueError where it has no density."""
    (p_0, m_0), (p_1, m_1) = _natural(null), _natural(given)
    precision = (1 - w) * p_0 + w * p_1
    if not bool((torch.linalg.eigvalsh(precision) > 0).all()):
        raise ValueError(f"p_0^(1-w) p_1^w has no density at w = {w:g}: its precision is not positive")
    mean = torch.linalg.solve(precision, (1 - w) * p_0 @ m_0 + w * p_1 @ m_1)
    return Moments(mean, torch.linalg.inv(precision))


def ode_moments(null: GaussianMixture, given: GaussianMixture, w: float) -> Moments:
    """Where (2) ends: what deterministic samplers, guided, sample as their steps grow small."""
    _natural(null), _natural(given)
    D = null.dimension

    def slope(phi: float, z: np.ndarray) -> np.ndarray:
        points, cos, sin = torch.from_numpy(z.reshape(D + 1, D)), math.cos(phi), math.sin(phi)
        answers = [mixture.expectations(points, cos, sin) for mixture in (null, given)]
        x0, eps = (torch.lerp(a, b, w) for a, b in zip(*answers, strict=True))
        return (cos * eps - sin * x0).numpy().ravel()

    start = np.concatenate([np.zeros((1, D)), np.eye(D)])  # the map is affine: what becomes of 0 and of the basis
    end = _solved(slope, (math.pi / 2, 0.0), start)
    A = (end[1:] - end[0]).T
    return Moments(end[0], A @ A.T)


def sde_moments(null: GaussianMixture, given: GaussianMixture, w: float) -> Moments:
    """Where (3) ends: what ancestral sampling, guided by either algorithm, samples as its steps grow small."""
    (_, m_0), (_, m_1) = _natural(null), _natural(given)
    D, identity = null.dimension, torch.eye(null.dimension, dtype=torch.float64)

    def slope(u: float, state: np.ndarray) -> np.ndarray:
        now, cos = torch.from_numpy(state.reshape(D + 1, D)), math.exp(-u)
        noised = (cos**2 * one.covariances[0] - math.expm1(-2 * u) * identity for one in (null, given))
        q_0, q_1 = (torch.linalg.inv(C) for C in noised)
        F = identity - 2 * (1 - w) * q_0 - 2 * w * q_1
        mean = F @ now[0] + 2 * cos * ((1 - w) * q_0 @ m_0 + w * q_1 @ m_1)
        spread = F @ now[1:] + now[1:] @ F.T + 2 * identity
        return -torch.cat([mean[None], spread]).numpy().ravel()

    start = np.concatenate([np.zeros((1, D)), np.eye(D)])
    end = _solved(slope, (20.0, 0.0), start)  # alpha = 2e-9 is noise
    return Moments(end[0], end[1:])


def _natural(one: GaussianMixture) -> tuple[Tensor, Tensor]:
    """Precision (D, D) and mean (D,) of a mixture that is one Gaussian."""
    if len(one.weights) != 1:
        raise ValueError(f"closed forms of guidance are for one Gaussian each; got {len(one.weights)} components")
    return torch.linalg.inv(one.covariances[0]), one.means[0]


def _solved(slope: Callable[[float, np.ndarray], np.ndarray], way: tuple[float, float], start: np.ndarray) -> Tensor:
    from scipy.integrate import solve_ivp

    solved = solve_ivp(slope, way, start.ravel(), method="DOP853", rtol=1e-10, atol=1e-12)
    return torch.from_numpy(solved.y[:, -1].reshape(start.shape).copy())
