"""What a step minimises, one value a row: the rows of LOSSES, and MeanFlow, which must differentiate the network.

A MeanFlow network says the average velocity u over s..t, of which the state at s is x_s = x_t - (t - s) u.  On the
straight path, alpha = 1 - t, sigma = t, with v = eps - x_0,

    u = v - (t - s) du/dt,   du/dt = v grad_x u + du/dt|_x   along the path, s held                        (1)
    L = w |u - stop(v - (t - s) du/dt)|^2 / D,   w = stop((|.|^2 + c)^-power)                              (2)

A Prediction holds u as the straight path it stands for, x0 = x_t - t u and eps = x_t + (1 - t) u, so u = eps - x0; and
the network is told t - s as cond["span"].  (1) is one forward-mode product through the network.

Z. Geng et al., "Mean Flows for One-step Generative Modeling", arXiv:2505.13447, Algorithm 1
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sfumato import losses
from sfumato.denoiser import Cond, Denoiser, Prediction
from sfumato.gaussian import expand
from sfumato.losses import Noised, Weighting

Objective = Callable[[Noised, Denoiser, Cond, Weighting], Tensor]


def _of_prediction(loss: Callable[[Noised, Prediction, Weighting], Tensor]) -> Objective:
    return lambda at, denoiser, cond, weighting: loss(at, denoiser(at.x_t, at.t, cond), weighting)


def meanflow(
    at: Noised, denoiser: Denoiser, cond: Cond, weighting: Weighting, power: float = 1.0, c: float = 1e-3
) -> Tensor:
    """(2), (B,); cond["span"] is t - s.  The weighting plays no part."""
    assert at.eps is not None
    v, span = at.eps - at.x_0, cond["span"]

    def velocity(x: Tensor, t: Tensor, span: Tensor) -> Tensor:
        p = denoiser(x, t, {**cond, "span": span})
        return p.eps - p.x0

    # the attention that torch would choose has no forward mode, and its first such product imports what it deprecates
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        ones = torch.ones_like(at.t)
        u, moved = torch.func.jvp(velocity, (at.x_t, at.t, span), (v, ones, ones.to(span)))[:2]
    error = (u - (v - expand(span, v) * moved).detach()).square().flatten(1).mean(1)
    return error * (error.detach() + c) ** -power


OBJECTIVES: dict[str, Callable[..., Tensor]] = {
    **{name: _of_prediction(loss) for name, loss in losses.LOSSES.items()},
    "meanflow": meanflow,
}

# what is measured on held-out rows where it is not what is minimised: meanflow's error before its adaptive weight
MEASURED: dict[str, Objective] = {"meanflow": partial(meanflow, power=0.0)}
