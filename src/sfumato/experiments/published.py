"""Published figures, and how the shape of a measured table is compared with them.

Figures of other data, features and networks are no values to be met.  Compared is what does not depend on the unit:
the order of the cells, whether a row falls, and each cell's ratio to the first row of its column.

J. Song et al., "Denoising Diffusion Implicit Models", arXiv:2010.02502
Q. Zhang, Y. Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", arXiv:2204.13902
J. Ho, T. Salimans, "Classifier-Free Diffusion Guidance", arXiv:2207.12598
P. Dhariwal, A. Nichol, "Diffusion Models Beat GANs on Image Synthesis", arXiv:2105.05233
W. Zhao et al., "UniPC: A Unified Predictor-Corrector Framework", arXiv:2302.04867
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Cells = Mapping[tuple[str, int], float]  # (row, column) -> a score; columns are steps or evaluations

# arXiv:2010.02502, table 1: FID of 50,000 samples of CIFAR-10 (32x32), by eta and S
DDIM_STEPS = (10, 20, 50, 100, 1000)
DDIM: dict[str, tuple[float, ...]] = {
    "0": (13.36, 6.84, 4.67, 4.16, 4.04),
    "0.2": (14.04, 7.11, 4.77, 4.25, 4.09),
    "0.5": (16.66, 8.35, 5.25, 4.46, 4.29),
    "1": (41.07, 18.36, 8.01, 5.78, 4.73),
    "sigma-hat": (367.43, 133.37, 32.72, 9.99, 3.17),
}
DDIM_CELLS: Cells = {(eta, s): x for eta, row in DDIM.items() for s, x in zip(DDIM_STEPS, row, strict=True)}

# FID of CIFAR-10 by sampler and evaluations: of DDIM's table 1 (eta = 0; eta = 1 is ancestral), of the abstracts of
# arXiv:2204.13902 and of its version at ICLR 2023 (the best of its variants), of the abstract of arXiv:2302.04867.
# Three networks, three grids.
SOLVER_CELLS: Cells = {
    ("ddim", 10): 13.36,
    ("ddim", 20): 6.84,
    ("ancestral", 10): 41.07,
    ("ancestral", 20): 18.36,
    ("deis-3", 10): 4.17,
    ("deis-3", 15): 3.37,
    ("deis-3", 20): 2.86,
    ("unipc-3", 10): 3.87,
}

# w_seed -> (FID, Inception Score): arXiv:2207.12598, table 1, ImageNet 64x64, 50,000 samples, p_uncond = 0.1
CFG: dict[float, tuple[float, float]] = {
    0.0: (1.80, 53.71),
    0.1: (1.55, 66.11),
    0.2: (2.04, 78.91),
    0.3: (3.03, 92.8),
    0.4: (4.30, 106.2),
    0.5: (5.74, 119.3),
    0.6: (7.19, 131.1),
    0.7: (8.62, 141.8),
    0.8: (10.08, 151.6),
    0.9: (11.41, 161.0),
    1.0: (12.60, 170.1),
    2.0: (21.03, 225.5),
    3.0: (24.83, 250.4),
    4.0: (26.22, 260.2),
}


@dataclass(frozen=True)
class Row:
    """arXiv:2105.05233, table 4: ImageNet 256x256, 50,000 samples."""

    fid: float
    sfid: float
    inception: float
    precision: float
    recall: float


# (conditional?, scale; 0 without guidance)
ADM = {
    (False, 0.0): Row(26.21, 6.35, 39.70, 0.61, 0.63),
    (False, 1.0): Row(33.03, 6.99, 32.92, 0.56, 0.65),
    (False, 10.0): Row(12.00, 10.40, 95.41, 0.76, 0.44),
    (True, 0.0): Row(10.94, 6.02, 100.98, 0.69, 0.63),
    (True, 1.0): Row(4.59, 5.25, 186.70, 0.82, 0.52),
    (True, 10.0): Row(9.11, 10.93, 283.92, 0.88, 0.32),
}


def column(cells: Cells, of: int) -> dict[str, float]:
    """A column's cells by row."""
    return {row: x for (row, c), x in cells.items() if c == of}


def columns(cells: Cells) -> list[int]:
    return sorted({c for _, c in cells})


def ratios(cells: Cells, to: str) -> dict[tuple[str, int], float]:
    """Each cell's ratio to row `to` of its column."""
    return {(row, c): x / cells[to, c] for (row, c), x in cells.items()}


def rank_correlation(a: Cells, b: Cells) -> float:
    """Spearman's, over the cells that both have; nan where one is constant there, or has fewer than two."""
    from scipy.stats import rankdata

    both = [cell for cell in a if cell in b]
    x, y = (rankdata([cells[cell] for cell in both]) for cells in (a, b))
    return float(np.corrcoef(x, y)[0, 1]) if len(both) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0 else math.nan


def apart(cells: Cells, errors: Cells, a: tuple[str, int], b: tuple[str, int]) -> bool:
    """Whether two cells differ by more than chance: twice the standard error of their difference."""
    return abs(cells[a] - cells[b]) > 2 * math.hypot(errors.get(a, 0), errors.get(b, 0))


def rises(cells: Cells, errors: Cells, row: str) -> list[tuple[int, int]]:
    """The neighbouring columns between which a row grows by more than chance; what has no error is exact."""
    known = sorted(c for name, c in cells if name == row)
    pairs = itertools.pairwise(known)
    return [(a, b) for a, b in pairs if cells[row, b] > cells[row, a] and apart(cells, errors, (row, a), (row, b))]


def strangest(ours: Cells, theirs: Cells, of: int) -> str | None:
    """The row whose cell in a column differs most from the other table's, in logarithms; None if none is in both."""
    a, b = column(ours, of), column(theirs, of)
    return max((row for row in a if row in b), key=lambda row: abs(math.log(a[row] / b[row])), default=None)
