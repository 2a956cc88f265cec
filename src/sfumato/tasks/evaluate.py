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

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sfumato.codecs import DCTCodec
from sfumato.data import Rows, Splits
from sfumato.degradations import dct
from sfumato.likelihood import bits_per_dim, bits_per_dim_flow
from sfumato.metrics import HistogramBits, LabelAgreement, NearestNeighbour, fit_judge
from sfumato.model import Model
from sfumato.tasks.gaussian import beside_gaussian, gaussian_table
from sfumato.tasks.generate import generate

TRAIN_ROWS = 10_000  # training rows that scores look at, the first ones
BOUND_ROWS = 1_000  # held-out rows of the bound
ODE_TOLERANCE = 1e-3  # a tenth of it changes the digits' bits by less than a third of a standard error of 100 rows
DRAWS = 40  # steps a row of the bound; a T-step sum in expectation


def _take(rows: Rows, most: int) -> dict[str, Any]:
    """The first rows, at most so many; of a stream, whose end is unknown, the first shuffled ones."""
    if rows.count is None:
        return next(rows.batches(0, most, augment=False))
    return rows.take(np.arange(min(rows.count, most)))


def bound_of(model: Model, splits: Splits, draws: int | None = DRAWS, rows: int = BOUND_ROWS, seed: int = 0) -> Any:
    """`likelihood.bits_per_dim` of the model, as it samples (clipped, unguided), on held-out rows."""
    held_out = _take(splits.held_out, rows)
    cond = {"label": held_out["label"].to(model.device)} if model.config.conditions.classes else None
    return bits_per_dim(
        model.guided(),
        model.codec.encode(held_out["x"]).to(model.device),
        bin_width=model.codec.bin_width,
        cond=cond,
        draws=draws,
        seed=seed,
    )


def flow_bits_of(model: Model, splits: Splits, rows: int, seed: int = 0) -> dict[str, Any]:
    """Bits/dim by the probability-flow ODE on the first held-out rows, and the bound, unclipped, on the same."""
    held_out = _take(splits.held_out, rows)
    cond = {"label": held_out["label"].to(model.device)} if model.config.conditions.classes else None
    turned = isinstance(model.codec, DCTCodec)  # levels are bins of pixels, and their density is that of frequencies
    codec = model.codec.pixels if isinstance(model.codec, DCTCodec) else model.codec
    x_0, width = codec.encode(held_out["x"]).to(model.device), codec.bin_width
    denoiser = model.guided(clip=False)  # a clipped x_0 gives what lies beyond the limits no density
    found = bits_per_dim_flow(
        denoiser, x_0, bin_width=width, encode=dct if turned else None, cond=cond, tolerance=ODE_TOLERANCE, seed=seed
    )
    scores = {
        "value": found.total,
        "standard_error": found.standard_error,
        "rows": len(found.rows),
        "tolerance": ODE_TOLERANCE,
        "calls": found.calls,
        "dequantisation": "uniform, one draw a row" if width else "none",
    }
    if not turned:
        bound = bits_per_dim(denoiser, x_0, bin_width=width, cond=cond, draws=DRAWS, seed=seed)
        scores |= {"bound_on_the_same_rows": bound.total, "bound_standard_error": bound.standard_error}
    return scores


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
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The scores of a model against its data; every one is stored with how it was measured.

    ode: held-out rows of the likelihood by the probability-flow ODE, which takes longest; 0 leaves it out.
    """
    say(f"{n} samples")
    samples = generate(model, n, seed=seed, sampler=sampler, steps=steps, guidance=guidance)
    held_out, train = _take(splits.held_out, BOUND_ROWS), _take(splits.train, TRAIN_ROWS)
    scores: dict[str, Any] = {}
    if model.config.gaussian:
        say("bits/dim on held-out rows")
        bound = bound_of(model, splits)
        scores["bits_per_dim"] = {
            "value": bound.total,
            "standard_error": bound.standard_error,
            "rows": len(bound.rows),
            "draws": DRAWS,
            "unit": "bits/dim" if model.codec.bin_width else "bits/dim of the standardised density",
        }
    if ode and (model.config.source or model.config.schedule["name"] == "cold"):
        raise ValueError("a bridge or cold diffusion has no prior, and so no likelihood: leave --ode out, or give 0")
    if ode:
        say(f"bits/dim by the probability-flow ODE on {ode} held-out rows")
        scores["bits_per_dim_ode"] = flow_bits_of(model, splits, ode)
    if model.config.kind == "picture" and splits.info.levels:
        histogram = HistogramBits(train["x"].numpy(), splits.info.levels)
        histogram.update(held_out["x"].numpy())
        scores["histogram_bits_per_dim"] = {"value": histogram.compute()}
        scores["uniform_bits_per_dim"] = {"value": float(np.log2(splits.info.levels))}
    scores["sampling"] = {**samples.settings, "milliseconds_per_sample": 1000 * samples.seconds / n}
    if samples.labels is not None and len(np.unique(train["label"])) > 1:
        say("agreement with the asked-for labels")
        scores["agreement"] = _agreement(samples.x, samples.labels, train, held_out)
    say("nearest training rows")
    scores["nearest"] = _nearest(samples.x, train["x"].numpy(), held_out["x"].numpy())
    say("the same beside a fitted Gaussian")
    scores["gaussian"] = beside_gaussian(model, train, held_out, samples)
    scores["reference"] = {
        "data": model.config.data,
        "held_out": splits.info.rule,
        "n": n,
        "threads": torch.get_num_threads(),
        "training_step": model.config.training.get("step"),
        "ema": model.config.training.get("ema"),
    }
    return scores


def _agreement(x: np.ndarray, labels: np.ndarray, train: dict[str, Any], held_out: dict[str, Any]) -> dict[str, Any]:
    judge = fit_judge(train["x"].numpy(), train["label"].numpy())
    metric = LabelAgreement(judge)
    metric.update(held_out["x"].numpy(), held_out["label"].numpy())
    accuracy = metric.compute()
    metric.reset()
    metric.update(x, labels)
    return {"value": metric.compute(), "judge": "support vector classifier", "judge_held_out_accuracy": accuracy}


def _nearest(x: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> dict[str, Any]:
    metric = NearestNeighbour(train)
    metric.update(x)
    samples = metric.compute()
    metric.reset()
    metric.update(held_out)
    real = metric.compute()
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
    if "bits_per_dim" not in scores:
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
    near = scores["nearest"]
    rows.append(("distance to the nearest training row (median)", f"{near['median']:.2f}"))
    rows.append(("  of held-out rows", f"{near['held_out_median']:.2f}"))
    if "gaussian" in scores:
        rows += gaussian_table(scores["gaussian"])
    how = f"{sampling['sampler']}, {sampling['steps']} steps, guidance {sampling['guidance']:g}"
    rows.append((f"sampling ({how})", f"{sampling['milliseconds_per_sample']:.1f} ms a sample"))
    return rows
