"""What classifier guidance samples on Gaussians, exactly, and how far it is from p(x) p(y|x)^s.

    p(x) = N(0, 1),   p(x | y) = N(1, 1/4),   p(y | x_t) by Bayes                                           (1)

For each s: the end of the guided ODE and of the guided SDE as steps grow small (`testbed.guided`), that of DDIM by
Algorithm 2 and of ancestral sampling by Algorithm 1 in so many steps, which are affine maps and so known without a
draw (`testbed.moments`), and the product, which is Gaussian too.  Between them stands the Wasserstein-2 distance,

    d^2 = (m - m')^2 + (std - std')^2,                                                                      (2)

the root of what a Frechet distance is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato import schedules
from sfumato.denoiser import Denoiser
from sfumato.guidance import classifier_eps, classifier_mean
from sfumato.guidance.guided import Guided
from sfumato.samplers import trajectory
from sfumato.testbed import GaussianMixture
from sfumato.testbed.guided import gaussian_classifier, ode_moments, product_moments, sde_moments
from sfumato.testbed.moments import Moments, pushed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCHEDULE = "linear_continuous"
GRID = "logsnr"
STD = 0.5  # of p(x | y)


def _gaussian(mean: float, std: float) -> GaussianMixture:
    one = torch.ones(1, 1, dtype=torch.float64)
    return GaussianMixture(torch.ones(1), mean * one, std**2 * one[None])


NULL, GIVEN = _gaussian(0.0, 1.0), _gaussian(1.0, STD)


@dataclass(frozen=True)
class Line:
    """(mean, standard deviation) at a scale: the ODE, the SDE, DDIM, ancestral sampling, the product."""

    scale: float
    ode: tuple[float, float]
    sde: tuple[float, float]
    ddim: tuple[float, float]
    ancestral: tuple[float, float]
    product: tuple[float, float]


def lines(scales: Sequence[float], steps: int) -> list[Line]:
    """Everything at each scale; DDIM and ancestral sampling in so many steps."""
    found = []
    for s in scales:
        limits = (of(NULL, GIVEN, s) for of in (ode_moments, sde_moments))
        walked = (chain("ddim", classifier_eps, s, steps), chain("ancestral", classifier_mean, s, steps))
        found.append(Line(s, *(_pair(m) for m in (*limits, *walked, product_moments(NULL, GIVEN, s)))))
    return found


def chain(sampler: str, algorithm: Callable[..., Guided], scale: float, steps: int) -> Moments:
    """The moments of a guided sampler's end, from N(0, 1)."""
    schedule = schedules.from_spec(SCHEDULE)
    denoiser: Denoiser = algorithm(NULL.denoiser(schedule), gaussian_classifier(NULL, GIVEN, schedule))

    def run(x: Tensor, noise: Callable[[int], Tensor]) -> Tensor:
        cond = {"label": torch.ones(len(x), dtype=torch.long), "classifier": torch.full((len(x),), scale).to(x)}
        *_, (_, end, _) = trajectory(denoiser, x, sampler, steps, GRID, cond=cond, noise=noise)
        return end

    start = Moments(torch.zeros(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    return pushed(run, start, steps)


def _pair(moments: Moments) -> tuple[float, float]:
    return float(moments.mean), math.sqrt(float(moments.covariance))


def apart(a: tuple[float, float], b: tuple[float, float]) -> float:
    """(2)."""
    return math.dist(a, b)


def table(found: Sequence[Line], steps: int) -> str:
    """The lines as Markdown: mean ± standard deviation, and the distances from the product."""
    heads = ["s", "ODE", f"DDIM, {steps} steps", "SDE", f"ancestral, {steps} steps", "p(x) p(y\\|x)^s"]
    heads += ["ODE to product", "SDE to product"]
    rows = [heads, ["---"] * len(heads)]
    for one in found:
        told = [f"{m:.3f} ± {std:.3f}" for m, std in (one.ode, one.ddim, one.sde, one.ancestral, one.product)]
        distances = [f"{apart(end, one.product):.3f}" for end in (one.ode, one.sde)]
        rows.append([f"{one.scale:g}", *told, *distances])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def rows(found: Sequence[Line], steps: int) -> list[list[Any]]:
    """[what, scale, steps, mean, standard deviation, distance from the product]"""
    named = {"ode": None, "sde": None, "ddim": steps, "ancestral": steps, "product": None}
    return [
        [f"Gaussians: {name}", one.scale, walked, *(end := getattr(one, name)), apart(end, one.product)]
        for one in found
        for name, walked in named.items()
    ]


def words(found: Sequence[Line], steps: int) -> str:
    """What the lines say, with their table."""
    alike = [f"{one.scale:g}" for one in found if max(_distances(one)) < 1e-3 * STD]
    worst = max(found, key=lambda one: max(_distances(one)))
    ode, sde = _distances(worst)
    misses = [max(apart(one.ddim, one.ode), apart(one.ancestral, one.sde)) / STD for one in found]
    narrow = [one for one in found if one.scale > 1]
    verdict = (
        "too narrow at every s above 1: under noise it follows the score of a density that is narrower than the noised "
        "product"
        if all(max(one.ode[1], one.sde[1]) < one.product[1] for one in narrow)
        else "of another width"
    )
    return (
        f"**On Gaussians**, p(x) = N(0, 1) and p(x|y) = N(1, {STD**2:g}), mean ± standard deviation:\n\n"
        f"{table(found, steps)}\n\n"
        f"Guidance samples the product p(x) p(y|x)^s at s = {' and '.join(alike)} only. What it samples else is not "
        f"it, and {verdict}. At s = {worst.scale:g} the ODE ends {ode:.2f} from the product and the SDE {sde:.2f}, "
        f"while the product's own standard deviation is {worst.product[1]:.2f}. Samplers of {steps} steps are within "
        f"{100 * max(misses):.1f} % of p(x|y)'s standard deviation from these limits."
    )


def _distances(one: Line) -> tuple[float, float]:
    return apart(one.ode, one.product), apart(one.sde, one.product)


def draw(axis: Axes, found: Sequence[Line]) -> None:
    """Standard deviation by scale."""
    scales = [one.scale for one in found]
    for name, ends, style in (
        ("guided ODE", [one.ode for one in found], "C0-"),
        ("guided SDE", [one.sde for one in found], "C1--"),
        ("DDIM, Algorithm 2", [one.ddim for one in found], "C0o"),
        ("ancestral, Algorithm 1", [one.ancestral for one in found], "C1s"),
        ("p(x) p(y|x)^s", [one.product for one in found], "k:"),
    ):
        axis.plot(scales, [std for _, std in ends], style, markersize=4, linewidth=1, label=name)
    axis.set(title="on Gaussians: how narrow", xlabel="scale s", ylabel="standard deviation", yscale="log")
