"""Schedules: how signal fades and noise grows.

The forward process is one line, for t in [0, 1] (t = 0 is data, t = 1 is noise):

    x_t = alpha(t) x_0 + sigma(t) eps,    eps ~ N(0, I)                                                     (1)
    logsnr(t) = log alpha(t)^2 / sigma(t)^2,  which falls with t                                            (2)

A T-step model (DDPM) lives on the grid t = i/T, i = 1..T, and is given by its betas:

    alphas_cumprod_i = prod_{j <= i} (1 - beta_j) = alpha(i/T)^2,   sigma^2 = 1 - alpha^2                   (3)

    linear      beta_i from beta_start to beta_end in equal steps                               [1]
    quadratic   sqrt(beta_i) from sqrt(beta_start) to sqrt(beta_end) in equal steps             [2]
    cosine      alphas_cumprod_i = f(i)/f(0), f(i) = cos^2((i/T + s)/(1 + s) pi/2), beta <= 0.999   [3]
    sigmoid     beta_i = sigmoid(linspace(-6, 6)) (beta_end - beta_start) + beta_start          [4]

Betas are meant for 1,000 steps; for another T they are scaled by 1000/T, so that the end stays as noisy.  Between
grid points log alphas_cumprod is interpolated linearly (alpha itself where beta = 1), so every discrete schedule is
also a continuous one.  The closed continuous forms are `linear_continuous` (beta(t) rises linearly) and
`cosine_continuous`; `rectified` is the straight path alpha = 1 - t, sigma = t [5]; `edm` is alpha = 1,
sigma = t sigma_max [6].

Everything here is computed and returned in float64, since what follows cancels; x keeps its own dtype.

[1] J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239
[2] the betas "quad" of [1]'s code; J. Song, C. Meng, S. Ermon, arXiv:2010.02502
[3] A. Nichol, P. Dhariwal, "Improved Denoising Diffusion Probabilistic Models", arXiv:2102.09672
[4] M. Xu et al., "GeoDiff", arXiv:2203.02923
[5] X. Liu, C. Gong, Q. Liu, "Flow Straight and Fast", arXiv:2209.03003
[6] T. Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv:2206.00364
[7] S. Lin, B. Liu, J. Li, X. Yang, "Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv:2305.08891
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from sfumato.options import above_zero, split, unknown, whole

SNAP = 2.0**-22  # a time this near to a step of the T-step grid is that step: float32 has at most 2^-24 between times


def _double(t: Tensor | float) -> Tensor:
    return torch.as_tensor(t).to(torch.float64)


class Schedule(abc.ABC):
    """alpha(t) and sigma(t) for t in [0, 1] of shape (B,), in float64; logsnr and derivatives follow from them.

    ``spec`` is what `from_spec` reads back: {"name": a row of SCHEDULES, option: value, ...}.
    ``steps`` is T on a T-step schedule and None on a continuous one.  The prior of x_1 is N(0, prior_std^2 I).
    """

    name: str
    steps: int | None = None
    prior_std: float = 1.0

    def __post_init__(self) -> None:
        for option, given in asdict(self).items():  # type: ignore[call-overload]
            above_zero(f"{option} of schedule {self.name}", given)

    @property
    def spec(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]

    @property
    def path(self) -> Schedule:
        """The schedule with one alpha and sigma a time: itself, but where they differ from value to value of x."""
        return self

    @abc.abstractmethod
    def alpha(self, t: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def sigma(self, t: Tensor) -> Tensor: ...

    def logsnr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2) (2): +inf where sigma = 0, -inf where alpha = 0."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def time_of_logsnr(self, logsnr: Tensor | float) -> Tensor:
        """The t in [0, 1] at which logsnr(t) is nearest to the given, float64, by bisection to 2^-64."""
        wanted = _double(logsnr)
        low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
        for _ in range(64):
            middle = (low + high) / 2
            above = self.logsnr(middle) > wanted
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return high

    def derivative(self, of: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
        """d of(t) / dt for one of this schedule's own functions, exactly: J^T v is linear in v, its derivative J 1."""
        with torch.inference_mode(False), torch.enable_grad():
            t = _double(t).detach().clone().requires_grad_()
            value = of(t)
            if not value.requires_grad:  # a constant
                return torch.zeros_like(value)
            v = torch.ones_like(value, requires_grad=True)
            (pulled,) = torch.autograd.grad(value, t, v, create_graph=True)
            return torch.autograd.grad(pulled, v, torch.ones_like(t))[0]

    def dalpha(self, t: Tensor) -> Tensor:
        return self.derivative(self.alpha, t)

    def dsigma(self, t: Tensor) -> Tensor:
        return self.derivative(self.sigma, t)

    def dlogsnr(self, t: Tensor) -> Tensor:
        return self.derivative(self.logsnr, t)


class VariancePreserving(Schedule):
    """alpha^2 + sigma^2 = 1, given by log alpha^2, so that neither end cancels."""

    @abc.abstractmethod
    def log_alpha_squared(self, t: Tensor) -> Tensor: ...

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(0.5 * self.log_alpha_squared(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(self.log_alpha_squared(t)))


@dataclass(frozen=True, eq=False)
class Discrete(VariancePreserving):
    """A T-step schedule (3), from betas of shape (T,) in (0, 1); made by the functions below."""

    betas: Tensor
    name: str
    options: Mapping[str, Any]
    log_alphas_cumprod: Tensor = field(init=False, repr=False)  # (T + 1,), 0 at i = 0

    def __post_init__(self) -> None:
        betas = _double(self.betas)
        small = (betas > 0) & (betas < 1)
        small[-1:] |= (betas[-1:] == 1) & (self.name == "zero_terminal")
        if betas.ndim != 1 or len(betas) == 0 or not bool(small.all()):
            span = f"values from {betas.min():.4g} to {betas.max():.4g}" if betas.numel() else "nothing"
            raise ValueError(
                f"betas must be numbers in (0, 1), got {span} for {self.name!r} with {len(betas)} steps; "
                "betas are scaled by 1000/steps, so take more steps, a smaller beta_end, or 'cosine'"
            )
        cumulative = torch.cumsum(torch.log1p(-betas), 0)
        object.__setattr__(self, "betas", betas)
        object.__setattr__(self, "log_alphas_cumprod", torch.cat([betas.new_zeros(1), cumulative]))

    @property
    def spec(self) -> dict[str, Any]:
        return {"name": self.name, **self.options}

    @property
    def steps(self) -> int:  # type: ignore[override]
        return len(self.betas)

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha-bar_i for i = 1..T, shape (T,)."""
        return self.log_alphas_cumprod[1:].exp()

    def position(self, t: Tensor) -> Tensor:
        """t T, exactly i at a step i/T of the grid, of whatever precision t is."""
        i = _double(t) * self.steps
        off = (i.round() - i).detach()
        return torch.where(off.abs() < SNAP * self.steps, i + off, i)

    def time_of_logsnr(self, logsnr: Tensor | float) -> Tensor:
        """As every schedule's, by looking up -log alpha^2 = softplus(-logsnr) in the table."""
        wanted, table = torch.nn.functional.softplus(-_double(logsnr), threshold=100), -self.log_alphas_cumprod
        i = torch.searchsorted(table, wanted).clamp(1, self.steps)
        off, step = wanted - table[i - 1], table[i] - table[i - 1]
        u = torch.where(step.isinf(), -torch.expm1(-off / 2), off / step)
        return (i - 1 + u.clamp(0, 1)) / self.steps

    def _parts(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """l and r with alpha = exp(l/2) r: r falls from 1 to 0 in a last step of beta = 1 and is 1 elsewhere."""
        i = self.position(t)
        low = i.detach().floor().clamp(0, self.steps - 1)
        table = self.log_alphas_cumprod.to(i.device)
        left, right, u = table[low.long()], table[low.long() + 1], i - low
        to_zero = right.isinf()
        return left + u * torch.where(to_zero, 0.0, right - left), 1 - u * to_zero

    def log_alpha_squared(self, t: Tensor) -> Tensor:
        log, rest = self._parts(t)
        return log + 2 * rest.log()

    def alpha(self, t: Tensor) -> Tensor:
        log, rest = self._parts(t)
        return torch.exp(0.5 * log) * rest

    def sigma(self, t: Tensor) -> Tensor:
        log, rest = self._parts(t)
        return torch.sqrt(-torch.expm1(log) + log.exp() * (1 - rest.square()))


def _ramp(steps: int, first: float, last: float) -> Tensor:
    """`steps` equal steps from first to last; one step alone is the last."""
    start = first if whole("steps of a schedule", steps) > 1 else last
    return torch.linspace(start, last, steps, dtype=torch.float64)


def _named(name: str, betas: Tensor, **options: float) -> Discrete:
    return Discrete(betas, name, {"steps": len(betas), **options})


def linear(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Discrete:
    """beta_i linear in i [1]."""
    betas = _ramp(steps, beta_start, beta_end) * (1000 / steps)
    return _named("linear", betas, beta_start=beta_start, beta_end=beta_end)


def quadratic(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Discrete:
    """sqrt(beta_i) linear in i [2]."""
    betas = _ramp(steps, math.sqrt(beta_start), math.sqrt(beta_end)).square() * (1000 / steps)
    return _named("quadratic", betas, beta_start=beta_start, beta_end=beta_end)


def sigmoid(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Discrete:
    """beta_i = sigmoid(linspace(-6, 6, T)) (beta_end - beta_start) + beta_start [4]."""
    curve = torch.sigmoid(_ramp(steps, -6.0, 6.0))
    betas = (curve * (beta_end - beta_start) + beta_start) * (1000 / steps)
    return _named("sigmoid", betas, beta_start=beta_start, beta_end=beta_end)


def cosine(steps: int = 1000, s: float = 0.008) -> Discrete:
    """alphas_cumprod_i = f(i)/f(0), f(i) = cos^2 u_i, u_i = (i/T + s)/(1 + s) pi/2, with beta_i capped at 0.999 [3].

    beta_i = 1 - sin^2 v_i / sin^2 v_{i-1} = sin(v_{i-1} - v_i) sin(v_{i-1} + v_i) / sin^2 v_{i-1}, v_i = pi/2 - u_i,
    which does not cancel.
    """
    v = torch.arange(whole("steps of a schedule", steps), -1, -1, dtype=torch.float64) / steps / (1 + s) * (math.pi / 2)
    betas = torch.sin(v[:-1] - v[1:]) * torch.sin(v[:-1] + v[1:]) / torch.sin(v[:-1]) ** 2
    return _named("cosine", betas.clamp(max=0.999), s=s)


def zero_terminal(of: str = "linear", steps: int = 1000) -> Discrete:
    """Another T-step schedule, its alpha shifted and scaled so that alpha_T = 0 and alpha_1 stays [7]; beta_T = 1."""
    inner = from_spec({"name": of, "steps": steps}) if of != "zero_terminal" else None
    if not isinstance(inner, Discrete):
        raise ValueError(f"zero_terminal is made of a T-step schedule such as linear or cosine; got of={of!r}")
    alpha = inner.alphas_cumprod.sqrt()
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1]) if steps > 1 else torch.zeros_like(alpha)
    betas = 1 - (alpha / torch.cat([alpha.new_ones(1), alpha[:-1]])).square()
    return Discrete(betas, "zero_terminal", {"of": of, "steps": steps})


def from_betas(betas: Sequence[float] | Tensor) -> Discrete:
    """The T-step schedule of any betas in (0, 1), taken as they are."""
    betas = torch.as_tensor(betas, dtype=torch.float64)
    return Discrete(betas, "from_betas", {"betas": betas.tolist()})


@dataclass(frozen=True)
class LinearContinuous(VariancePreserving):
    """beta(t) = beta_min + t (beta_max - beta_min) per unit of time; log alpha(t) = -1/2 int_0^t beta."""

    name = "linear_continuous"
    beta_min: float = 0.1
    beta_max: float = 20.0

    def log_alpha_squared(self, t: Tensor) -> Tensor:
        t = _double(t)
        return -t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))


@dataclass(frozen=True)
class CosineContinuous(Schedule):
    """alpha(t) = cos(a + b)/cos b, a = t/(1 + s) pi/2, b = s/(1 + s) pi/2; no cap, so alpha(1) = 0.

    cos(a + b) = sin((1 - t)/(1 + s) pi/2) and cos^2 b - cos^2(a + b) = sin a sin(a + 2b), so neither end cancels.
    """

    name = "cosine_continuous"
    s: float = 0.008

    def alpha(self, t: Tensor) -> Tensor:
        quarter = math.pi / 2 / (1 + self.s)
        return torch.sin((1 - _double(t)) * quarter) / math.cos(self.s * quarter)

    def sigma(self, t: Tensor) -> Tensor:
        quarter = math.pi / 2 / (1 + self.s)
        a, b = _double(t) * quarter, self.s * quarter
        return torch.sqrt(torch.sin(a) * torch.sin(a + 2 * b)) / math.cos(b)


@dataclass(frozen=True)
class Rectified(Schedule):
    """The straight path: alpha = 1 - t, sigma = t [5]."""

    name = "rectified"

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - _double(t)

    def sigma(self, t: Tensor) -> Tensor:
        return _double(t)

    def dalpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(_double(t))

    def dsigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(_double(t))


@dataclass(frozen=True)
class EDM(Schedule):
    """Variance exploding: alpha = 1, sigma = t sigma_max [6]; the prior is N(0, sigma_max^2 I)."""

    name = "edm"
    sigma_max: float = 80.0

    @property
    def prior_std(self) -> float:  # type: ignore[override]
        return self.sigma_max

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(_double(t))

    def sigma(self, t: Tensor) -> Tensor:
        return _double(t) * self.sigma_max


linear_continuous, cosine_continuous, rectified, edm = LinearContinuous, CosineContinuous, Rectified, EDM

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear": linear,
    "quadratic": quadratic,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "zero_terminal": zero_terminal,
    "from_betas": from_betas,
    "linear_continuous": linear_continuous,
    "cosine_continuous": cosine_continuous,
    "rectified": rectified,
    "edm": edm,
}


def from_spec(spec: str | Mapping[str, Any], table: Mapping[str, Callable[..., Schedule]] = SCHEDULES) -> Schedule:
    """A schedule from its text ("cosine:steps=100") or from the ``spec`` another one gave; table may hold more rows."""
    name, options = split(spec) if isinstance(spec, str) else (spec["name"], dict(spec))
    options.pop("name", None)
    if name not in table:
        raise unknown("schedule", name, table)
    try:
        return table[name](**options)
    except TypeError as error:
        raise ValueError(f"schedule {name!r} with options {options}: {error}") from error
