"""DPM-Solver++, multistep, of second and third order.

With l = logsnr/2, h = l_s - l_t the step, h_0 and h_1 the steps before it, D_0 the newest x0, D_{-1} and D_{-2} those
before it, and A x + (alpha_s - A alpha_t) D as in `exponential`:

    2M   D = D_0 + h/(2 h_0) (D_0 - D_{-1})                                                                (1)
    3M   D' = h/h_0 (D_0 - D_{-1}),  D'_- = h/h_1 (D_{-1} - D_{-2}),  D'' = 2 h/(h_0 + h_1) (D' - D'_-)
         D^(1) = D' + h_0/(h_0 + h_1) (D' - D'_-)
         x_s = A x + (alpha_s - A alpha_t) D_0 + alpha_s phi_2 D^(1) - alpha_s phi_3 D''                    (2)

with phi_2 = expm1(-h)/h + 1 and phi_3 = phi_2/h - 1/2.  Two things hold the usual code of 3M to order 2.  Its first
step is of first order; here it is the exponential trapezoid, one call more at the step's end, whose error is h^3.  And
its D'' lacks the factor 2 that makes a divided difference the second derivative phi_3 belongs to.  A step more than
`exponential.REACH` times as long as the one before takes D_0 alone.

C. Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", arXiv:2211.01095,
Algorithm 2; the third order follows the authors' code
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.gaussian import expand
from sfumato.samplers.exponential import Node, carried, finite, half_logsnr, phi_2, within_reach
from sfumato.samplers.loop import Noise, Query, Steps, Walk
from sfumato.schedules import Schedule


def dpmpp_2m(x: Tensor, times: Steps, schedule: Schedule, noise: Noise) -> Walk:
    """(1); x is x_T (B, ...).  The first step, and one whose h is infinite, take D_0 alone."""
    before: list[Node] = []
    for t, s in times:
        p = yield Query(x, t)
        now = Node(half_logsnr(schedule, t), p.x0)
        h = half_logsnr(schedule, s) - now.l
        d = p.x0
        if finite(h):
            for node in within_reach(before, now.l, h):
                d = d + expand(h / (2 * (now.l - node.l)), x) * (p.x0 - node.value)
        x, before = carried(schedule, x, d, t, s), [now]
    return x


def dpmpp_3m(x: Tensor, times: Steps, schedule: Schedule, noise: Noise) -> Walk:
    """(2); x is x_T (B, ...).  The step after the first has two nodes and D'' = 0."""
    nodes: list[Node] = []
    for t, s in times:
        p = yield Query(x, t)
        now = Node(half_logsnr(schedule, t), p.x0)
        h = half_logsnr(schedule, s) - now.l
        alpha_s, first = schedule.alpha(s), carried(schedule, x, p.x0, t, s)
        if not finite(h):
            x = first
        elif not nodes:
            q = yield Query(first, s)
            x = first + expand(alpha_s * phi_2(h), x) * (q.x0 - p.x0)
        else:
            slope, bend = _derivatives(h, now, within_reach(nodes, now.l, h))
            x = first + expand(alpha_s * phi_2(h), x) * slope - expand(alpha_s * (phi_2(h) / h - 0.5), x) * bend
        nodes = [now, *nodes[:1]] if finite(now.l) else []
    return x


def _derivatives(h: Tensor, now: Node, nodes: list[Node]) -> tuple[Tensor, Tensor]:
    """D^(1) and D'' of (2), from as many nodes as there are."""
    slope = bend = torch.zeros_like(now.value)
    if nodes:
        h_0 = now.l - nodes[0].l
        slope = expand(h / h_0, slope) * (now.value - nodes[0].value)
    if len(nodes) > 1:
        h_1 = nodes[0].l - nodes[1].l
        change = slope - expand(h / h_1, slope) * (nodes[0].value - nodes[1].value)
        slope = slope + expand(h_0 / (h_0 + h_1), slope) * change
        bend = expand(2 * h / (h_0 + h_1), slope) * change
    return slope, bend
