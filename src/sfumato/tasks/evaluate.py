"""Evaluate: what a model is worth, in numbers that say how they were measured.

bits/dim          the variational bound on held-out rows (given their labels, if the model takes labels); of models of
                  plain Gaussian noise
ode               bits/dim of the same model by its probability-flow ODE, on fewer rows
histogram         the same rows under each pixel's own histogram: what a model without shapes would need
agreement         samples that a support vector classifier reads as the asked-for label
nearest           median distance of samples to their nearest training row, beside that of held-out rows
gaussian          denoising loss and energy distance of the model and of a fitted Gaussian
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sfumato.codecs import DCTCodec
from sfumato.data import Splits
from sfumato.degradations import dct
from sfumato.likelihood import bits_per_dim, bits_per_dim_flow
from sfumato.metrics import BitsPerDim, HistogramBits, LabelAgreement, NearestNeighbour, fit_judge
from sfumato.model import Model
from sfumato.tasks import scores as by_features
from sfumato.tasks.gaussian import beside_gaussian, gaussian_table
from sfumato.tasks.generate import Samples, generate, spread
from sfumato.tasks.records import nearest_title, told
from sfumato.tasks.subjects import HELD_OUT_ROWS, PIXELS, TRAIN_ROWS, VALUES, some_rows

BOUND_ROWS = HELD_OUT_ROWS  # of the bound
ODE_TOLERANCE = 1e-3  # a tenth of it changes the digits' bits by less than a third of a standard error of 100 rows
DRAWS = 40  # steps a row of the bound; a T-step sum in expectation
GAUSSIAN_ROWS = 2_000  # samples whose energy distance is taken, which looks at all pairs

Say = Callable[[str], None]


@dataclass(frozen=True)
class Nearest:
    """Distances to the nearest training row, of samples (N,) and of held-out rows (M,)."""

    samples: np.ndarray
    held_out: np.ndarray


@contextmanager
def lap(seconds: dict[str, float], name: str) -> Iterator[None]:
    """The wall-clock of what is done within, as seconds[name]."""
    start = time.perf_counter()
    yield
    seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - start, 2)


def bound_of(model: Model, splits: Splits, draws: int | None = DRAWS, rows: int = BOUND_ROWS, seed: int = 0) -> Any:
    """`likelihood.bits_per_dim` of the model, as it samples (clipped, unguided) but in float32, on held-out rows.

    In bfloat16 the bound of the zoo's `mnist` is 0.05 bits/dim larger.
    """
    held_out = some_rows(splits.held_out, rows)
    cond = {"label": held_out["label"].to(model.device)} if model.config.conditions.classes else None
    return bits_per_dim(
        model.in_float32().guided(),
        model.codec.encode(held_out["x"]).to(model.device),
        bin_width=model.codec.bin_width,
        cond=cond,
        draws=draws,
        seed=seed,
    )


def flow_bits_of(model: Model, splits: Splits, rows: int, seed: int = 0) -> dict[str, Any]:
    """Bits/dim by the probability-flow ODE on held-out rows, and the bound, unclipped, on the same."""
    held_out = some_rows(splits.held_out, rows)
    cond = {"label": held_out["label"].to(model.device)} if model.config.conditions.classes else None
    turned = isinstance(model.codec, DCTCodec)  # levels are bins of pixels, and their density is that of frequencies
    codec = model.codec.pixels if isinstance(model.codec, DCTCodec) else model.codec
    x_0, width = codec.encode(held_out["x"]).to(model.device), codec.bin_width
    denoiser = model.in_float32().guided(clip=False)  # a clipped x_0 gives what lies beyond the limits no density
    found = bits_per_dim_flow(
        denoiser, x_0, bin_width=width, encode=dct if turned else None, cond=cond, tolerance=ODE_TOLERANCE, seed=seed
    )
    scores = {
        **_bits(found.rows),
        "tolerance": ODE_TOLERANCE,
        "calls": found.calls,
        "dequantisation": "uniform, one draw a row" if width else "none",
    }
    if not turned:
        bound = _bits(bits_per_dim(denoiser, x_0, bin_width=width, cond=cond, draws=DRAWS, seed=seed).rows)
        scores |= {"bound_on_the_same_rows": bound["value"], "bound_standard_error": bound["standard_error"]}
    return scores


def _bits(rows: torch.Tensor) -> dict[str, float]:
    """Value, standard error and number of rows of each row's bits/dim (N,)."""
    metric = BitsPerDim()
    metric.update(rows.cpu().numpy())
    return metric.compute()


def evaluate(
    model: Model,
    splits: Splits,
    n: int = 1000,
    *,
    ode: int = 0,
    seed: int = 0,
    sampler: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """The scores of a model against its data; every one is stored with how it was measured.

    ode: held-out rows of the likelihood by the probability-flow ODE, which takes longest; 0 leaves it out.
    """
    check_ode(model, ode)
    say(f"{n} samples")
    samples = generate(model, n, seed=seed, sampler=sampler, steps=steps, guidance=guidance)
    return measure(model, splits, samples, ode=ode, say=say)[0]


def check_ode(model: Model, ode: int) -> None:
    """ValueError if a likelihood is asked of a model that has none."""
    if ode and (model.config.source or model.config.schedule["name"] == "cold"):
        raise ValueError("a bridge or cold diffusion has no prior, and so no likelihood: leave --ode out, or give 0")


def measure(
    model: Model, splits: Splits, samples: Samples, *, ode: int = 0, judged: bool = False, say: Say = lambda text: None
) -> tuple[dict[str, Any], Nearest]:
    """The scores of a model by its samples at hand, and how far each of them is from its nearest training row.

    judged: a classifier of these labels looks at the samples elsewhere, so none is fitted to the rows here.
    """
    held_out, train = some_rows(splits.held_out, BOUND_ROWS), some_rows(splits.train, TRAIN_ROWS)
    scores: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    if model.config.gaussian:
        say("bits/dim on held-out rows")
        with lap(seconds, "bits_per_dim"):
            bound = bound_of(model, splits)
        scores["bits_per_dim"] = {
            **_bits(bound.rows),
            "draws": DRAWS,
            "unit": "bits/dim" if model.codec.bin_width else "bits/dim of the standardised density",
        }
    if ode:
        say(f"bits/dim by the probability-flow ODE on {ode} held-out rows")
        with lap(seconds, "bits_per_dim_ode"):
            scores["bits_per_dim_ode"] = flow_bits_of(model, splits, ode)
    if model.config.kind == "picture" and splits.info.levels:
        histogram = HistogramBits(train["x"].numpy(), splits.info.levels)
        histogram.update(held_out["x"].numpy())
        scores["histogram_bits_per_dim"] = {"value": histogram.compute()}
        scores["uniform_bits_per_dim"] = {"value": float(np.log2(splits.info.levels))}
    scores["sampling"] = {**samples.settings, "milliseconds_per_sample": 1000 * samples.seconds / len(samples.x)}
    if samples.labels is not None and len(np.unique(train["label"])) > 1 and not judged:
        say("agreement with the asked-for labels")
        with lap(seconds, "agreement"):
            scores["agreement"] = agreement_of(samples.x, samples.labels, train, held_out)
    say("nearest training rows")
    with lap(seconds, "nearest"):
        levels = splits.info.levels if model.config.kind == "picture" else None
        near = nearest_of(*(_pixels(x, levels) for x in (samples.x, train["x"].numpy(), held_out["x"].numpy())))
    scores["nearest"] = {**summary(near), "unit": PIXELS if levels else VALUES}
    say("the same beside a fitted Gaussian")
    with lap(seconds, "gaussian"):
        scores["gaussian"] = beside_gaussian(model, train, held_out, _some(samples, GAUSSIAN_ROWS))
    scores["reference"] = {
        "data": model.config.data,
        "held_out": splits.info.rule,
        "n": len(samples.x),
        "threads": torch.get_num_threads(),
        "training_step": model.config.training.get("step"),
        "ema": model.config.training.get("ema"),
    }
    scores["seconds"] = {**seconds, "sampling": round(samples.seconds, 2)}
    return scores, near


def _pixels(x: np.ndarray, levels: int | None) -> np.ndarray:
    """Rows in the unit in which they are compared: of pictures all levels spread over 0..255."""
    return x if levels is None else spread(x, levels)


def _some(samples: Samples, most: int) -> Samples:
    labels = None if samples.labels is None else samples.labels[:most]
    return replace(samples, x=samples.x[:most], labels=labels)


def agreement_of(x: np.ndarray, labels: np.ndarray, train: dict[str, Any], held_out: dict[str, Any]) -> dict[str, Any]:
    judge = fit_judge(train["x"].numpy(), train["label"].numpy())
    metric = LabelAgreement(judge)
    metric.update(held_out["x"].numpy(), held_out["label"].numpy())
    accuracy = metric.compute()
    metric.reset()
    metric.update(x, labels)
    return {"value": metric.compute(), "judge": "support vector classifier", "judge_held_out_accuracy": accuracy}


def nearest_of(x: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> Nearest:
    """Of samples and held-out rows (N, ...): Euclidean distances to the nearest training row."""
    metric, found = NearestNeighbour(train), []
    for rows in (x, held_out):
        metric.reset()
        metric.update(rows)
        found.append(metric.compute())
    return Nearest(*found)


def summary(near: Nearest) -> dict[str, float]:
    """The numbers that are stored of these distances."""
    samples, real = near.samples, near.held_out
    return {
        "median": float(np.median(samples)),
        "held_out_median": float(np.median(real)),
        "nearest_twentieth": float(np.quantile(samples, 0.05)),
        "held_out_nearest_twentieth": float(np.quantile(real, 0.05)),
        "least": float(samples.min()),
        "held_out_least": float(real.min()),
    }


def table(scores: dict[str, Any]) -> list[tuple[str, str]]:
    """The scores as rows of (what, value) for a person."""
    sampling, rows = scores["sampling"], []
    if "bits_per_dim" not in scores and "gaussian" in scores:
        rows.append(("bits/dim by the bound", "none: it is of models of plain Gaussian noise"))
    if "bits_per_dim" in scores:
        bits = scores["bits_per_dim"]
        rows.append(("bits/dim, held-out (bound)", f"{bits['value']:.3f} ± {bits['standard_error']:.3f}"))
    if "bits_per_dim_ode" in scores:
        ode = scores["bits_per_dim_ode"]
        rows.append((f"  by the ODE, {ode['rows']} rows", f"{ode['value']:.3f} ± {ode['standard_error']:.3f}"))
        if "bound_on_the_same_rows" in ode:
            bound = f"{ode['bound_on_the_same_rows']:.3f} ± {ode['bound_standard_error']:.3f}"
            rows.append(("  the bound on the same rows, unclipped", bound))
    if "histogram_bits_per_dim" in scores:
        rows.append(("  per-pixel histogram", f"{scores['histogram_bits_per_dim']['value']:.3f}"))
        rows.append(("  uniform guess", f"{scores['uniform_bits_per_dim']['value']:.3f}"))
    if "agreement" in scores:
        found = scores["agreement"]
        rows.append((f"agreement with the labels, n = {sampling['n']}", f"{100 * found['value']:.1f} %"))
        rows.append(("  the judge on held-out rows", f"{100 * found['judge_held_out_accuracy']:.1f} %"))
    if "nearest" in scores:
        near = scores["nearest"]
        rows.append((nearest_title(near), f"{near['median']:.2f}"))
        rows.append(("  of held-out rows", f"{near['held_out_median']:.2f}"))
    if "gaussian" in scores:
        rows += gaussian_table(scores["gaussian"])
    if "energy" in scores:
        energy = scores["energy"]
        rows.append(
            (f"energy distance to the reference ({energy['unit']}), n = {energy['n']}", f"{energy['value']:.4f}")
        )
    if "by_features" in scores:
        rows += _feature_table(scores["by_features"])
    if "by_steps" in scores:
        found = scores["by_steps"]
        steps, values = (" ".join(f"{p[key]:.4g}" for p in found["points"]) for key in ("steps", "value"))
        rows.append((f"{found['score']} in {steps} steps, n = {found['n']}", values))
    if "milliseconds_per_sample" in sampling:
        steps = "its own" if sampling["steps"] is None else sampling["steps"]
        how = f"{sampling['sampler']}, {steps} steps, guidance {told(sampling['guidance'])}"
        rows.append((f"sampling ({how})", f"{sampling['milliseconds_per_sample']:.1f} ms a sample"))
    return rows


def _feature_table(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The scores by features, the floor behind the first of them."""
    first, *rest = by_features.table(found)
    if "floor" not in found:
        return [first, *rest]
    floor = found["floor"]
    own = (f"  of {floor['n']:,} real {floor['of']}", f"{floor['frechet']:.4g}")
    if floor["agreement"] is not None:
        rest.append((f"  agreement of real {floor['of']}", f"{100 * floor['agreement']:.1f} %"))
    return [first, own, *rest]
