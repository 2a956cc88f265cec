"""The reverse stochastic differential equation, and Langevin corrections to it.

The forward process (x_t = alpha x_0 + sigma eps) is dx = f x dt + g dw; run backwards it has the same marginals [1]:

    dx = [f x - g^2 score(x, t)] dt + g dw,   score = -eps/sigma                                            (1)
    f = d log alpha/dt,   g^2 = d sigma^2/dt - 2 f sigma^2 = -sigma^2 dlogsnr/dt

Euler-Maruyama makes the step t -> s, h = t - s, of (1) with constant coefficients:

    x_s = x_t - h [f x_t + (g^2/sigma_t) eps(x_t, t)] + g sqrt(h) z                                         (2)

f and g are known functions of time alone, which may be taken anywhere in the step at the same weak order, 1.  They are
taken at its end s.  At t = 1 they are infinite where alpha(1) = 0, and so large on a cosine schedule that the first
step would multiply x by a hundred; at s they are finite, and x stays where the denoiser knows it.

Predictor-corrector [1] makes a step of the reverse process, then draws nearer to p_s by Langevin dynamics there:

    predict   x = c_t x_t + c_0 x0(x_t, t) + sqrt(u_ts) z      (`gaussian` (3))                              (3)
    correct   x <- x - kappa sigma_s eps(x, s) + sqrt(2 kappa) sigma_s z                                    (4)

(3) is the paper's ancestral predictor, and finite for every schedule.  The paper's correction has the step
kappa sigma_s^2 = 2 (snr |z|/|score|)^2; as |z| is near sqrt(D) and |score| near sqrt(D)/sigma, kappa is near 2 snr^2.
Taken so, it never divides by a score that is zero and is the same for every row.  But a fixed kappa leaves the
variance off by kappa/2 however fine the grid, so here

    kappa = min(h, 2 snr^2),   h = (logsnr_s - logsnr_t)/2                                                  (5)

which is the paper's on coarse grids; on fine ones the corrector stirs in as much noise as the predictor, 2 h sigma^2,
and the whole is a discretisation of (1) plus a Langevin diffusion, of weak order 1.

[1] Y. Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", arXiv:2011.13456,
    eq. (6), Algorithms 2-5, app. F (ancestral) and G (the last step denoises)
"""

from __future__ import annotations

from torch import Tensor

from sfumato.gaussian import expand, posterior
from sfumato.options import whole
from sfumato.samplers.langevin import langevin_step
from sfumato.samplers.loop import Noise, Query, Steps, Walk
from sfumato.schedules import Schedule


def euler_maruyama(x: Tensor, times: Steps, schedule: Schedule, noise: Noise) -> Walk:
    """(2); x is x_T (B, ...).  The step to s = 0 denoises: x_0 = x0(x, t)."""
    for k, (t, s) in enumerate(times):
        p = yield Query(x, t)
        if s == 0:
            return p.x0
        h = t - s
        f = schedule.dalpha(s) / schedule.alpha(s)
        g2 = -schedule.sigma(s).square() * schedule.dlogsnr(s)
        drift = expand(f, x) * x + expand(g2 / schedule.sigma(t), x) * p.eps
        x = x - expand(h, x) * drift + expand((g2 * h).sqrt(), x) * noise(k)
    return x


def predictor_corrector(
    x: Tensor, times: Steps, schedule: Schedule, noise: Noise, *, corrections: int = 1, snr: float = 0.16
) -> Walk:
    """(3), then (4) `corrections` times; x is x_T (B, ...), snr > 0.  Calls: S + (S - 1) corrections."""
    corrections = whole("option corrections of sampler predictor-corrector", corrections)
    if not snr > 0:
        raise ValueError(f"snr must be above 0 (0.16 is usual; ancestral has no corrections); got {snr}")
    for k, (t, s) in enumerate(times):
        p = yield Query(x, t)
        x, variance = posterior(schedule, x, p.x0, t, s)
        if s == 0:
            return x
        first = k * (corrections + 1)
        x = x + variance.sqrt() * noise(first)
        kappa = ((schedule.logsnr(s) - schedule.logsnr(t)) / 2).clamp(max=2 * snr**2)
        for j in range(corrections):
            p = yield Query(x, s)
            x = langevin_step(x, p.eps, schedule.sigma(s), kappa, noise(first + 1 + j))
    return x
