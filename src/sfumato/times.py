"""Training times: which t a network is trained at.

    uniform        on the T-step grid, or in (0, 1)
    stratified     one draw u for the batch, u_j = u + j/B mod 1
    logit_normal   log(t/(1 - t)) normal
    log_normal     log(sigma/alpha) normal: EDM, mean -1.2, std 1.2
    importance     p_t in proportion to the root mean square of the last ten losses at t, each weighted by 1/(T p_t)

All are made of u, uniform in [0, 1), so a step's times are a function of what drew u.

D. Kingma et al., arXiv:2107.00630 (stratified); P. Esser et al., arXiv:2403.03206 (logit-normal); T. Karras et al.,
arXiv:2206.00364 (log-normal); A. Nichol, P. Dhariwal, arXiv:2102.09672 (importance)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.schedules import Schedule

EDGE = 1e-5  # continuous times are drawn from [EDGE, 1 - EDGE], where no weight is infinite


def _on_grid(u: Tensor, schedule: Schedule) -> Tensor:
    """u in [0, 1) -> a step i/T of the grid, or itself on a continuous schedule."""
    if schedule.steps is None:
        return u.clamp(EDGE, 1 - EDGE)
    return ((u * schedule.steps).floor() + 1).clamp(max=schedule.steps) / schedule.steps


def uniform(u: Tensor, schedule: Schedule, p: Tensor | None) -> tuple[Tensor, Tensor]:
    return _on_grid(u, schedule), torch.ones_like(u)


def stratified(u: Tensor, schedule: Schedule, p: Tensor | None) -> tuple[Tensor, Tensor]:
    shifted = (u[0] + torch.arange(len(u), dtype=u.dtype) / len(u)) % 1
    return _on_grid(shifted, schedule), torch.ones_like(u)


def logit_normal(
    u: Tensor, schedule: Schedule, p: Tensor | None, mean: float = 0.0, std: float = 1.0
) -> tuple[Tensor, Tensor]:
    return _on_grid(torch.sigmoid(mean + std * torch.special.ndtri(u)), schedule), torch.ones_like(u)


def log_normal(
    u: Tensor, schedule: Schedule, p: Tensor | None, mean: float = -1.2, std: float = 1.2
) -> tuple[Tensor, Tensor]:
    log_ratio = mean + std * torch.special.ndtri(u)
    return _on_grid(schedule.path.time_of_logsnr(-2 * log_ratio), schedule), torch.ones_like(u)


def importance(u: Tensor, schedule: Schedule, p: Tensor | None) -> tuple[Tensor, Tensor]:
    """i drawn with probabilities p (T,), made by `importance_probabilities`."""
    if p is None:
        raise ValueError("times 'importance' need a T-step schedule, to remember the losses of each step")
    i = torch.searchsorted(p.cumsum(0), u, right=True).clamp(max=len(p) - 1)
    return (i + 1).double() / len(p), 1 / (len(p) * p[i])


def importance_probabilities(losses: Tensor) -> Tensor:
    """p_t in proportion to sqrt(E[L_t^2]), mixed with 0.1 % uniform, from the last losses at each step (T, 10).

    NaN is a loss not seen yet; until every step has all of its own, p is uniform.
    """
    rms = losses.square().mean(1).sqrt()
    return torch.full_like(rms, 1 / len(rms)) if bool(rms.isnan().any()) else 0.999 * rms / rms.sum() + 0.001 / len(rms)


# u (B,) uniform in [0, 1), float64; p (T,) for importance -> (t, weight of the row), both (B,)
TIMES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "uniform": uniform,
    "stratified": stratified,
    "logit_normal": logit_normal,
    "log_normal": log_normal,
    "importance": importance,
}
