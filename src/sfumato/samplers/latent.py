"""The latent space of deterministic samplers: the probability-flow ODE walked from data to noise, and paths in it.

At t = 0 a network has nothing to say of eps, so the first step 0 -> t_1 takes what it says at t_1 of the picture there
without noise, alpha_1 x_0:

    x_1 = alpha_1 x_0 + sigma_1 eps(alpha_1 x_0, t_1)                                                      (1)

and from t_1 on the sampler walks its own steps upwards.  Latents lie near the sphere of radius sqrt(D), which is why
one goes from one to another along it:

    slerp(a, b, w) = (sin((1 - w) o) a + sin(w o) b)/sin o,   o the angle between a and b                  (2)

J. Song, C. Meng, S. Ermon, "Denoising Diffusion Implicit Models", arXiv:2010.02502, sec. 4.3, 5.3, 5.4
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.asking import Query, ask
from sfumato.denoiser import Cond, Denoiser
from sfumato.gaussian import expand
from sfumato.samplers.loop import Noise, Sampler, under, walk


def encoded(
    denoiser: Denoiser, x_0: Tensor, sampler: Sampler, times: Tensor, noise: Noise, cond: Cond | None, whole: bool
) -> Tensor:
    """x at times[-1] of x_0 (B, ...) at times[0] = 0, times (S + 1,) rising; whole: the sampler makes (1) too."""
    x = x_0
    if not whole:
        schedule, first = denoiser.schedule, times[1]
        x = expand(schedule.alpha(first), x_0) * x_0
        with torch.no_grad():
            (p,) = ask(denoiser, [under(Query(x, first), cond)])
        x, times = x + expand(schedule.sigma(first), x) * p.eps, times[1:]
    if len(times) > 1:
        for _, state, _ in walk(denoiser, x, sampler, times, noise, cond):
            x = state
    return x


def lerp(a: Tensor, b: Tensor, w: float) -> Tensor:
    """(1 - w) a + w b: straight, through the middle, where no latent lies."""
    return torch.lerp(a, b, w)


def slerp(a: Tensor, b: Tensor, w: float) -> Tensor:
    """(2), each row along its own great circle (of linearly changing radius); rows that point one way are lerped."""
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()
    norm_a, norm_b = flat_a.norm(dim=1, keepdim=True), flat_b.norm(dim=1, keepdim=True)
    u, v = flat_a / norm_a, flat_b / norm_b
    o = 2 * torch.atan2((u - v).norm(dim=1, keepdim=True), (u + v).norm(dim=1, keepdim=True))
    turned = (torch.sin((1 - w) * o) * u + torch.sin(w * o) * v) / torch.sin(o)
    direction = torch.where(torch.sin(o) < 1e-9, torch.lerp(u, v, w), turned)
    return (torch.lerp(norm_a, norm_b, w) * direction).to(a).view_as(a)
