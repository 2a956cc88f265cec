"""sweep: which network a small recipe should have, by quality after equal time.

Each candidate takes the place of its recipe's network and is trained for the same wall-clock; all else, data, loss,
batch, averages and sampling, stays the recipe's, and the rate falls to its end as there.  Beside the quality stand
its reasons,

    rows a second,   operations a second (`tasks.cost`: of products and convolutions, both passes, counted as plain)

Quality is the Frechet distance of n samples, drawn as the recipe says, and the loss on held-out rows, which is the
same function for all.  A network that is larger learns more from a row and sees fewer rows; where the two meet depends
on the time, so a candidate that wins here wins for runs of about this length.  Short trainings of all candidates are
the first contest; a long one, as long as the recipe's own, is between its network and one that learns faster at first.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sfumato import data
from sfumato.experiments import figures
from sfumato.experiments.report import Report, Request, remembered
from sfumato.experiments.sampled import FEATURES, OTHER_FEATURES, REFERENCE_ROWS, by_chance, floors, how_many
from sfumato.nn import UNetConfig
from sfumato.recipes import RECIPES
from sfumato.tasks import cost
from sfumato.tasks.features import feature_network
from sfumato.tasks.generate import generate
from sfumato.tasks.scores import Reference, pictures_of, reference, score
from sfumato.train import Run, Training, held_out_loss, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sfumato.metrics.features import FeatureNetwork

COLUMNS = (
    "contest",
    "network",
    "parameters",
    "rows_per_second",
    "gflops",
    "steps",
    "seconds",
    "held_out_loss",
    "frechet",
)
WARM = 3  # steps before it is found how many fit
TRIAL = 8  # steps by which it is found, and more as long as they take less than
SHARE = 0.03  # of the whole time
OWN = "the recipe's"

# recipe -> name -> network; the recipe's own is added to them
CANDIDATES: dict[str, dict[str, UNetConfig]] = {
    "mnist": {
        "wider: 64": UNetConfig(channels=64, patch=2, multipliers=(1, 2), blocks=1),
        "narrower: 32": UNetConfig(channels=32, patch=2, multipliers=(1, 2), blocks=1),
        "deeper: 2 blocks": UNetConfig(channels=48, patch=2, multipliers=(1, 2), blocks=2),
        "three levels": UNetConfig(channels=48, patch=2, multipliers=(1, 2, 2), blocks=1),
        "attention at 7x7": UNetConfig(channels=48, patch=2, multipliers=(1, 2), blocks=1, attention=(1,)),
        "pixels, not patches": UNetConfig(channels=32, multipliers=(1, 2, 2), blocks=1),
    },
    "cifar10": {
        "wider: 96": UNetConfig(channels=96, patch=2, multipliers=(1, 2, 2), blocks=1, attention=(1,), dropout=0.1),
        "narrower: 48": UNetConfig(channels=48, patch=2, multipliers=(1, 2, 2), blocks=1, attention=(1,), dropout=0.1),
        "deeper: 2 blocks": UNetConfig(
            channels=64, patch=2, multipliers=(1, 2, 2), blocks=2, attention=(1,), dropout=0.1
        ),
        "two levels": UNetConfig(channels=96, patch=2, multipliers=(1, 2), blocks=1, attention=(1,), dropout=0.1),
        "pixels, not patches": UNetConfig(channels=64, multipliers=(1, 2, 2), blocks=1, attention=(2,), dropout=0.1),
    },
}


@dataclass(frozen=True)
class Contest:
    """Networks of a recipe after so many seconds of training each; all of them, or those that are named."""

    recipe: str
    seconds: float
    only: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.recipe}, {self.seconds:g} s"

    @property
    def networks(self) -> dict[str, UNetConfig]:
        every = networks(self.recipe)
        return {name: every[name] for name in self.only or every}


Found = Mapping[tuple[str, str], Mapping[str, float]]  # (title of a contest, network) -> numbers


@dataclass(frozen=True)
class Size:
    """The contests, and n samples."""

    contests: tuple[Contest, ...]
    n: int


QUICK = Size((Contest("mnist", 20.0),), 200)
FULL = Size((Contest("mnist", 120.0), Contest("mnist", 900.0, (OWN, "narrower: 32")), Contest("cifar10", 420.0)), 1000)


@dataclass(frozen=True)
class Judge:
    """Who compares the pictures of a recipe, with what; floor: that of real pictures and its spread."""

    network: FeatureNetwork
    against: Reference
    floor: tuple[float, float]


def networks(recipe: str) -> dict[str, UNetConfig]:
    own = RECIPES[recipe]().network
    assert isinstance(own, UNetConfig)
    return {OWN: own, **CANDIDATES[recipe]}


def run(request: Request) -> Report:
    size = QUICK if request.quick else FULL
    by = {recipe: judge(request, recipe, size.n) for recipe in dict.fromkeys(one.recipe for one in size.contests)}
    found = {
        (contest.title, name): measured(request, contest, name, size.n, by[contest.recipe])
        for contest in size.contests
        for name in contest.networks
    }
    return Report(
        title="Which network, by quality after equal time",
        shown=(__doc__ or "").partition("\n\n")[2],
        see="\n\n".join(see(found, contest.title, by[contest.recipe]) for contest in size.contests),
        basis=[
            *(
                f"`{recipe}`: {one.network.title} against the {one.against.name}, {how_many(size.n)}; real pictures "
                f"{one.floor[0]:.3g} ± {one.floor[1]:.2g}"
                for recipe, one in by.items()
            ),
            f"{torch.get_num_threads()} threads; the seconds are of training alone, and how many steps fit is found by "
            "a few steps before",
        ],
        heads=(
            "contest",
            "network",
            "parameters",
            "rows/s",
            "GFLOP/s",
            "steps",
            "seconds",
            "held-out loss",
            "Frechet distance",
        ),
        numbers=[_cells(title, name, one) for (title, name), one in found.items()],
        columns=COLUMNS,
        rows=[[title, name, *(one[key] for key in COLUMNS[2:])] for (title, name), one in found.items()],
        figure=_draw(found, {contest.title: by[contest.recipe] for contest in size.contests}),
        facts={
            recipe: {
                "features": one.network.name,
                "features_weights": one.network.weights,
                "reference": one.against.name,
                "n": size.n,
                "floor": one.floor[0],
                "sampling": asdict(RECIPES[recipe]().sampling),
                "ema": RECIPES[recipe]().ema[0],
            }
            for recipe, one in by.items()
        },
    )


def judge(request: Request, recipe: str, n: int) -> Judge:
    plan = RECIPES[recipe]()
    splits, name = data.load(plan.data), plan.data.name
    network = feature_network(FEATURES.get(name, OTHER_FEATURES))
    rows = min(len(splits.held_out), REFERENCE_ROWS)
    request.say(f"the features of {rows:,} held-out pictures of {name} by {network.name}")
    held_out = pictures_of(splits.held_out, rows, splits.info.levels)
    against = reference(held_out, f"held-out rows of {name}, {rows:,}", network)
    return Judge(network, against, by_chance(floors(splits, n, against, network)))


def planned(recipe: str, network: UNetConfig, steps: int, seed: int) -> Run:
    """The recipe's run with another network, for so many steps; its warm-up is at most a tenth of them."""
    plan = RECIPES[recipe]()
    warmup = min(plan.optimiser.warmup, steps // 10)
    optimiser = replace(plan.optimiser, warmup=warmup)
    return replace(plan, network=network, optimiser=optimiser, steps=steps, features="", seed=seed)


def fitting(plan: Run, seconds: float) -> int:
    """How many steps of a plan fit into so many seconds."""
    with tempfile.TemporaryDirectory() as folder:
        steps = train(Training(plan, Path(folder), say=lambda text: None, resume=False))
        for _ in range(WARM):
            next(steps)
        begun, made, spent = time.perf_counter(), 0, 0.0
        while made < TRIAL or spent < SHARE * seconds:
            next(steps)
            made, spent = made + 1, time.perf_counter() - begun
    return max(1, round(seconds * made / spent))


def measured(request: Request, contest: Contest, name: str, n: int, by: Judge) -> dict[str, float]:
    """COLUMNS from "parameters" on, of a candidate."""
    recipe, network, seconds = contest.recipe, networks(contest.recipe)[name], contest.seconds

    def work() -> dict[str, torch.Tensor]:
        steps = fitting(planned(recipe, network, 10**6, request.seed), seconds)
        with tempfile.TemporaryDirectory() as folder:
            plan = planned(recipe, network, steps, request.seed)
            training = Training(plan, Path(folder), say=lambda text: None, resume=False)
            begun = time.perf_counter()
            for _ in train(training):
                pass
            spent = time.perf_counter() - begun
            loss, model = held_out_loss(training), training.model()
        counted = cost.of_config(model.config)
        samples = generate(model, n, seed=request.seed)
        labels = by.network.own_labels(samples.labels, model.config.label_names)
        distance = score(samples.images(), by.against, by.network, labels)["frechet"]
        rate = steps * plan.batch / spent
        values = [counted.parameters, rate, rate * counted.step / 1e9, steps, spent, loss, distance]
        return {"values": torch.tensor(values, dtype=torch.float64)}

    key = {"network": repr(network), "seconds": seconds, "n": n, "features": by.network.name}
    slug = "".join(c if c.isalnum() else "-" for c in f"{recipe}-{seconds:g}-{name}")
    values = remembered(request, {"recipe": recipe, **key}, slug, work)["values"]
    one = dict(zip(COLUMNS[2:], values.tolist(), strict=True))
    request.say(
        f"{contest.title}, {name}: {one['steps']:.0f} steps in {one['seconds']:.0f} s, {one['gflops']:.0f} GFLOP/s, "
        f"{by.network.title} {one['frechet']:.3g}"
    )
    return one


def see(found: Found, contest: str, by: Judge) -> str:
    """What the numbers say of a contest."""
    here = {name: one for (told, name), one in found.items() if told == contest}
    best, own = min(here, key=lambda name: here[name]["frechet"]), here[OWN]
    lines = [f"**{contest}.** Real pictures have {by.network.title} {by.floor[0]:.3g} at this n."]
    near = 2 * by.floor[1]
    if best == OWN or own["frechet"] - here[best]["frechet"] <= near:
        lines.append(
            f"The recipe's network has {own['frechet']:.3g}, the best or as good as the best within the spread of real "
            "pictures; of each there is one training, by one seed."
        )
    else:
        ratio = own["frechet"] / here[best]["frechet"]
        lines.append(
            f"The best is {best} with {here[best]['frechet']:.3g}; the recipe's has {own['frechet']:.3g}, {ratio:.2f} "
            "times that."
        )
    least = min(here, key=lambda name: here[name]["held_out_loss"])
    busiest = max(here, key=lambda name: here[name]["gflops"])
    lines.append(
        f"The least held-out loss has {least}; the most operations a second {busiest} ({here[busiest]['gflops']:.0f} "
        f"GFLOP/s, {here[busiest]['gflops'] / own['gflops']:.2f} times the recipe's)."
    )
    return " ".join(lines)


def _cells(contest: str, name: str, one: Mapping[str, float]) -> list[str]:
    counts = [
        f"{one['parameters']:,.0f}",
        f"{one['rows_per_second']:.0f}",
        f"{one['gflops']:.0f}",
        f"{one['steps']:.0f}",
        f"{one['seconds']:.0f}",
    ]
    return [contest, name, *counts, f"{one['held_out_loss']:.4f}", f"{one['frechet']:.3g}"]


def _draw(found: Found, judges: Mapping[str, Judge]) -> Figure:
    drawn = figures.figure(6 * len(judges), 5)
    axes = drawn.subplots(1, len(judges), squeeze=False)[0]
    for axis, (contest, by) in zip(axes, judges.items(), strict=True):
        for (told, name), one in found.items():
            if told == contest:
                axis.plot(one["rows_per_second"], one["frechet"], "s" if name == OWN else "o", ms=6)
                axis.annotate(
                    name,
                    (one["rows_per_second"], one["frechet"]),
                    fontsize=8,
                    xytext=(4, 4),
                    textcoords="offset points",
                )
        axis.axhline(by.floor[0], color="grey", lw=1, label="real pictures")
        axis.set(title=contest, xscale="log", yscale="log", xlabel="rows a second", ylabel=by.network.title)
        axis.margins(x=0.3)  # room for the names
        axis.legend(fontsize=8)
    return drawn
