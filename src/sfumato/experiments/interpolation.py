"""interpolation: two held-out pictures mixed at several t and lambdas.

    x_t = alpha_t a + sigma_t e,   x'_t = alpha_t b + sigma_t e'                 encode both by q(x_t | x_0)
    x_t(lambda) = (1 - lambda) x_t + lambda x'_t                                mix
    x_0(lambda) ~ p(x_0 | x_t(lambda))                                         decode by the reverse chain, from t

with the same noise e' = e, which keeps the noise of the mixture at sigma_t^2, or with two noises, which lowers it to
(lambda^2 + (1 - lambda)^2) sigma_t^2, less than the model expects at t.  At t = 0 it is a mixture of pixels.  A model
with classes is asked without one.  Measured over pairs: the distance to either end, and to the nearest training row.

J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239, section 4.4, figures 8 and 9
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sfumato import gaussian, grids, samplers
from sfumato.experiments import chains, figures
from sfumato.experiments.report import Report, Request, remembered
from sfumato.experiments.trained import Trained, trained
from sfumato.metrics import NearestNeighbour
from sfumato.noise import EPS, normal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("noise", "i", "t", "lambda", "rms_to_first", "rms_to_second", "nearest_training_row")
NOISES = ("same", "two")
TIMES = (0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1)
LAMBDAS = tuple(round(0.1 * k, 1) for k in range(11))

SEE = """\
From top to bottom t grows.  At t = 0 both pictures shine through each other; at small t that ghost is cleaned a little;
in the middle the mixtures are pictures in their own right that change from one end to the other; at t = 1 nothing of
either is left: a new sample, which with the same noise is the same for every lambda.  With two noises the mixtures
near lambda = 1/2 begin with less noise than the model expects.  Mixtures that look like data lie nearer to a training
row than mixtures of pixels do.
"""


@dataclass(frozen=True)
class Size:
    """Pairs of held-out rows (2k, 2k + 1), and the steps of a whole chain, of which t begins with a share t."""

    pairs: int
    steps: int


QUICK, FULL = Size(8, 50), Size(32, 250)


def run(request: Request) -> Report:
    size = QUICK if request.quick else FULL
    subject = trained(request)
    ends, mixed = mixtures(request, subject, size)
    near = NearestNeighbour(subject.training_rows())
    rows = table(subject, ends, mixed, near)
    near.reset()
    near.update(subject.model.codec.decode(ends.flatten(0, 1)).numpy())
    middle = {(row[0], row[2]): row[6] for row in rows if row[3] == 0.5}
    return Report(
        title="Mixing two pictures at t",
        shown=(__doc__ or "").partition("\n\n")[2],
        see=SEE,
        basis=[
            *subject.basis,
            f"{ends.shape[1]} pairs of held-out rows; ancestral sampling, {size.steps} steps from t = 1; label: none",
        ],
        numbers=[
            ("distance to the nearest training row (median): the held-out rows", f"{np.median(near.compute()):.2f}"),
            ("mixtures of pixels, lambda = 1/2", f"{middle['same', 0.0]:.2f}"),
            *(
                (
                    f"mixed at t = {t:g}, lambda = 1/2, {noise} noise{'' if noise == 'same' else 's'}",
                    f"{middle[noise, t]:.2f}",
                )
                for t in (0.25, 0.5, 0.75, 1.0)
                for noise in NOISES
            ),
        ],
        columns=COLUMNS,
        rows=rows,
        figure=_draw(ends, mixed),
    )


def mixtures(request: Request, subject: Trained, size: Size) -> tuple[Tensor, dict[str, Tensor]]:
    """The ends (2, P, C, H, W), and for each of NOISES the decoded mixtures (t, lambda, P, C, H, W), codec units."""
    x, _ = subject.held_out(2 * size.pairs)
    pairs = len(x) // 2
    if not pairs:
        raise ValueError(f"{request.model} holds out {len(x)} row; two are needed to mix; take data with more rows")
    ends = torch.stack([x[0 : 2 * pairs : 2], x[1 : 2 * pairs : 2]])
    mixed = {}
    for noise in NOISES:
        found = []
        for t in TIMES:
            work = partial(_decode, subject, ends, noise, t, size, request.seed)
            part = remembered(request, {**subject.key, **asdict(size)}, f"{noise}-{round(1000 * t):04d}", work)
            found.append(part["x"])
            request.say(f"{noise} noise, t = {t:g}")
        mixed[noise] = torch.stack(found)
    return ends.cpu(), mixed


def _decode(subject: Trained, ends: Tensor, noise: str, t: float, size: Size, seed: int) -> dict[str, Tensor]:
    """All mixtures at one t: (lambda, P, C, H, W)."""
    denoiser = subject.model.guided()
    schedule = denoiser.schedule
    pairs, shape = ends.shape[1], ends.shape[2:]
    seeds = [seed + k for k in range(pairs)]
    eps = torch.stack([normal(seeds, shape, EPS, 1 if noise == "same" else 1 + end) for end in range(2)]).to(ends)
    at = torch.full((2,), t, dtype=torch.float64)
    x_t = gaussian.perturb(schedule, ends, at, eps)
    x = torch.cat([torch.lerp(x_t[0], x_t[1], share) for share in LAMBDAS])
    if t > 0:
        whole = grids.trailing(schedule, min(size.steps, schedule.steps or size.steps))
        times = torch.cat([at[:1], whole[whole < t]])
        x = samplers.sample(denoiser, x, "ancestral", grid=times, seeds=seeds * len(LAMBDAS))
    return {"x": x.cpu().view(len(LAMBDAS), pairs, *shape)}


def table(subject: Trained, ends: Tensor, mixed: dict[str, Tensor], near: NearestNeighbour) -> list[list[Any]]:
    """The CSV's rows; distances to the ends in codec units, to training rows in data units (median over pairs)."""
    schedule, rows = subject.model.denoiser.schedule, []
    for noise, states in mixed.items():
        for t, by_share in zip(TIMES, states, strict=True):
            for share, x in zip(LAMBDAS, by_share, strict=True):
                near.reset()
                near.update(subject.model.codec.decode(x).numpy())
                away = [(x - end).square().mean().sqrt().item() for end in ends]
                nearest = float(np.median(near.compute()))
                rows.append([noise, chains.index(schedule, t), float(t), share, *away, nearest])
    return rows


def _draw(ends: Tensor, mixed: dict[str, Tensor]) -> Figure:
    pairs = min(2, ends.shape[1])
    drawn = figures.figure(11, 3.7 * pairs)
    axes = drawn.subplots(pairs, 2, squeeze=False)
    columns = ["first", *(f"{share:g}" for share in LAMBDAS), "second"]
    for pair in range(pairs):
        for axis, (noise, states) in zip(axes[pair], mixed.items(), strict=True):
            first, second = (end[pair].expand(len(TIMES), 1, *end.shape[1:]) for end in ends)
            shown = torch.cat([first, states[:, :, pair], second], 1)
            title = "the same noise, by lambda" if noise == "same" else "two noises, by lambda"
            figures.pictures(axis, shown, [f"t = {t:g}" for t in TIMES], columns, title)
    return drawn
