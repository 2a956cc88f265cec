"""The Gaussian algebra of diffusion, once.

With alpha, sigma and logsnr of a Schedule, for 0 <= s < t <= 1:

    q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I)                                                             (1)
    q(x_t | x_s) = N(a_ts x_s, v_ts I),   a_ts = alpha_t/alpha_s,
                   v_ts = sigma_t^2 - a_ts^2 sigma_s^2 = -sigma_t^2 expm1(logsnr_t - logsnr_s)              (2)
    q(x_s | x_t, x_0) = N(c_t x_t + c_0 x_0, u_ts I),   c_t = a_ts sigma_s^2/sigma_t^2,
                   c_0 = alpha_s v_ts/sigma_t^2,   u_ts = v_ts sigma_s^2/sigma_t^2                          (3)

(2) is written without the cancellation of its first form.  (3) serves ancestral sampling, skipped steps and the
variational bound, which in nats is

    -log p(x_0) <= KL(q(x_1|x_0) || N(0, prior^2 I)) + sum_{s>0} KL(q(x_s|x_t,x_0) || p(x_s|x_t)) - log p(x_0|x_{t_1})
                    L_T                                   L_{t-1}                                     L_0    (4)

with p(x_s | x_t) = N(c_t x_t + c_0 x0_predicted, variance), and for L_0 that Gaussian integrated over the bin in which
the data value lies.  For neighbours s = t - 1/T these are DDPM's published coefficients.

J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239, eqs. (4)-(13)
D. Kingma, T. Salimans, B. Poole, J. Ho, "Variational Diffusion Models", arXiv:2107.00630, app. A
A. Nichol, P. Dhariwal, "Improved Denoising Diffusion Probabilistic Models", arXiv:2102.09672 (the clip at s = 0)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfumato.schedules import Schedule


def expand(c: Tensor, like: Tensor) -> Tensor:
    """A coefficient of shape (B,) or (B, ...), made to multiply `like` (B, ...), in its dtype and on its device."""
    return c.reshape(c.shape + (1,) * (like.ndim - c.ndim)).to(like.device, like.dtype)


def marginal(schedule: Schedule, x_0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, ...) and standard deviation (B, 1...) of q(x_t | x_0) (1)."""
    return expand(schedule.alpha(t), x_0) * x_0, expand(schedule.sigma(t), x_0)


def perturb(schedule: Schedule, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """x_t = alpha x_0 + sigma eps, a draw of (1) made with the noise eps: (B, ...)."""
    mean, std = marginal(schedule, x_0, t)
    return mean + std * eps


def transition_coefficients(schedule: Schedule, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """a_ts and v_ts of (2), float64, (B,); s < t, alpha_s > 0."""
    ratio = torch.expm1(schedule.logsnr(t) - schedule.logsnr(s))
    return schedule.alpha(t) / schedule.alpha(s), -schedule.sigma(t).square() * ratio


def transition(schedule: Schedule, x_s: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, ...) and standard deviation (B, 1...) of q(x_t | x_s) (2)."""
    a_ts, v_ts = transition_coefficients(schedule, s, t)
    return expand(a_ts, x_s) * x_s, expand(v_ts.sqrt(), x_s)


def posterior_coefficients(schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """c_t, c_0 and u_ts of (3), float64, (B,); u_ts = 0 at s = 0."""
    a_ts, v_ts = transition_coefficients(schedule, s, t)
    kept = (schedule.sigma(s) / schedule.sigma(t)).square()
    return a_ts * kept, schedule.alpha(s) * v_ts / schedule.sigma(t).square(), v_ts * kept


def posterior(schedule: Schedule, x_t: Tensor, x_0: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, ...) and variance (B, 1...) of q(x_s | x_t, x_0) (3)."""
    c_t, c_0, variance = posterior_coefficients(schedule, t, s)
    return expand(c_t, x_t) * x_t + expand(c_0, x_t) * x_0, expand(variance, x_t)


def posterior_log_variance(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """log u_ts, float64, (B,); at s = 0, where u_ts = 0, that of the step above it, 2t -> t, as Improved DDPM clips it.

    (On the T-step grid that step is 2/T -> 1/T.  If even 2t > 1, no step lies above and log v_ts stands in.)
    """
    t, s = torch.as_tensor(t, dtype=torch.float64), torch.as_tensor(s, dtype=torch.float64)
    last, alone = s == 0, 2 * t > 1 + 1e-9
    above = torch.where(last & ~alone, (2 * t).clamp(max=1), t)
    log_u = posterior_coefficients(schedule, above, torch.where(last & ~alone, t, s))[2].log()
    return torch.where(expand(last & alone, log_u).bool(), transition_coefficients(schedule, s, t)[1].log(), log_u)


def kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL(N(mean, .) || N(other_mean, .)) in nats, elementwise: both diagonal."""
    spread = log_variance - other_log_variance
    return 0.5 * (spread.expm1() - spread + (mean - other_mean).square() * torch.exp(-other_log_variance))


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor, bin_width: float) -> Tensor:
    """log of N(mean, std^2) integrated over the bin of x, nats, elementwise, float64.

    x lies in [-1, 1] at bin centres; the first and last bins reach to -inf and +inf, so all bins sum to 1.
    With Phi the normal distribution function, log(Phi(b) - Phi(a)) = log Phi(b) + log1p(-Phi(a)/Phi(b)) is taken in
    the lower tail (both ends change sign if they lie above the mean), where it keeps its digits.
    """
    x, mean, log_std = x.double(), mean.double(), log_std.double()
    half = bin_width / 2
    upper = torch.where(x > 1 - half, math.inf, (x + half - mean) * torch.exp(-log_std))
    lower = torch.where(x < -1 + half, -math.inf, (x - half - mean) * torch.exp(-log_std))
    above = lower + upper > 0
    upper, lower = torch.where(above, -lower, upper), torch.where(above, -upper, lower)
    log_upper = torch.special.log_ndtr(upper)
    # a bin that reaches to infinity has nothing below it; an ordinary value in its place keeps the gradient finite
    open_end = torch.isneginf(lower)
    log_lower = torch.special.log_ndtr(torch.where(open_end, upper - 1, lower))
    log_rest = torch.log(-torch.expm1((log_lower - log_upper).clamp(max=-1e-300)))
    return torch.where(open_end, log_upper, log_upper + log_rest)


def prior_term(schedule: Schedule, x_0: Tensor) -> Tensor:
    """L_T of (4): KL(q(x_1 | x_0) || N(0, prior_std^2 I)), nats, elementwise, float64."""
    one = torch.ones(x_0.shape[0], dtype=torch.float64, device=x_0.device)
    mean, std = marginal(schedule, x_0.double(), one)
    prior = torch.full_like(std, 2 * math.log(schedule.prior_std))
    return kl(mean, 2 * std.log(), torch.zeros_like(mean), prior)


def bound_term(
    schedule: Schedule,
    x_0: Tensor,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    x0: Tensor,
    log_variance: Tensor,
    bin_width: float | None,
) -> Tensor:
    """The term of (4) for the step t -> s, nats, elementwise (B, ...), float64: L_{t-1} where s > 0, L_0 where s = 0.

    x0 is the prediction and log_variance that of p(x_s | x_t).  Without bins (bin_width None) L_0 is the negative
    log-density at x_0 itself: the bound is then one on a density, for data that have no levels.
    """
    x_0, x_t, x0 = x_0.double(), x_t.double(), x0.double()
    log_variance = torch.broadcast_to(expand(log_variance, x_0), x_0.shape)
    predicted, _ = posterior(schedule, x_t, x0, t, s)
    true, _ = posterior(schedule, x_t, x_0, t, s)
    if bin_width is None:
        squared = (x_0 - predicted).square() * torch.exp(-log_variance)
        decoder = 0.5 * (math.log(2 * math.pi) + log_variance + squared)
    else:
        decoder = -discretised_log_likelihood(x_0, predicted, 0.5 * log_variance, bin_width)
    divergence = kl(true, expand(posterior_log_variance(schedule, t, s), x_0), predicted, log_variance)
    return torch.where(expand(torch.as_tensor(s) == 0, x_0).bool(), decoder, divergence)
