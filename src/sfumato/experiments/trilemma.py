"""trilemma: quality, diversity and speed of a VAE, a GAN, a flow and diffusion, each given the same wall-clock.

All are trained on the same rows of MNIST without their labels, with as many seconds for each of the same learning
rates, about as many parameters, batches of 64 (`families` says what they are; diffusion is the recipe mnist's Run with
a narrower UNet).  The rate of each family is the one whose samples have the least Frechet distance to a part of the
training rows that is kept aside; the scores are of other samples, against the test split.  Three axes, of

    quality      the Frechet distance (which diversity enters too), precision, density
    diversity    recall, coverage
    speed        milliseconds a sample, alone and 256 at a time

A score's place is 1 for the best row and 0 for the worst, on a log scale where it is a distance or a time; a range
below a factor of 2, or 0.1 of a share, counts as that wide, so that small differences make no cross.  An axis' place
is the mean of its scores' places: ✓ in the best third, ✗ in the worst, ~ between (`marks`).  Beside them stand the
marks that the literature gives: GANs lack diversity, VAEs and flows quality, diffusion speed.

Z. Xiao, K. Kreis, A. Vahdat, "Tackling the Generative Learning Trilemma with Denoising Diffusion GANs",
arXiv:2112.07804, figure 1; M. Naeem et al., "Reliable Fidelity and Diversity Metrics", arXiv:2002.09797
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato import data
from sfumato.data import Data, Splits
from sfumato.experiments import families
from sfumato.experiments.families import FAMILIES, Trainee, parameters, train_within
from sfumato.experiments.marks import (
    AXES,
    COLUMNS,
    FEW,
    FLOOR,
    MANY,
    SCATTER,
    TOGETHER,
    Facts,
    cells,
    draw,
    heads,
    table,
    words,
)
from sfumato.experiments.report import UNFINISHED, Report, Request, remembered
from sfumato.experiments.sampled import REFERENCE_ROWS, SETS, by_chance, counting, how_many
from sfumato.likelihood import bits_per_dim
from sfumato.metrics import FeatureNetwork, FrechetDistance
from sfumato.model import Model, build_network
from sfumato.nn import UNetConfig
from sfumato.noise import PRIOR, normal
from sfumato.recipes.pictures import mnist
from sfumato.tasks.features import feature_network
from sfumato.tasks.scores import Reference, floor, pictures_of, real_pictures, reference, score
from sfumato.train import Run, Training, train
from sfumato.train.run import model_config

DIFFUSION = "diffusion"
ROWS = {**{name: name for name in FAMILIES}, MANY: DIFFUSION, FEW: DIFFUSION}  # a row of the table -> its family
RATES = (2e-4, 6e-4, 2e-3)
KEPT_ASIDE = 5_000  # training rows, the last ones, that rates are chosen by
CHOICE_SEED = 10**6  # added to the seed of the samples that rates are chosen by
BATCH = 64
CHANNELS = 32  # of diffusion's UNet, so that it is about as large as the others
BOUND_DRAWS = 40  # steps a row of diffusion's bound
SINGLES = 5  # single samples that are timed, beside batches of TOGETHER

Draw = Callable[[int, int], Tensor]  # (n, seed) -> uint8 (n, *SHAPE)
Trained = dict[float, dict[str, Tensor]]  # rate -> what its training left


@dataclass(frozen=True)
class Size:
    """Seconds of a training; samples of a score (of 256 a batch); steps of many and few; rows of bits/dim; features."""

    seconds: float
    samples: int
    many: int
    bits_rows: int
    few: int = 10
    reference_rows: int = REFERENCE_ROWS
    features: str = "mnist"


QUICK, FULL = Size(15, 256, 50, 64), Size(150, 1024, 250, 500)


@dataclass(frozen=True)
class Pictures:
    """The rows to train on and those kept aside (`of`, without labels), the test rows, and who compares pictures."""

    of: Data
    splits: Splits
    test: Splits
    network: FeatureNetwork


def write_rows(request: Request) -> Pictures:
    """MNIST without labels, its last training rows as the held-out part, as a file that a Run reads."""
    path = request.out / UNFINISHED / "rows.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    test = data.load(Data("mnist"))
    x = np.asarray(test.train.take(np.arange(len(test.train)))["x"])[:, 0]
    np.savez(path, train_images=x[:-KEPT_ASIDE], test_images=x[-KEPT_ASIDE:])
    of = Data("file", path=str(path))
    size = QUICK if request.quick else FULL
    return Pictures(of, data.load(of), test, feature_network(size.features))


# --- diffusion, as the families ---


def plan(of: Data, rate: float, seed: int) -> Run:
    """The Run of diffusion; its steps are ended, and its rate is led, by the wall-clock."""
    run = mnist()
    assert isinstance(run.network, UNetConfig)
    return replace(
        run,
        data=of,
        network=replace(run.network, channels=CHANNELS),
        optimiser=replace(run.optimiser, learning_rate=rate, warmup=0, decay="constant"),
        sampling=replace(run.sampling, guidance=1.0),
        steps=10**9,
        batch=BATCH,
        features="",
        seed=seed,
        ema=(families.EMA_LENGTH,),
        precision="float32",
    )


def diffusion(request: Request, of: Data, rate: float) -> Trainee:
    """The training of a Run, as the families' are."""
    training = Training(plan(of, rate, request.seed), request.out / UNFINISHED / "run", say=request.say, resume=False)

    def steps() -> Iterator[float]:
        try:
            yield from (step.loss for step in train(training))
        except ValueError as error:  # the loss is no longer a number
            request.say(str(error))
            yield math.nan

    return Trainee((training.optimiser,), steps(), lambda: dict(training.model().net.state_dict()))


def load_diffusion(pictures: Pictures, weights: Mapping[str, Tensor]) -> Model:
    """The model of a Run's weights."""
    codec = families.CODEC
    config = model_config(plan(pictures.of, RATES[0], 0), pictures.splits.info, codec)
    net = build_network(config)
    net.load_state_dict(weights)
    return Model(config, net)


# --- training and sampling, remembered ---


def _weights(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("net/"): x for name, x in found.items() if name.startswith("net/")}


def draws(family: str, pictures: Pictures, weights: dict[str, Tensor], sampler: str, steps: int, grid: str) -> Draw:
    """How samples of trained weights are drawn; sampler, steps and grid are diffusion's."""
    if family == DIFFUSION:
        model = load_diffusion(pictures, weights)
        return lambda n, seed: model.sample(n, sampler=sampler, steps=steps, grid=grid, seed=seed, batch=TOGETHER)
    net = families.load(family, weights)

    def draw(n: int, seed: int) -> Tensor:
        parts = torch.arange(seed, seed + n).split(TOGETHER)
        return torch.cat([net.draw(normal(part.tolist(), (net.latent,), PRIOR)) for part in parts])

    return draw


def way(row: str, size: Size) -> tuple[str, int, str]:
    """Sampler, steps and grid of a row."""
    return ("ancestral", size.many, "trailing") if row == MANY else ("dpmpp-2m", size.few, "logsnr")


def train_one(request: Request, family: str, rate: float, size: Size, pictures: Pictures) -> dict[str, Tensor]:
    """Averaged weights "net/...", "facts" (steps, seconds, last loss), and samples to choose by, if it went well."""
    if family == DIFFUSION:
        trainee = diffusion(request, pictures.of, rate)
    else:
        trainee = families.trainee(family, pictures.splits.train, BATCH, request.seed)
    spent = train_within(size.seconds, trainee, rate)
    weights = trainee.weights()
    found = {f"net/{name}": x for name, x in weights.items()}
    found["facts"] = torch.tensor([spent.steps, spent.seconds, spent.loss], dtype=torch.float64)
    if math.isfinite(spent.loss) and all(bool(x.isfinite().all()) for x in weights.values()):
        draw = draws(family, pictures, weights, *way(FEW, size))
        found["samples"] = draw(size.samples, request.seed + CHOICE_SEED)
    request.say(f"{family} at rate {rate:g}: {spent.steps} steps in {spent.seconds:.0f} s, loss {spent.loss:.4g}")
    return found


def trained(request: Request, family: str, size: Size, pictures: Pictures) -> Trained:
    """What each of RATES left; a stopped run does not train anew what it had trained."""
    found = {}
    for rate in RATES:
        key = {"family": family, "rate": rate, "size": repr(size), "batch": BATCH, "rows": len(pictures.splits.train)}
        work = partial(train_one, request, family, rate, size, pictures)
        found[rate] = remembered(request, key, f"train-{family}-{rate:g}", work)
    return found


def timed(draw: Draw, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """n samples; milliseconds a sample of each single one that is drawn first, and of each batch of TOGETHER."""

    def measure(count: int, start: int) -> float:
        begun = time.perf_counter()
        parts.append(draw(count, start))
        return 1000 * (time.perf_counter() - begun) / count

    parts: list[Tensor] = []
    alone = [measure(1, seed) for _ in range(SINGLES)]
    parts.clear()
    together = [measure(min(TOGETHER, n - start), seed + start) for start in range(0, n, TOGETHER)]
    return torch.cat(parts), torch.tensor(alone), torch.tensor(together)


def sample_row(
    request: Request, row: str, size: Size, pictures: Pictures, best: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Samples of a row "samples", "ms_alone", "ms_together", network "calls" a sample and, if known, "bits" a row."""
    weights, family = _weights(best), ROWS[row]
    draw = draws(family, pictures, weights, *way(row, size))
    x, alone, together = timed(draw, size.samples, request.seed)
    found = {"samples": x, "ms_alone": alone, "ms_together": together, "calls": torch.ones(1)}
    held_out = pictures.test.held_out.take(np.linspace(0, len(pictures.test.held_out) - 1, size.bits_rows).astype(int))
    levels = held_out["x"]
    assert isinstance(levels, Tensor)
    if family == DIFFUSION:
        model, (sampler, steps, grid) = load_diffusion(pictures, weights), way(row, size)
        with counting(model.net) as counter:
            model.sample(1, sampler=sampler, steps=steps, grid=grid)
        x_0, width = model.codec.encode(levels), model.codec.bin_width
        bound = bits_per_dim(model.in_float32().guided(), x_0, bin_width=width, draws=BOUND_DRAWS, seed=request.seed)
        return {**found, "calls": torch.tensor([float(counter.rows)]), "bits": bound.rows}
    bits = families.load(family, weights).bits(levels, request.seed)
    return found if bits is None else {**found, "bits": bits}


# --- scores ---


def images_of(x: Tensor) -> np.ndarray:
    """uint8 (n, 1, H, W) -> (n, H, W, 1)."""
    return x.permute(0, 2, 3, 1).contiguous().numpy()


def chosen(found: Trained, against: Reference, network: FeatureNetwork) -> dict[float, float]:
    """Each rate's Frechet distance to the rows kept aside; inf where the training came to grief."""
    metric, distances = FrechetDistance(against.seen.features), {}
    for rate, left in found.items():
        distances[rate] = math.inf
        if "samples" in left:
            metric.reset()
            metric.update(network.look(images_of(left["samples"])).features)
            distances[rate] = metric.compute()
    return distances


def rarest(images: np.ndarray, network: FeatureNetwork) -> float:
    """The share of the class that the network sees least often."""
    log_probs = network.look(images).log_probs
    if log_probs is None or not network.classes:
        return math.nan
    return float(np.bincount(log_probs.argmax(1), minlength=network.classes).min() / len(images))


# --- the report ---


def run(request: Request) -> Report:
    size = QUICK if request.quick else FULL
    pictures = write_rows(request)
    network = pictures.network
    aside = reference(
        pictures_of(pictures.splits.held_out, KEPT_ASIDE, pictures.splits.info.levels),
        "training rows kept aside",
        network,
    )
    sweep: dict[str, dict[float, float]] = {}
    left: dict[str, dict[str, Tensor]] = {}
    rates: dict[str, float] = {}
    for family in (*FAMILIES, DIFFUSION):
        found = trained(request, family, size, pictures)
        sweep[family] = chosen(found, aside, network)
        rates[family] = min(sweep[family], key=lambda rate: sweep[family][rate])
        if not math.isfinite(sweep[family][rates[family]]):
            raise ValueError(f"no training of the {family} came to an end at rates {RATES}; try another --seed")
        left[family] = found[rates[family]]
    rows, samples = {}, {}
    held_out = pictures_of(pictures.test.held_out, size.reference_rows, pictures.test.info.levels)
    against = reference(held_out, f"test split of mnist, {len(held_out):,} rows", network)
    for row, family in ROWS.items():
        key = {"row": row, "training": left[family]["facts"].tolist(), "size": repr(size)}
        block = f"row-{row.replace(', ', '-').replace(' ', '-')}"
        made = remembered(request, key, block, partial(sample_row, request, row, size, pictures, left[family]))
        samples[row] = made["samples"]
        rows[row] = facts_of(family, made, left[family], pictures, against)
        request.say(f"{row}: {network.title} {rows[row]['frechet']:.3g}, {rows[row]['ms_together']:.3g} ms a sample")
    by_row = {row: rates[family] for row, family in ROWS.items()}
    real, samples[FLOOR] = floor_of(pictures, size.samples, against)
    return Report(
        title="The trilemma of quality, diversity and speed, in numbers",
        shown=(__doc__ or "").partition("\n\n")[2],
        see=words(rows, real, network.title),
        basis=_basis(size, pictures, rates, rows, network),
        heads=heads(network.title),
        numbers=cells(rows, real, by_row),
        columns=COLUMNS,
        rows=table(rows, real, sweep, by_row),
        figure=draw(rows, real, sweep, samples, network.title),
        facts={"features": network.name, "features_title": network.title, "features_weights": network.weights},
    )


def _scores(found: Mapping[str, Any]) -> Facts:
    return {name: float(found[name]) for axis in ("quality", "diversity") for name in AXES[axis]}


def floor_of(pictures: Pictures, n: int, against: Reference) -> tuple[Facts, Tensor]:
    """The scores of disjoint sets of n training pictures: their means, and how far the distances scatter; the first.

    Labels are unknown to the families, so these sets, as samples do, have the classes as chance has it.
    """
    sets = [images for images, _ in real_pictures(pictures.splits.train, pictures.splits.info, n, SETS)]
    found = [floor(images, against, pictures.network) for images in sets]
    facts = [{**_scores(one), "rarest": rarest(x, pictures.network)} for one, x in zip(found, sets, strict=True)]
    means = {name: float(np.mean([one[name] for one in facts])) for name in facts[0]}
    return {**means, SCATTER: by_chance(found)[1]}, torch.from_numpy(sets[0]).permute(0, 3, 1, 2)


def facts_of(
    family: str, made: dict[str, Tensor], left: dict[str, Tensor], pictures: Pictures, against: Reference
) -> Facts:
    """All numbers of a row."""
    images, network = images_of(made["samples"]), pictures.network
    steps, seconds, _ = left["facts"].tolist()
    if family == DIFFUSION:
        whole = own = parameters(load_diffusion(pictures, _weights(left)).net)
    else:
        net = families.load(family, _weights(left))
        whole, own = parameters(net), parameters(net.generators())
    return {
        **_scores(score(images, against, network)),
        "ms_alone": made["ms_alone"].median().item(),
        "ms_together": made["ms_together"].median().item(),
        "calls": made["calls"].item(),
        "bits": made["bits"].mean().item() if "bits" in made else math.nan,
        "rarest": rarest(images, network),
        "steps": steps,
        "seconds": seconds,
        "epochs": steps * BATCH / len(pictures.splits.train),
        "parameters": float(whole),
        "drawing_parameters": float(own),
    }


def _basis(
    size: Size, pictures: Pictures, rates: Mapping[str, float], rows: Mapping[str, Facts], network: FeatureNetwork
) -> list[str]:
    sampled = {name: "{}, {} steps, grid {}".format(*way(name, size)) for name in (MANY, FEW)}
    made = {family: rows[row] for row, family in ROWS.items()}
    return [
        f"data: {pictures.test.info.source}; trained on {len(pictures.splits.train):,} training rows without labels, "
        f"rates chosen by the other {KEPT_ASIDE:,}; scores against the test split",
        f"scores: {how_many(size.samples)} samples, against {size.reference_rows:,} test rows, by the features of "
        f"`{network.name}`, weights sha256 `{network.weights or 'unknown'}`; the rates were chosen by as many samples "
        "of another seed",
        f"floor: means, and the distance's standard deviation, of at most {SETS} disjoint sets of as many training "
        "pictures, in their natural shares of the classes, since the families know no labels",
        f"{size.seconds:g} s for each family and rate of {', '.join(f'{rate:g}' for rate in RATES)}, on "
        f"{torch.get_num_threads()} thread(s); how many steps that gives depends on the machine",
        *(
            f"{family}: {facts['parameters']:,.0f} parameters, {facts['drawing_parameters']:,.0f} of them draw; at "
            f"rate {rates[family]:g} {facts['steps']:,.0f} steps of {BATCH} rows ({facts['epochs']:.1f} epochs) in "
            f"{facts['seconds']:.0f} s"
            for family, facts in made.items()
        ),
        *(f"{name}: {text}" for name, text in sampled.items()),
        f"rates of diffusion are chosen by few steps; bits/dim of {size.bits_rows} test rows: the flow's exact density "
        f"with uniform dequantisation, the VAE's ELBO, diffusion's bound by {BOUND_DRAWS} draws a row; a GAN has none",
        "the Frechet distance is of quality and of diversity; recall flatters samples that lie scattered, coverage "
        "does not; a pass through all couplings of the flow is one call",
    ]
