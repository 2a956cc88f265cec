"""UniPC: a predictor and, for nothing, a corrector.

With l = logsnr/2, h = l_s - l_t, z = -h, D_m = (x0_m - x0_0)/r_m for nodes at l_t + r_m h, B = expm1(z), and
A x + (alpha_s - A alpha_t) x0_0 as in `exponential`:

    x_s = A x + (alpha_s - A alpha_t) x0_0 - alpha_s B sum_m a_m D_m                                       (1)

The predictor UniP-p uses p - 1 nodes of the past; the corrector UniC-p adds the node r = 1, which is the prediction at
(x_s, s) that the next step asks for anyhow, and so refines x_s without a call.  The a_m solve

    sum_m r_m^(k-1) a_m B = k! phi_{k+1}(z) z,   phi_1 = expm1(z)/z,  phi_{k+1} = (phi_k - 1/k!)/z          (2)

for k = 1..p-1 (predictor) or 1..p (corrector); for a single node the paper takes a_1 = 1/2.  A corrected first step
errs by h^3, so that the start does not hold back order 3.  Where h is infinite the step takes x0_0 alone, and so does
a predictor beyond `exponential.REACH`.

W. Zhao, L. Bai, Y. Rao, J. Zhou, J. Lu, "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion
Models", arXiv:2302.04867, Algorithms 1 and 2, with B_2(h) and data prediction
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.gaussian import expand
from sfumato.options import whole
from sfumato.samplers.exponential import Node, carried, finite, half_logsnr, within_reach
from sfumato.samplers.loop import Noise, Query, Steps, Walk
from sfumato.schedules import Schedule


def unipc(x: Tensor, times: Steps, schedule: Schedule, noise: Noise, *, order: int = 3) -> Walk:
    """Predict by UniP-order, correct by UniC-order; x is x_T (B, ...)."""
    whole("order of unipc", order, 4)
    nodes: list[Node] = []  # newest first
    start, came = x, None
    for t, s in times:
        p = yield Query(x, t)
        now = Node(half_logsnr(schedule, t), p.x0)
        if came is not None and nodes:
            x = _step(schedule, start, nodes[:order], came, t, now)
        nodes = [now, *nodes[: order - 1]] if finite(now.l) else []
        start, came = x, t
        x = _step(schedule, x, nodes[:order], t, s) if nodes else carried(schedule, x, p.x0, t, s)
    return x


def _step(
    schedule: Schedule, x: Tensor, nodes: Sequence[Node], t: Tensor, s: Tensor, end: Node | None = None
) -> Tensor:
    """(1) from t to s; nodes[0] is that of t, and end that of s, which makes it the corrector."""
    now, *past = nodes
    h = half_logsnr(schedule, s) - now.l
    known = carried(schedule, x, now.value, t, s)
    if not finite(h):
        return known
    others = [*within_reach(past, now.l, h), *([end] if end else [])]
    if not others:
        return known
    r = torch.stack([(node.l - now.l) / h for node in others], -1)
    scale = expand(-schedule.alpha(s) * torch.expm1(-h), x)
    for m, (node, a) in enumerate(zip(others, _weights(h, r).unbind(-1), strict=True)):
        known = known + scale * expand(a / r[..., m], x) * (node.value - now.value)
    return known


def _weights(h: Tensor, r: Tensor) -> Tensor:
    """a of (2), (..., p), for nodes r (..., p)."""
    p = r.shape[-1]
    if p == 1:
        return torch.full_like(r, 0.5)
    z, b = -h, []
    phi = torch.expm1(z) / z
    for k in range(1, p + 1):
        phi = (phi - 1 / math.factorial(k)) / z
        b.append(math.factorial(k) * phi * z / torch.expm1(z))
    powers = torch.stack([r**k for k in range(p)], -2)
    return torch.linalg.solve(powers, torch.stack(b, -1)[..., None])[..., 0]
