"""DEIS: exponential Adams-Bashforth on eps.

In y = x/alpha and r = sigma/alpha the probability-flow ODE is dy/dr = eps.  eps is replaced by the polynomial through
its last values, in l = -log r, and integrated against dr = -r dl:

    x_s = alpha_s x0 + sigma_s eps_0 + alpha_s sum_j c_j (eps_j - eps_0),   c_j = int_{r_t}^{r_s} l_j(l) dr  (1)

where l_j are the Lagrange polynomials in tau = l - l_t with nodes tau_0 = 0, tau_1, tau_2 < 0.  With
J_n = int tau^n dr over the step, h = l_s - l_t,

    J_1 = r_t ((1 + h) exp(-h) - 1),   J_2 = r_t ((2 + 2 h + h^2) exp(-h) - 2)                             (2)

    order 2   c_1 = J_1/tau_1
    order 3   c_1 = (J_2 - tau_2 J_1)/(tau_1 (tau_1 - tau_2)),   c_2 = (J_2 - tau_1 J_1)/(tau_2 (tau_2 - tau_1))

The first step has no history: order 3 begins with the trapezoid (tau_1 = h, one call more at the step's end), so that
its start does not hold it to order 2.  A long step (`exponential.long`), as from alpha = 0 or to
sigma = 0, is DDIM's.

Q. Zhang, Y. Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", arXiv:2204.13902 (its tAB takes the
polynomial in t; in l, as here, the coefficients have a closed form on every schedule)
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.gaussian import expand
from sfumato.options import whole
from sfumato.samplers.exponential import Node, finite, half_logsnr, long
from sfumato.samplers.loop import Noise, Query, Steps, Walk
from sfumato.schedules import Schedule


def deis(x: Tensor, times: Steps, schedule: Schedule, noise: Noise, *, order: int = 3) -> Walk:
    """(1); x is x_T (B, ...), order 1 (DDIM), 2 or 3."""
    whole("order of deis", order, 3)
    nodes: list[Node] = []
    for t, s in times:
        p = yield Query(x, t)
        now = Node(half_logsnr(schedule, t), p.eps)
        h, alpha_s = half_logsnr(schedule, s) - now.l, schedule.alpha(s)
        x = expand(alpha_s, x) * p.x0 + expand(schedule.sigma(s), x) * p.eps
        if not long(schedule, t, s):
            used = nodes[: order - 1]
            if not nodes and order == 3:
                q = yield Query(x, s)
                used = [Node(now.l + h, q.eps)]
            for c, node in zip(_weights(now.l, h, [node.l for node in used]), used, strict=True):
                x = x + expand(alpha_s * c, x) * (node.value - p.eps)
        nodes = [now, *nodes[:1]] if finite(now.l) else []
    return x


def _weights(l_t: Tensor, h: Tensor, nodes: list[Tensor]) -> list[Tensor]:
    """c_j of (1) for the nodes' l."""
    r_t, tau = torch.exp(-l_t), [l - l_t for l in nodes]
    j_1 = r_t * ((1 + h) * torch.exp(-h) - 1)
    if len(tau) < 2:
        return [j_1 / tau_1 for tau_1 in tau]
    j_2 = r_t * ((2 + 2 * h + h.square()) * torch.exp(-h) - 2)
    first, second = tau
    return [
        (j_2 - second * j_1) / (first * (first - second)),
        (j_2 - first * j_1) / (second * (second - first)),
    ]
