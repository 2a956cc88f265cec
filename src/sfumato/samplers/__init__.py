"""Samplers walk from x_1 to x_0, asking the Denoiser on their way.

SAMPLERS is the whole table: a new sampler is one generator in a file of its family and one row here; its help text,
its tests and the measurement of its declared order follow from the row.  What is refused stands in `refused`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor

from sfumato.denoiser import Cond, Denoiser, Prediction
from sfumato.options import split
from sfumato.samplers.ancestral import ancestral
from sfumato.samplers.cold import cold
from sfumato.samplers.ddim import ddim, ddim_sigma_hat
from sfumato.samplers.deis import deis
from sfumato.samplers.dpm_solver import dpmpp_2m, dpmpp_3m
from sfumato.samplers.dpm_solver_sde import dpmpp_2m_sde
from sfumato.samplers.edm import euler, heun
from sfumato.samplers.langevin import langevin
from sfumato.samplers.latent import encoded, lerp, slerp
from sfumato.samplers.loop import (
    Noise,
    Query,
    Row,
    Sampler,
    floating,
    grid_of,
    named,
    no_noise,
    noise_of,
    together,
    walk,
)
from sfumato.samplers.meanflow import meanflow
from sfumato.samplers.pndm import plms
from sfumato.samplers.refused import adds_noise, check
from sfumato.samplers.restart import restart
from sfumato.samplers.runge_kutta import runge_kutta
from sfumato.samplers.sde import euler_maruyama, predictor_corrector
from sfumato.samplers.unipc import unipc

__all__ = [
    "SAMPLERS",
    "Query",
    "Row",
    "Sampler",
    "adds_noise",
    "ancestral",
    "cold",
    "ddim",
    "ddim_sigma_hat",
    "deis",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m",
    "encode",
    "euler",
    "euler_maruyama",
    "heun",
    "langevin",
    "lerp",
    "meanflow",
    "plms",
    "predictor_corrector",
    "restart",
    "runge_kutta",
    "sample",
    "slerp",
    "together",
    "trajectory",
    "unipc",
]


def _on_any(order: float) -> dict[str, float]:
    return dict.fromkeys(("t", "logsnr", "ratio"), order)


def _weak(order: float) -> dict[str, float]:
    """Not on equal steps in sigma/alpha, which leave the few steps near the data too long to show an order."""
    return dict.fromkeys(("t", "logsnr"), order)


SAMPLERS: dict[str, Row] = {
    "ancestral": Row(ancestral, _weak(1), 1, True, "DDPM's reverse chain (variance=small|large|...)"),
    "ddim": Row(ddim, _on_any(1), 1, False, "DDIM, deterministic at eta=0, ancestral at eta=1"),
    "ddim-sigma-hat": Row(ddim_sigma_hat, _weak(1), 1, True, "DDIM paper's sigma-hat row: eta=1, the larger noise"),
    "euler": Row(euler, _on_any(1), 1, False, "Euler of EDM, which is DDIM"),
    "heun": Row(heun, _on_any(2), 2, False, "Heun of EDM (churn=... makes it stochastic)", lambda steps: steps - 1),
    "heun-churn": Row(
        partial(heun, churn=5.0), _weak(2), 2, True, "Heun of EDM with its stochastic churn", lambda steps: steps - 1
    ),
    "dpmpp-2m": Row(dpmpp_2m, _on_any(2), 1, False, "DPM-Solver++ 2M"),
    "dpmpp-3m": Row(
        dpmpp_3m, _on_any(3), 1, False, "DPM-Solver++ 3M, started by a trapezoid", lambda steps: min(1, steps - 1)
    ),
    "deis-2": Row(partial(deis, order=2), _on_any(2), 1, False, "DEIS, exponential Adams-Bashforth of two nodes"),
    "deis-3": Row(partial(deis, order=3), _on_any(3), 1, False, "DEIS of three nodes", lambda steps: min(1, steps - 1)),
    "unipc-2": Row(partial(unipc, order=2), _on_any(2), 1, False, "UniPC, predictor and corrector of order 2"),
    "unipc-3": Row(partial(unipc, order=3), _on_any(3), 1, False, "UniPC, predictor and corrector of order 3"),
    "dpmpp-2m-sde": Row(dpmpp_2m_sde, _weak(2), 1, True, "DPM-Solver++ 2M on the reverse SDE"),
    "euler-maruyama": Row(euler_maruyama, _weak(1), 1, True, "Euler-Maruyama on the reverse SDE"),
    "predictor-corrector": Row(
        predictor_corrector,
        _weak(1),
        2,
        True,
        "a reverse step, then Langevin steps at its end (snr, corrections)",
        lambda steps: steps - 1,
    ),
    "langevin": Row(
        langevin,
        _weak(0.5),
        5,
        True,
        "annealed Langevin dynamics alone, denoised at the end",
        lambda steps: 4 * steps + 1,
    ),
    "restart": Row(restart, _weak(2), 2, True, "Heun, and back up by noise and down again (restarts, low, high)", None),
    "rk45": Row(runge_kutta, {}, None, False, "adaptive Runge-Kutta 4(5), tolerance=1e-5; it chooses its own steps"),
    "cold": Row(cold, {}, 1, False, "cold diffusion's restoration (schedule cold only)"),
    "meanflow": Row(meanflow, _on_any(1), 1, False, "MeanFlow: average velocities, one or two steps"),
    "plms": Row(
        plms,
        {"t": 2, "logsnr": 2, "ratio": 4},
        1,
        False,
        "PNDM's linear multistep, started by its Runge-Kutta",
        lambda steps: 3 * min(3, steps - 1),
    ),
}


def trajectory(
    denoiser: Denoiser,
    x_T: Tensor,
    sampler: str | Sampler = "ddim",
    steps: int = 50,
    grid: str | Tensor | None = None,
    seeds: Sequence[int] | Tensor | None = None,
    cond: Cond | None = None,
    noise: Noise | None = None,
) -> Iterator[tuple[Tensor, Tensor, Prediction | None]]:
    """`sample`, yielding (t, x_t, Prediction) at every call of the Denoiser and at last (s, x_s, None), the grid's end.

    noise: step -> N(0, I) of x's shape, instead of that of the seeds.
    """
    times = grid_of(grid, denoiser.schedule, steps)
    check(sampler, SAMPLERS, denoiser.schedule, times)
    drawn = noise or noise_of(seeds, x_T)
    return walk(denoiser, floating(x_T), named(sampler, SAMPLERS), times, drawn, cond)


def sample(
    denoiser: Denoiser,
    x_T: Tensor,
    sampler: str | Sampler = "ddim",
    steps: int = 50,
    grid: str | Tensor | None = None,
    seeds: Sequence[int] | Tensor | None = None,
    cond: Cond | None = None,
) -> Tensor:
    """x_0 (B, ...) from x_T (B, ...), a draw of the prior N(0, sigma(1)^2 I).

    sampler: a row of SAMPLERS, with options ("ddim:eta=0.5"), or any callable of a sampler's shape.
    grid: a row of grids.GRIDS, or the visited times themselves.  seeds: one integer a row, for the noise on the way.
    cond: tensors with leading dimension B.  Raises ValueError for an unknown name, for steps out of range and for what
    is refused.
    """
    x = x_T
    for _, state, _ in trajectory(denoiser, x_T, sampler, steps, grid, seeds, cond):
        x = state
    return x


def encode(
    denoiser: Denoiser,
    x_0: Tensor,
    sampler: str | Sampler = "ddim",
    steps: int = 50,
    grid: str | Tensor | None = None,
    cond: Cond | None = None,
) -> Tensor:
    """The latent x_1 (B, ...) from which `sample` with the same arguments leads back to about x_0 (B, ...).

    The grid is walked upwards by a deterministic sampler; see `samplers.latent` for the first step.
    """
    run, times = named(sampler, SAMPLERS), grid_of(grid, denoiser.schedule, steps).flip(0)
    check(sampler, SAMPLERS, denoiser.schedule, times)
    whole = isinstance(sampler, str) and SAMPLERS[split(sampler)[0]].calls is None
    return encoded(denoiser, floating(x_0), run, times, no_noise, cond, whole)
