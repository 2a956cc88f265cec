"""reverse-film: the forward chain and the reverse chain of a trained model side by side, at the same times.

    forward   x_t = a_ts x_s + sqrt(v_ts) eps                       from a picture x_0, up to t = 1
    reverse   x_s = c_t x_t + c_0 x0(x_t, t) + sqrt(u_ts) z          from x_1 ~ N(0, I), down to t = 0

The pictures are three grey drawings (a spiral, a plane, a tank), on which a small network without classes is trained in
the run itself, and held-out rows of MODEL's data.  For three pictures the best denoiser is known: E[x_0 | x_t] is their
mean weighted by softmax(-|x_t - alpha x_n|^2/(2 sigma^2)) (`testbed.Empirical`).  It walks beside the network from the
same x_1 with the same noise.  Measured at each t: the noise in the states, sqrt(mean |x_t - alpha_t x_0|^2 / D), which
is sigma_t for both chains if x_0 is where a chain begins or ends; and the network's distance to E[x_0 | x_t].

J. Sohl-Dickstein et al., "Deep Unsupervised Learning using Nonequilibrium Thermodynamics", arXiv:1503.03585, figure 1
J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239, figure 2
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sfumato import grids, samplers
from sfumato.data import Data
from sfumato.denoiser import Denoiser
from sfumato.experiments import chains, figures
from sfumato.experiments.chains import Film
from sfumato.experiments.drawings import NAMES, drawings
from sfumato.experiments.report import Report, Request, digest, remembered
from sfumato.experiments.trained import Trained, trained
from sfumato.guidance import clip
from sfumato.model import Model
from sfumato.nn import UNetConfig
from sfumato.noise import PRIOR, normal
from sfumato.schedules import Schedule
from sfumato.testbed import Empirical
from sfumato.train import Loss, Optimiser, Run, Training, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("chain", "picture", "i", "t", "sigma", "noise_forward", "noise_reverse", "x0_error_to_exact")
SHOWN_AT = (0, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 1)
DIGITS = 3  # held-out rows of MODEL's data
FILM_FRAMES = 21

SEE = """\
The left half from left to right, then the right half: a picture drowns in noise, and out of other noise one rises.  At
equal t both halves look alike, since they have the same amount of noise.  The network ends mostly where the exact
denoiser ends from the same x_1 and noise, and about equally often at each of the three: it has learned these pictures
by heart, as the best denoiser of three pictures does.
"""


@dataclass(frozen=True)
class Size:
    """Training steps on the drawings, steps of every chain, samples of the drawings; frames kept of a chain."""

    training: int
    steps: int
    samples: int = 24
    batch: int = 16
    pixels: int = 32
    frames: int = 40


QUICK, FULL = Size(400, 100), Size(3000, 1000)


@dataclass(frozen=True)
class Pair:
    """A forward and a reverse chain of pictures at the same times; end (B, ...) is what the reverse one is held to."""

    forward: Film
    reverse: Film


def run(request: Request) -> Report:
    size = QUICK if request.quick else FULL
    subject = trained(request)
    net = train_on_drawings(request, size)
    x_0 = net.codec.encode(_rows(size)).to(net.device)
    exact = Empirical(x_0.cpu()).denoiser(net.denoiser.schedule)
    key = {**subject.key, "drawings": digest(net), **asdict(size)}
    walks = {
        "trained": _remember(request, key, "trained", partial(reverse, net.guided(), size, request.seed)),
        "exact": _remember(request, key, "exact", partial(reverse, clip(exact), size, request.seed)),
    }
    chosen = distances(walks["trained"], x_0.cpu()).argmin(0).tolist()  # for each drawing the sample nearest to it
    begun = forward(net.denoiser.schedule, x_0, size.steps, size, request.seed)
    drawn = Pair(begun, _rows_of(walks["trained"], chosen))
    beside = Pair(begun, _rows_of(walks["exact"], chosen))
    digits = digit_chains(request, subject, key, size)
    error = x0_error(net.guided(), exact, begun)
    rows = [
        *table("drawings (trained)", NAMES, net.denoiser.schedule, drawn, error),
        *table("drawings (exact)", NAMES, net.denoiser.schedule, beside, None),
        *table("held-out rows", _digit_names(subject), subject.model.denoiser.schedule, digits, None),
    ]
    return Report(
        title="Forward and reverse chains, side by side",
        shown=(__doc__ or "").partition("\n\n")[2],
        see=SEE,
        basis=[
            f"drawings: `experiments/drawings.py`, {size.pixels}x{size.pixels}",
            f"their network: {sum(p.numel() for p in net.net.parameters()):,} parameters, trained in this run for "
            f"{size.training} steps of {size.batch} rows, weights sha256 `{digest(net)}`",
            *subject.basis,
            f"chains of {size.steps} steps, ancestral",
            f"{size.samples} samples of the drawings, of which the one that ends nearest to each is shown",
        ],
        numbers=_numbers(walks, x_0.cpu(), error),
        columns=COLUMNS,
        rows=rows,
        figure=_draw(drawn, beside, digits, error, _digit_names(subject)),
        film=_film(drawn, digits),
    )


def _rows(size: Size) -> Tensor:
    return torch.from_numpy(drawings(size.pixels)[:, None])


def train_on_drawings(request: Request, size: Size) -> Model:
    """A small network without classes, trained on the three drawings; a stopped training goes on."""
    folder = request.out / f"training-{size.training}"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = drawings(size.pixels)
    np.savez(folder / "drawings.npz", train_images=pictures, test_images=pictures)
    plan = Run(
        data=Data("file", path=str(folder / "drawings.npz")),
        network=UNetConfig(channels=16, multipliers=(1, 2, 2), blocks=1, groups=8),
        loss=Loss(times="stratified"),
        optimiser=Optimiser(learning_rate=2e-3, warmup=50),
        steps=size.training,
        batch=size.batch,
        precision="float32",
        seed=request.seed,
    )
    training = Training(plan, folder, None, request.say)
    for step in train(training):
        if step.number % 100 == 0 or step.number == plan.steps:
            training.save()
            request.say(f"training on the drawings: step {step.number} of {plan.steps}, loss {step.loss:.4f}")
    return training.model()


def _remember(request: Request, key: dict[str, Any], block: str, compute: Callable[[], Film]) -> Film:
    return Film(**remembered(request, key, block, lambda: dict(vars(compute()))))


def reverse(denoiser: Denoiser, size: Size, seed: int) -> Film:
    """The reverse chains of all samples of the drawings."""
    seeds = range(seed, seed + size.samples)
    x_1 = normal(seeds, (1, size.pixels, size.pixels), PRIOR)
    walk = samplers.trajectory(denoiser, x_1, "ancestral", size.steps, seeds=seeds)
    return chains.keep_reverse(walk, size.steps, size.frames)


def forward(schedule: Schedule, x_0: Tensor, steps: int, size: Size, seed: int) -> Film:
    """The forward chains of some pictures, through the times that a reverse chain of `steps` steps visits."""
    times = grids.trailing(schedule, steps).flip(0)
    return chains.keep_forward(chains.forward(schedule, x_0.cpu(), times, seed), steps, size.frames)


def distances(film: Film, x_0: Tensor) -> Tensor:
    """Root mean square between the chains' ends and the pictures: (samples, pictures)."""
    return (film.x[-1][:, None] - x_0[None]).square().flatten(2).mean(2).sqrt()


def _rows_of(film: Film, rows: list[int]) -> Film:
    return Film(film.t, film.x[:, rows])


def digit_chains(request: Request, subject: Trained, key: dict[str, Any], size: Size) -> Pair:
    """Held-out rows' forward chains, and reverse chains of new samples with the same labels."""
    model = subject.model
    x_0, labels = subject.held_out(DIGITS)
    schedule = model.denoiser.schedule
    steps = min(size.steps, schedule.steps or size.steps)

    def new() -> Film:
        walk = model.trajectory(range(len(x_0)), labels, request.seed, "ancestral", steps)
        return chains.keep_reverse(walk, steps, size.frames)

    return Pair(forward(schedule, x_0, steps, size, request.seed), _remember(request, key, "held-out", new))


def _digit_names(subject: Trained) -> list[str]:
    _, labels = subject.held_out(DIGITS)
    if labels is None:
        return [f"row {k}" for k in range(DIGITS)]
    return [subject.model.config.label_names[k] for k in labels.tolist()]


@torch.no_grad()
def x0_error(net: Denoiser, exact: Denoiser, film: Film) -> Tensor:
    """Root mean square between the two predictions of x_0 on the states of a forward chain, t > 0: (K, B)."""
    errors = []
    for t, x in zip(film.t[1:], film.x[1:], strict=True):
        at = t.expand(len(x))
        errors.append((net(x, at).x0 - exact(x, at).x0).square().flatten(1).mean(1).sqrt())
    return torch.stack(errors)


def table(
    chain: str, names: tuple[str, ...] | list[str], schedule: Schedule, pair: Pair, error: Tensor | None
) -> list[list[Any]]:
    """The CSV's rows of one kind of chain: each picture at each kept time, t = 0 left out."""
    rows = []
    there, back = pair.forward, pair.reverse
    for k, t in enumerate(there.t.tolist()[1:], start=1):
        down = len(there.t) - 1 - k  # the reverse chain's frame of the same time
        alpha, sigma = schedule.alpha(there.t[k]).item(), schedule.sigma(there.t[k]).item()
        for j, name in enumerate(names):
            up_noise = (there.x[k, j] - alpha * there.x[0, j]).square().mean().sqrt().item()
            down_noise = (back.x[down, j] - alpha * back.x[-1, j]).square().mean().sqrt().item()
            off = None if error is None else error[k - 1, j].item()
            rows.append([chain, name, chains.index(schedule, t), t, sigma, up_noise, down_noise, off])
    return rows


def _numbers(walks: dict[str, Film], x_0: Tensor, error: Tensor) -> list[tuple[str, str]]:
    off = {name: distances(film, x_0).min(1) for name, film in walks.items()}  # to the nearest drawing, and which it is
    numbers = []
    for name, (how_far, which) in off.items():
        counts = ", ".join(f"{picture} {int((which == j).sum())}" for j, picture in enumerate(NAMES))
        numbers.append((f"{name}: samples that end at each drawing", counts))
        numbers.append((f"{name}: root mean square distance to it", f"{how_far.mean().item():.4f}"))
    same = int((off["trained"].indices == off["exact"].indices).sum())
    numbers.append(("network and exact denoiser end at the same drawing", f"{same} of {len(off['exact'].indices)}"))
    numbers.append(("network's distance to E[x_0 given x_t], mean over t and drawings", f"{error.mean().item():.4f}"))
    return numbers


def _draw(drawn: Pair, beside: Pair, digits: Pair, error: Tensor, names: list[str]) -> Figure:
    figure = figures.figure(12, 9)
    axes = figure.subplot_mosaic([["a", "b"], ["e", "c"], ["d", "f"]])

    def show(key: str, film: Film, rows: tuple[str, ...] | list[str], wanted: tuple[float, ...], title: str) -> None:
        at = chains.nearest_frames(film, wanted)
        figures.pictures(axes[key], film.x[at].transpose(0, 1), rows, [f"{t:g}" for t in wanted], title)

    show("a", drawn.forward, NAMES, SHOWN_AT, "forward chain, by t")
    show("b", drawn.reverse, NAMES, SHOWN_AT[::-1], "reverse chain of the trained network, by t")
    show(
        "c",
        beside.reverse,
        [f"{name}'s\nseed" for name in NAMES],
        SHOWN_AT[::-1],
        "reverse chain of the exact denoiser",
    )
    show("d", digits.forward, names, SHOWN_AT, "forward chain of held-out rows")
    show("f", digits.reverse, names, SHOWN_AT[::-1], "reverse chain of their model, the same labels")
    for j, name in enumerate(NAMES):
        axes["e"].plot(drawn.forward.t[1:], error[:, j], label=name)
    axes["e"].set(title="network's distance to E[x_0 | x_t] on the forward chain", xlabel="t", ylim=(0, None))
    axes["e"].title.set_fontsize(10)
    axes["e"].legend(fontsize=8)
    return figure


def _film(drawn: Pair, digits: Pair) -> list[np.ndarray]:
    """Frames with the forward chains above, t rising, and the reverse chains below, t falling."""
    frames = []
    for t in np.linspace(0, 1, FILM_FRAMES):
        above = [_tile(x) for pair in (drawn, digits) for x in _at(pair.forward, t)]
        below = [_tile(x) for pair in (drawn, digits) for x in _at(pair.reverse, 1 - t)]
        frames.append(figures.sheet(torch.stack([torch.stack(above), torch.stack(below)]), 4)[..., 0])
    return frames


def _at(film: Film, t: float) -> Tensor:
    return film.x[chains.nearest_frames(film, [t])[0]]


def _tile(x: Tensor, side: int = 64) -> Tensor:
    """A picture (C, H, W) as grey (1, side, side), enlarged without smoothing."""
    return torch.nn.functional.interpolate(x.mean(0, keepdim=True)[None], (side, side), mode="nearest")[0]
