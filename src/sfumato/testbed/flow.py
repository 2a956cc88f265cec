"""Where the probability-flow ODE of a mixture leads, by scipy and by none of our own solvers.

With r = sqrt(alpha^2 + sigma^2), alpha = r cos(phi), sigma = r sin(phi) and z = x/r, the ODE is the same for every
schedule and regular from data (phi = 0) to noise (phi = pi/2):

    dz/dphi = -sin(phi) E[x_0 | z] + cos(phi) E[eps | z]                                                   (1)

It is solved by Dormand and Prince's eighth-order method (DOP853) to a relative tolerance of 1e-12.

E. Hairer, S. Norsett, G. Wanner, "Solving Ordinary Differential Equations I" (1993), sec. II.5
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sfumato.schedules import Schedule
from sfumato.testbed.mixture import GaussianMixture


def flow(mixture: GaussianMixture, schedule: Schedule, x: Tensor, start: float, end: float) -> Tensor:
    """x (B, D) at time `start`, carried along the ODE to time `end`, either way; (B, D) float64."""
    from scipy.integrate import solve_ivp

    ends = torch.tensor([start, end], dtype=torch.float64)
    alpha, sigma = schedule.alpha(ends), schedule.sigma(ends)
    r, phi = torch.hypot(alpha, sigma), torch.atan2(sigma, alpha)

    def slope(angle: float, z: np.ndarray) -> np.ndarray:
        points = torch.from_numpy(z.reshape(-1, mixture.dimension))
        x0, eps = mixture.expectations(points, math.cos(angle), math.sin(angle))
        return (math.cos(angle) * eps - math.sin(angle) * x0).numpy().ravel()

    z = (x.double() / r[0]).numpy().ravel()
    solved = solve_ivp(slope, phi.tolist(), z, method="DOP853", rtol=1e-12, atol=1e-13)
    return r[1] * torch.from_numpy(solved.y[:, -1].reshape(x.shape))
