"""One Monte-Carlo test: the full ancestral chain of the exact denoiser draws from the mixture itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from sfumato import samplers, schedules
from sfumato.noise import PRIOR, SAMPLER, philox
from sfumato.samplers.loop import named, walk
from sfumato.testbed import GaussianMixture

ROWS, STEPS = 4000, 250


@pytest.mark.slow
def test_ancestral_samples_the_mixture(mixture_2d: GaussianMixture) -> None:
    """KS of five projections, z-tests of five moments: family-wise p > 1e-4 by Bonferroni, with fixed seeds."""
    schedule = schedules.cosine(STEPS)
    times = torch.arange(STEPS, -1, -1, dtype=torch.float64) / STEPS
    x_T = torch.from_numpy(philox(1, PRIOR).standard_normal((ROWS, 2)))
    *_, (_, x, _) = walk(
        mixture_2d.denoiser(schedule),
        x_T,
        named("ancestral:variance=optimal", samplers.SAMPLERS),
        times,
        lambda k: torch.from_numpy(philox(1, SAMPLER, k).standard_normal((ROWS, 2))),
    )
    sample = x.numpy()
    weights, means, covariances = (a.numpy() for a in (mixture_2d.weights, mixture_2d.means, mixture_2d.covariances))
    p_values = []
    for angle in np.linspace(0, np.pi, 5, endpoint=False):
        u = np.array([np.cos(angle), np.sin(angle)])
        centre, spread = means @ u, np.sqrt(np.einsum("i,kij,j->k", u, covariances, u))

        def cdf(y: np.ndarray, centre: np.ndarray = centre, spread: np.ndarray = spread) -> np.ndarray:
            return (weights * stats.norm.cdf((np.asarray(y)[..., None] - centre) / spread)).sum(-1)

        p_values.append(stats.kstest(sample @ u, cdf).pvalue)
    second = np.einsum("k,kij->ij", weights, covariances + np.einsum("ki,kj->kij", means, means))
    for value, exact in [
        (sample[:, 0], weights @ means[:, 0]),
        (sample[:, 1], weights @ means[:, 1]),
        (sample[:, 0] ** 2, second[0, 0]),
        (sample[:, 1] ** 2, second[1, 1]),
        (sample[:, 0] * sample[:, 1], second[0, 1]),
    ]:
        z = (value.mean() - exact) / (value.std() / np.sqrt(ROWS))
        p_values.append(2 * stats.norm.sf(abs(z)))
    assert min(p_values) * len(p_values) > 1e-4, p_values
