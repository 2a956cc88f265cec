"""Exponential moving averages of the weights, of any length, chosen after the training.

The power-function average with exponent gamma is updated at step k = 1, 2, ... by

    ema_k = beta_k ema_{k-1} + (1 - beta_k) w_k,   beta_k = (1 - 1/k)^(gamma + 1)                           (1)

so that after k steps the weights of step j have the share, exactly,

    p_k(j) = (1 - beta_j) (j/k)^(gamma + 1)                                                                (2)

Its length is its standard deviation relative to k: sigma_rel^2 = (gamma + 1)/((gamma + 2)^2 (gamma + 3)).  From the
snapshots of two such averages, those of any other length and any earlier step are combined with the least-squares
solution of  sum_i c_i p_i = p_wanted  over (2).

T. Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", arXiv:2312.02696, sec. 3, app. C
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfumato.checkpoints import native


def gamma(sigma_rel: float) -> float:
    """The exponent of an average whose length is sigma_rel of the training, 0 < sigma_rel < 0.28."""
    if not 0 < sigma_rel < 0.28:
        raise ValueError(
            f"an EMA length is a share of the training in (0, 0.28); got {sigma_rel}; 0.05 to 0.2 are usual"
        )
    roots = np.roots([1, 7, 16 - sigma_rel**-2, 12 - sigma_rel**-2])
    return float(roots[np.isreal(roots)].real.max())


def beta(step: int, sigma_rel: float) -> float:
    """beta_k of (1); 0 at k = 1, so the first weights start the average."""
    return (1 - 1 / step) ** (gamma(sigma_rel) + 1)


def profile(step: int, sigma_rel: float, last: int) -> np.ndarray:
    """p_step(j) of (2) for j = 1..last, float64; 0 beyond step."""
    power = gamma(sigma_rel) + 1
    j = np.arange(1, last + 1, dtype=np.float64)
    return np.where(j <= step, (1 - (1 - 1 / j) ** power) * np.minimum(j / step, 1) ** power, 0.0)


def solve(snapshots: Sequence[tuple[int, float]], step: int, sigma_rel: float) -> tuple[np.ndarray, float]:
    """Shares c_i of the snapshots (step, length) for the average (step, sigma_rel), and the L1 error of its profile."""
    last = max(step, *(at for at, _ in snapshots))
    basis = np.stack([profile(at, length, last) for at, length in snapshots], 1)
    wanted = profile(step, sigma_rel, last)
    scale = 1 / np.sqrt(np.arange(1, last + 1))[:, None]  # early steps have tall, narrow profiles: weigh them alike
    shares = np.linalg.lstsq(basis * scale, wanted * scale[:, 0], rcond=None)[0]
    return shares, float(np.abs(basis @ shares - wanted).sum())


def reconstruct(folder: Path, sigma_rel: float) -> dict[str, Tensor]:
    """The weights averaged over `sigma_rel` of the training, from the snapshots a run kept in `folder`."""
    found = sorted(folder.glob("step-*")) if folder.is_dir() else []
    if not found:
        raise ValueError(
            f"there are no snapshots in {folder}: another EMA length needs a run's folder, not a model alone"
        )
    documents = [native.read_json(path / "state.json") for path in found]
    snapshots = [(d["step"], length) for d in documents for length in d["lengths"]]
    shares, _ = solve(snapshots, max(at for at, _ in snapshots), sigma_rel)
    total: dict[str, Tensor] = {}
    position = 0
    for path, document in zip(found, documents, strict=True):
        tensors, _ = native.read_state(path)
        for length in document["lengths"]:
            prefix = f"{length}/"
            for key, x in tensors.items():
                if key.startswith(prefix):
                    part = x.double() * float(shares[position])
                    total[key.removeprefix(prefix)] = total.get(key.removeprefix(prefix), torch.zeros_like(part)) + part
            position += 1
    return {key: x.float() for key, x in total.items()}
