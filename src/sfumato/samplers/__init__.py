"""Samplers walk from x_1 to x_0, asking the Denoiser on their way.

SAMPLERS is the whole table: a new sampler is one generator in a file of its family and one row here; its help text,
its tests and its declared order follow from the row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from sfumato.denoiser import Cond, Denoiser, Prediction
from sfumato.samplers.ancestral import ancestral
from sfumato.samplers.ddim import ddim, ddim_sigma_hat
from sfumato.samplers.loop import Query, Row, Sampler, grid_of, named, noise_of, walk

__all__ = ["SAMPLERS", "Query", "Row", "Sampler", "ancestral", "ddim", "ddim_sigma_hat", "sample", "trajectory"]

SAMPLERS: dict[str, Row] = {
    "ancestral": Row(
        ancestral, order=1, calls=1, stochastic=True, summary="DDPM's reverse chain (variance=small|large|...)"
    ),
    "ddim": Row(ddim, order=1, calls=1, stochastic=False, summary="DDIM, deterministic at eta=0, ancestral at eta=1"),
    "ddim-sigma-hat": Row(
        ddim_sigma_hat,
        order=1,
        calls=1,
        stochastic=True,
        summary="DDIM paper's sigma-hat row: eta=1 with the larger noise",
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
) -> Iterator[tuple[Tensor, Tensor, Prediction | None]]:
    """`sample`, yielding (t, x_t, Prediction) at every call of the Denoiser and at last (0, x_0, None)."""
    times = grid_of(grid, denoiser.schedule, steps)
    return walk(denoiser, x_T, named(sampler, SAMPLERS), times, noise_of(seeds, x_T), cond)


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
    cond: tensors with leading dimension B.  Raises ValueError for an unknown name and for steps out of range.
    """
    x = x_T
    for _, state, _ in trajectory(denoiser, x_T, sampler, steps, grid, seeds, cond):
        x = state
    return x
