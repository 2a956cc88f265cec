"""Restart: go back up in noise by a fresh draw, and down again by the ODE.

The ODE makes small errors but never forgets them; noise forgets errors but needs small steps.  Restart has both.  Down
to t_min by the ODE, then K times

    x_tmax = a x_tmin + sqrt(v) z,   the draw of q(x_tmax | x_tmin) of `gaussian` (2)                       (1)
    x_tmin = ODE(x_tmax, t_max -> t_min)                                                                    (2)

and on down to 0.  (1) keeps the marginals exactly and contracts what is wrong with x; (2) is Heun's method here as in
the paper, so the weak order is its order, 2.

The interval is given in sigma/alpha, which means the same on every schedule; the default is the paper's for text to
image.  Only times of the grid are visited, so t_max and t_min are the ends of the run of steps that meet the interval.
A grid of one step has none, and nothing to repeat.

Y. Xu, M. Deng, X. Cheng et al., "Restart Sampling for Improving Generative Processes", arXiv:2306.14878, Algorithm 1
"""

from __future__ import annotations

from torch import Tensor

from sfumato.gaussian import transition
from sfumato.options import whole
from sfumato.samplers.edm import heun
from sfumato.samplers.loop import Noise, Steps, Walk
from sfumato.schedules import Schedule


def repeated(times: Steps, schedule: Schedule, low: float, high: float) -> Steps:
    """The steps that meet sigma/alpha in (low, high), less the one to s = 0, from where nothing starts again."""

    path = schedule.path

    def meets(t: Tensor, s: Tensor) -> bool:
        above = path.sigma(t) > low * path.alpha(t)
        return bool(above & (path.sigma(s) < high * path.alpha(s)) & (s > 0))

    return [(t, s) for t, s in times if meets(t, s)]


def restart(
    x: Tensor,
    times: Steps,
    schedule: Schedule,
    noise: Noise,
    *,
    restarts: int = 2,
    low: float = 0.1,
    high: float = 2.0,
) -> Walk:
    """(1) and (2) K = restarts times over (low, high) in sigma/alpha; x is x_T (B, ...).

    Calls: those of Heun, 2 S - 1, and 2 more for every repeated step and restart (1 from alpha = 0).
    """
    restarts = whole("option restarts of sampler restart", restarts)
    if not 0 <= low < high:
        raise ValueError(f"restart needs 0 <= low < high, both sigma/alpha; got low={low}, high={high}")
    again = repeated(times, schedule, low, high)
    if not again:
        return (yield from heun(x, times, schedule, noise))
    t_max, t_min = again[0][0], again[-1][1]
    x = yield from heun(x, [(t, s) for t, s in times if s >= t_min], schedule, noise)
    for k in range(restarts):
        mean, std = transition(schedule, x, t_min, t_max)
        x = yield from heun(mean + std * noise(k), again, schedule, noise)
    rest = [(t, s) for t, s in times if s < t_min]
    return (yield from heun(x, rest, schedule, noise)) if rest else x
