"""flow: paths straight or bent, with and without coupling, and how many steps each needs.

    straight      x_t = (1 - t) x_0 + t eps, its velocity dx/dt learned, x_0 and eps as drawn
    straight-ot   the same, each batch's noise going to the rows that are near (optimal transport of the batch)
    diffusion     x_t = alpha(t) x_0 + sigma(t) eps of the cosine path, v learned

A straight path between a pair is not yet a straight trajectory: where pairs cross, the velocity is their mean and
trajectories bend.  Coupling leaves fewer crossings.  Measured on the trajectories x(t) of the learned ODE, from x(1):

    straightness  S = E int |x(1) - x(0) - dx/dt|^2 dt / D    0: one step is exact
    transport     E |x(1) - x(0)|^2 / D                       what moving noise to data costs
    end error     sqrt(E |x_N(0) - x(0)|^2 / D) of N steps of DDIM (on the straight path: Euler), and the least N
                  with an end error of at most 0.1, `steps needed`

first on a ring of eight Gaussians in the plane, where the velocity without coupling is known in closed form (`exact`)
and the assignment of as many draws to the noise says what transport costs at least (a little too much, for they are
few: `other draws`); then on the digits.

X. Liu, C. Gong, Q. Liu, "Flow Straight and Fast", arXiv:2209.03003 (straightness: eq. (3), S)
A. Tong et al., "Improving and generalizing flow-based generative models with minibatch optimal transport",
arXiv:2302.00482; A. Pooladian et al., "Multisample Flow Matching", arXiv:2304.14772
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sfumato import samplers
from sfumato.codecs import Codec
from sfumato.data import Data
from sfumato.denoiser import Cond, Denoiser
from sfumato.experiments import figures
from sfumato.experiments.report import UNFINISHED, Report, Request, digest, remembered
from sfumato.experiments.trainings import Judged, judged_by, trained_here
from sfumato.gaussian import expand
from sfumato.metrics import EnergyDistance
from sfumato.nn import MLPConfig
from sfumato.noise import PRIOR, normal
from sfumato.recipes import assumptions as recipes
from sfumato.recipes.digits import digits
from sfumato.schedules import Rectified
from sfumato.testbed import GaussianMixture
from sfumato.train import Loss, Optimiser, Run
from sfumato.train.coupling import COUPLINGS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PATHS = ("straight", "straight-ot", "diffusion")
COLUMNS = ("data", "path", "score", "steps", "value")
HEADS = (
    "data, path",
    "straightness S",
    "transport",
    "steps needed",
    "end error, 1 step",
    "energy distance by steps",
    "agreement",
)
ENOUGH = 0.1  # the end error at which steps are enough; data have a standard deviation of about 1 or less
SHOWN_STEPS = (1, 2, 4, 8, 64)
MODES, SPREAD = 8, 0.1
POINTS = {"train": 20_000, "test": 2_000}
LINES = 80  # trajectories drawn
COLOURS = {"exact": "black", "straight": "C0", "straight-ot": "C1", "diffusion": "C2"}

SEE = """\
In the plane the learned velocity does what the exact one does: trajectories first make for the middle of all data, then
bend to one of the eight.  Straight pairs alone are no help: with independent noise the straight and the cosine path
have the same ODE up to a change of time and scale, so they need the same steps.  Coupling takes the bends away: S falls
to next to nothing, and one step is as good as many.  On the digits, with 64 dimensions and 64 rows to choose from, it
still takes two fifths of S and a fifth of the error of one step.  But digits have labels, and there it is not free:
which noise a class is trained on depends on its batch-mates and is not N(0, I), from which samples start, so that some
come out as other digits (the agreement with the asked-for labels).  That is why `auto` couples only without labels.
"""


@dataclass(frozen=True)
class Size:
    """Training steps and trajectories in the plane, those of digits; the steps compared with a trajectory of `fine`."""

    plane: int
    points: int
    digits: int
    samples: int
    batch: int = 64
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    fine: int = 128


QUICK, FULL = Size(600, 500, 120, 60), Size(3000, 1000, 300, 120)


@dataclass(frozen=True)
class Walks:
    """Trajectories from the same noise: fine (fine + 1, N, ...) falling in t, ends (steps, N, ...), S and transport."""

    steps: tuple[int, ...]
    fine: Tensor
    ends: Tensor
    straightness: float
    transport: float

    def end_errors(self) -> list[float]:
        return [(end - self.fine[-1]).square().mean().sqrt().item() for end in self.ends]

    def needed(self) -> int | None:
        """The least of `steps` with an end error of at most ENOUGH."""
        return next(
            (steps for steps, error in zip(self.steps, self.end_errors(), strict=True) if error <= ENOUGH), None
        )


def ring() -> GaussianMixture:
    """MODES Gaussians on the unit circle."""
    angles = torch.arange(MODES, dtype=torch.float64) * (2 * math.pi / MODES)
    covariances = (SPREAD**2 * torch.eye(2, dtype=torch.float64)).expand(MODES, 2, 2)
    return GaussianMixture(torch.ones(MODES), torch.stack([angles.cos(), angles.sin()], 1), covariances)


def encoded_ring(codec: Codec) -> GaussianMixture:
    """The ring in a codec's units, of which it is an affine map, value by value."""
    mixture = ring()
    scale = codec.encode(torch.ones(1, 2)).double() - codec.encode(torch.zeros(1, 2)).double()
    covariances = scale.mT * mixture.covariances * scale
    return GaussianMixture(mixture.weights, codec.encode(mixture.means.float()).double(), covariances)


def write_ring(request: Request) -> Data:
    """The ring's rows as a file that a training reads."""
    path = request.out / UNFINISHED / "ring.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    train, test = (ring().sample(n, seed).numpy() for seed, n in enumerate(POINTS.values()))
    np.savez(path, train_images=train, test_images=test)
    return Data("file", path=str(path))


def plane_plan(path: str, of: Data, size: Size, seed: int) -> Run:
    """The training of a path in the plane."""
    straight = Run(
        data=of,
        network=MLPConfig(width=128, depth=3, time_scale=1000),
        schedule="rectified",
        target="flow",
        time="unit",
        loss=Loss(weighting="velocity", times="stratified"),
        optimiser=Optimiser(learning_rate=2e-3, warmup=min(100, size.plane // 5)),
        steps=size.plane,
        batch=256,
        precision="float32",
        seed=seed,
    )
    bent = replace(straight, schedule="cosine_continuous", target="v", loss=Loss(weighting="v", times="stratified"))
    coupled = replace(straight, loss=replace(straight.loss, coupling="ot"))
    return {"straight": straight, "straight-ot": coupled, "diffusion": bent}[path]


def digits_plan(path: str, size: Size, seed: int) -> Run:
    """The training of a path on the digits."""
    straight = recipes.flow()
    coupled = replace(straight, loss=replace(straight.loss, coupling="ot"))
    bent = replace(straight, schedule="cosine_continuous", target="v", loss=Loss(weighting="v", times="stratified"))
    run = {"straight": straight, "straight-ot": coupled, "diffusion": bent}[path]
    optimiser = replace(run.optimiser, warmup=min(run.optimiser.warmup, size.digits // 5))
    return replace(run, steps=size.digits, batch=size.batch, seed=seed, optimiser=optimiser)


def walks(denoiser: Denoiser, x_1: Tensor, size: Size, cond: Cond | None = None) -> Walks:
    """Trajectories from x_1 (N, ...), with what the header says of them."""
    schedule, states, slopes, times = denoiser.schedule, [], [], []
    for t, x, p in samplers.trajectory(denoiser, x_1, "ddim", size.fine, cond=cond):
        states.append(x)
        times.append(t)
        if p is not None:
            dalpha, dsigma = (expand(d[None], x) for d in (schedule.dalpha(t), schedule.dsigma(t)))
            slopes.append(dalpha * p.x0 + dsigma * p.eps)
    chord = states[0] - states[-1]
    transport = chord.square().mean().item()
    gaps = -torch.stack(times).diff()
    away = torch.stack([(chord - slope).square().mean() for slope in slopes])
    straightness = (gaps.to(away) * away).sum().item()
    ends = torch.stack([samplers.sample(denoiser, x_1, "ddim", steps, cond=cond) for steps in size.steps])
    return Walks(size.steps, torch.stack(states).cpu(), ends.cpu(), straightness, transport)


def kept(request: Request, weights: str, size: Size, block: str, compute: Callable[[], Walks]) -> Walks:
    """Walks that are remembered."""

    def tensors() -> dict[str, Tensor]:
        found = compute()
        numbers = torch.tensor([found.straightness, found.transport], dtype=torch.float64)
        return {"fine": found.fine, "ends": found.ends, "numbers": numbers}

    found = remembered(request, {"weights": weights, **asdict(size)}, block, tensors)
    return Walks(size.steps, found["fine"], found["ends"], *found["numbers"].tolist())


def run(request: Request) -> Report:
    size = QUICK if request.quick else FULL
    basis: list[str] = []
    plane, codec = in_the_plane(request, size, basis)
    pictures, judged = of_digits(request, size, basis)
    rows = [*plane_rows(plane, codec, size, request.seed), *digits_rows(pictures, judged)]
    return Report(
        title="Straight and bent paths",
        shown=(__doc__ or "").partition("\n\n")[2],
        see=SEE,
        basis=[
            f"plane: {MODES} Gaussians of standard deviation {SPREAD} on the unit circle, standardised; an MLP trained "
            f"for {size.plane} steps of 256 of {POINTS['train']:,} rows; {size.points} trajectories; energy distance "
            "to as many draws",
            f"digits: {judged.splits.info.source}; held out: {judged.splits.info.rule}; the recipe digits-flow, "
            f"trained for {size.digits} steps of {size.batch} rows; {size.samples} trajectories, classes in turn, x_0 "
            "not clipped",
            "coupling of digits: asked for in spite of labels (`auto` leaves it out); agreement: after the most steps",
            f"trajectories: {size.fine} steps of ddim on grid trailing",
            *basis,
        ],
        heads=HEADS,
        numbers=_numbers(rows, size),
        columns=COLUMNS,
        rows=rows,
        figure=_draw(rows, plane, pictures),
    )


def in_the_plane(request: Request, size: Size, basis: list[str]) -> tuple[dict[str, Walks], Codec]:
    """Walks of `exact` and of each of PATHS in the plane, codec units."""
    of = write_ring(request)
    x_1 = normal(range(request.seed, request.seed + size.points), (2,), PRIOR)
    found = {}
    for path in PATHS:
        model = trained_here(request, f"plane-{path}", plane_plan(path, of, size, request.seed))
        work = partial(walks, model.denoiser, x_1, size)
        found[path] = kept(request, digest(model), size, f"walks-plane-{path}", work)
        basis.append(f"plane, {path}: weights sha256 `{digest(model)}`")
    exact = encoded_ring(model.codec).denoiser(Rectified())
    return {"exact": walks(exact, x_1.double(), size), **found}, model.codec


def of_digits(request: Request, size: Size, basis: list[str]) -> tuple[dict[str, Walks], Judged]:
    """Walks of each of PATHS on the digits, codec units."""
    found = {}
    for path in PATHS:
        model = trained_here(request, f"digits-{path}", digits_plan(path, size, request.seed))
        x_1 = model.start(range(request.seed, request.seed + size.samples), None)
        labels = model.labels(size.samples)
        assert labels is not None
        cond = {"label": labels.to(model.device)}
        work = partial(walks, model.denoiser, x_1, size, cond)
        found[path] = kept(request, digest(model), size, f"walks-digits-{path}", work)
        basis.append(f"digits, {path}: weights sha256 `{digest(model)}`")
    return found, judged_by(digits().data)


def _walk_rows(of: str, path: str, found: Walks) -> list[list[Any]]:
    return [
        [of, path, "straightness", None, found.straightness],
        [of, path, "transport", None, found.transport],
        [of, path, "steps_needed", None, found.needed()],
        *([of, path, "end_error", n, e] for n, e in zip(found.steps, found.end_errors(), strict=True)),
    ]


def plane_rows(plane: dict[str, Walks], codec: Codec, size: Size, seed: int) -> list[list[Any]]:
    """The CSV's rows of the plane; energy distances to other draws, beside that of yet others."""
    mixture, rows = encoded_ring(codec), []
    metric = EnergyDistance(mixture.sample(size.points, seed + 1).numpy())
    draws = mixture.sample(size.points, seed + 2)

    def energy(x: Tensor) -> float:
        metric.reset()
        metric.update(x.numpy())
        return metric.compute()

    for path, found in plane.items():
        rows += _walk_rows("plane", path, found)
        rows += [["plane", path, "energy", n, energy(x)] for n, x in zip(size.steps, found.ends, strict=True)]
        rows.append(["plane", path, "energy", size.fine, energy(found.fine[-1])])
    x_1 = plane["exact"].fine[0]
    least = (draws - x_1[COUPLINGS["ot"](draws, x_1, False)]).square().mean().item()
    return [*rows, ["plane", "draws", "transport", None, least], ["plane", "draws", "energy", None, energy(draws)]]


def digits_rows(pictures: dict[str, Walks], judged: Judged) -> list[list[Any]]:
    """The CSV's rows of the digits."""
    rows: list[list[Any]] = []
    for path, found in pictures.items():
        rows += _walk_rows("digits", path, found)
        labels = np.arange(len(found.fine[0])) % len(judged.splits.info.label_names)
        for steps, x in zip((*found.steps, len(found.fine) - 1), (*found.ends, found.fine[-1]), strict=True):
            scores = judged(judged.codec.decode(x).numpy(), labels)
            rows += [["digits", path, score, steps, scores[score]] for score in ("energy", "agreement")]
    references = judged.references(len(labels), 0)
    return [*rows, ["digits", "draws", "energy", None, references["training rows"]["energy"]]]


def _numbers(rows: list[list[Any]], size: Size) -> list[list[str]]:
    found = {(of, path, score, steps): value for of, path, score, steps, value in rows}
    lines = []
    for of, path in dict.fromkeys((row[0], row[1]) for row in rows):
        floor, transport = (found.get((of, path, score, None)) for score in ("energy", "transport"))
        moved = "-" if transport is None else f"{transport:.3f}"
        if floor is not None:
            lines.append([f"{of}, other {path}", "0", moved, "-", "-", f"{floor:.4f}", "-"])
            continue
        needed = found[of, path, "steps_needed", None]
        agreement = found.get((of, path, "agreement", size.fine))
        energies = {n: found[of, path, "energy", n] for n in (*size.steps, size.fine)}
        lines.append(
            [
                f"{of}, {path}",
                f"{found[of, path, 'straightness', None]:.3f}",
                moved,
                f"more than {size.steps[-1]}" if needed is None else str(needed),
                f"{found[of, path, 'end_error', 1]:.3f}",
                ", ".join(f"{n}: {e:.4f}" for n, e in energies.items() if n in (1, 2, 4, 16, size.fine)),
                "-" if agreement is None else f"{agreement:.1%}",
            ]
        )
    return lines


def _draw(rows: list[list[Any]], plane: dict[str, Walks], pictures: dict[str, Walks]) -> Figure:
    drawn = figures.figure(13, 7)
    axes = drawn.subplot_mosaic([["exact", *PATHS], ["energy", "error", "digits", "sheet"]])
    for path, found in plane.items():
        lines = found.fine[:, :LINES]
        axes[path].plot(lines[..., 0], lines[..., 1], color=COLOURS[path], linewidth=0.5, alpha=0.6)
        axes[path].plot(*lines[0].T, ".", color="grey", markersize=2)
        axes[path].plot(*lines[-1].T, ".", color="C3", markersize=3)
        axes[path].set(
            title=f"{path}: S = {found.straightness:.2f}", aspect="equal", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6)
        )
        axes[path].title.set_fontsize(10)
    for key, of, score in (
        ("energy", "plane", "energy"),
        ("error", "plane", "end_error"),
        ("digits", "digits", "end_error"),
    ):
        for path in plane if of == "plane" else pictures:
            points = [(n, v) for o, p, s, n, v in rows if (o, p, s) == (of, path, score) and n is not None]
            x, y = zip(*points, strict=True)
            style = ":" if path == "exact" else "o-"
            axes[key].loglog(x, y, style, color=COLOURS[path], markersize=4, linewidth=1, label=path)
        axes[key].set(xlabel="steps", title=f"{of}: {'energy distance' if score == 'energy' else 'end error'} by steps")
        axes[key].title.set_fontsize(10)
        axes[key].legend(fontsize=7)
    for key in ("error", "digits"):
        axes[key].axhline(ENOUGH, color="grey", linewidth=0.8, linestyle="--")
    steps = next(iter(pictures.values())).steps
    shown = [k for k, n in enumerate(steps) if n in SHOWN_STEPS]
    sheet = torch.stack([found.ends[shown, k] for k in range(2) for found in pictures.values()])
    figures.pictures(axes["sheet"], sheet, list(pictures) * 2, [str(steps[k]) for k in shown], "digits, by steps")
    return drawn
