"""The exact denoiser of a data set: what a network of unlimited capacity would learn, and why it would be useless.

For x_0 uniform over rows x_1..x_N, with r_n = softmax_n(-|x_t - alpha x_n|^2 / (2 sigma^2)):

    E[x_0 | x_t] = sum_n r_n x_n,   Var[x_0 | x_t] = sum_n r_n (x_n - E)^2,   eps = (x_t - alpha E)/sigma

Sampling with it returns training rows: it is the model that memorises.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from sfumato.denoiser import Cond, Denoiser, Prediction, from_x0
from sfumato.noise import DATA, philox
from sfumato.schedules import Schedule


@final
class Empirical:
    """data: (N, ...), codec units; kept in float64."""

    def __init__(self, data: Tensor):
        if data.ndim < 2 or len(data) == 0 or not bool(torch.isfinite(data).all()):
            raise ValueError(f"an empirical distribution needs finite rows (N, ...), N >= 1; got {tuple(data.shape)}")
        self.data = data.double()

    def denoiser(self, schedule: Schedule) -> Denoiser:
        return EmpiricalDenoiser(self, schedule)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n rows drawn with replacement, (n, ...), float64."""
        return self.data[torch.from_numpy(philox(seed, DATA).integers(len(self.data), size=n))]

    def log_prob(self, x: Tensor) -> Tensor:
        raise ValueError("a data set has no density at t = 0; ask log_prob_at(x_t, t, schedule) for t > 0")

    def log_prob_at(self, x_t: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        """log p(x_t), nats, (B,), t > 0."""
        dimension = self.data[0].numel()
        square = self._log_kernel(x_t, t, schedule).logsumexp(1) - math.log(len(self.data))
        return square - dimension * (0.5 * math.log(2 * math.pi) + schedule.sigma(t).log())

    def _log_kernel(self, x_t: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        x, rows = x_t.double().flatten(1), self.data.flatten(1)
        distances = [
            torch.cdist(row[None], alpha * rows, compute_mode="donot_use_mm_for_euclid_dist")
            for row, alpha in zip(x, schedule.alpha(t), strict=True)
        ]
        return -0.5 * (torch.cat(distances) / schedule.sigma(t)[:, None]).square()


@final
class EmpiricalDenoiser(Denoiser):
    """E[x_0 | x_t] over a data set, in the dtype of x_t."""

    def __init__(self, empirical: Empirical, schedule: Schedule):
        self.empirical, self.schedule = empirical, schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        r = self.empirical._log_kernel(x_t, t.double(), self.schedule).softmax(1)
        rows = self.empirical.data.flatten(1)
        x0 = r @ rows
        spread = torch.stack([weight @ (rows - mean).square() for weight, mean in zip(r, x0, strict=True)])
        double = from_x0(self.schedule, x_t.double(), t, x0.view_as(x_t))
        return Prediction(double.x0.to(x_t), double.eps.to(x_t), None, spread.to(x_t).view_as(x_t))
