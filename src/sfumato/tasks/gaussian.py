"""Beside a fitted Gaussian: has the network learned more of the data than their mean and covariance?

N(mu, S) has the mean and covariance of training rows in codec units, one for each class if the model is told classes;
its denoiser and samples are exact (`testbed`).  A linear denoiser can do no better on these rows, so

loss      mean of |eps error|^2 / D over held-out rows and t, both asked at the same x_t
energy    energy distance to held-out rows, of samples of both and of real training rows

are lower for the model exactly as far as it knows what is not linear.  A model that is told classes is asked for those
of the training rows, in their proportion, and so are its Gaussians.  Of a model that adds no plain Gaussian noise
(blurring, cold diffusion, bridges) only the energy distance is measured.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato import gaussian, times
from sfumato.denoiser import Denoiser
from sfumato.metrics import EnergyDistance
from sfumato.model import Model
from sfumato.noise import EPS, TIMES, philox
from sfumato.tasks.generate import Samples, generate
from sfumato.testbed import GaussianMixture

MOST_VALUES = 1024  # of a row: a covariance has their square
RIDGE = 1e-6  # added to the variances, so that a value that never varies does not stop the fit
PAIRS = 2048  # held-out (row, t, eps) that the loss is a mean of
BATCH = 64
PARTS = 5  # of the times, shown one by one


def beside_gaussian(model: Model, train: dict[str, Any], held_out: dict[str, Any], samples: Samples) -> dict[str, Any]:
    """The scores of the model and of the Gaussian fitted to `train`, on `held_out`; samples are the model's."""
    values = math.prod(model.config.shape)
    if values > MOST_VALUES:
        return {"skipped": f"a row has {values:,} values, more than {MOST_VALUES:,}"}
    x, y = (model.codec.encode(rows["x"]) for rows in (train, held_out))
    told = model.config.conditions.classes > 0
    classes = (train["label"], held_out["label"]) if told else (torch.zeros(len(x)).long(), torch.zeros(len(y)).long())
    fitted = {c: fit(x, classes[0] == c) for c in torch.cat(classes).unique().tolist()}
    return {
        "fitted_to": len(x),
        "gaussians": "one a class" if told else "one",
        **({"loss": _loss(model, fitted, y, classes[1])} if model.config.gaussian else {}),
        "energy": _energy(model, fitted, x, y, classes[0], samples),
    }


def fit(x: Tensor, which: Tensor) -> GaussianMixture:
    """The Gaussian of the rows x (N, ...) of a class, `which` (N,); of all rows if the class has none."""
    rows = (x[which] if which.any() else x).flatten(1).double()
    covariance = torch.cov(rows.T, correction=0).reshape(rows.shape[1], rows.shape[1])
    return GaussianMixture(torch.ones(1), rows.mean(0)[None], (covariance + RIDGE * torch.eye(len(covariance)))[None])


@torch.no_grad()
def _loss(model: Model, fitted: dict[int, GaussianMixture], y: Tensor, classes: Tensor) -> dict[str, Any]:
    schedule, shape = model.denoiser.schedule, y.shape[1:]
    exact = {c: mixture.denoiser(schedule, tuple(shape)) for c, mixture in fitted.items()}
    rows = torch.arange(PAIRS) % len(y)
    t, _ = times.stratified(torch.from_numpy(philox(0, TIMES).random(PAIRS)), schedule, None)
    eps = torch.from_numpy(philox(0, EPS).standard_normal((PAIRS, *shape), dtype=np.float32))
    x_t = gaussian.perturb(schedule, y[rows], t, eps)
    found = torch.zeros(2, PAIRS)

    def put(who: int, denoiser: Denoiser, where: Tensor, cond: dict[str, Tensor] | None, device: torch.device) -> None:
        there = {name: c[where].to(device) for name, c in (cond or {}).items()}
        predicted = denoiser(x_t[where].to(device), t[where].to(device), there).eps.cpu()
        found[who, where] = (predicted - eps[where]).square().flatten(1).mean(1)

    cond = {"label": classes[rows]} if model.config.conditions.classes else None
    for where in torch.arange(PAIRS).split(BATCH):
        put(0, model.denoiser, where, cond, model.device)
    for c, denoiser in exact.items():
        for where in (classes[rows] == c).nonzero()[:, 0].split(BATCH):
            put(1, denoiser, where, None, x_t.device)

    part = (t * PARTS).ceil().long().clamp(1, PARTS) - 1
    by_t = [found[:, part == k].mean(1).tolist() for k in range(PARTS)]
    names = ("model", "gaussian")
    return {
        **dict(zip(names, found.mean(1).tolist(), strict=True)),
        "pairs": PAIRS,
        "by_t": {name: [means[who] for means in by_t] for who, name in enumerate(names)},
    }


def _energy(
    model: Model, fitted: dict[int, GaussianMixture], x: Tensor, y: Tensor, classes: Tensor, samples: Samples
) -> dict[str, Any]:
    n, how = len(samples.x), samples.settings
    asked = classes[torch.arange(n) % len(classes)]
    if model.config.conditions.classes:  # those at hand have their classes in turn
        options = {name: how[name] for name in ("sampler", "steps", "grid", "seed")}
        samples = generate(model, n, label=asked.tolist(), guidance=samples.guide, **options)
    drawn = torch.empty(n, *x.shape[1:])
    for c in asked.unique().tolist():
        here = asked == c
        drawn[here] = fitted[c].sample(int(here.sum()), seed=how["seed"]).float().reshape(-1, *x.shape[1:])
    metric, found = EnergyDistance(y.numpy()), {}
    for name, rows in (
        ("model", model.codec.encode(torch.from_numpy(samples.x))),
        ("gaussian", model.codec.encode(model.codec.decode(drawn))),  # on the data's own levels, if there are any
        ("training_rows", x[:n]),
    ):
        metric.reset()
        metric.update(rows.numpy())
        found[name] = metric.compute()
    return {**found, "n": n, "held_out_rows": len(y)}


def gaussian_table(scores: dict[str, Any]) -> list[tuple[str, str]]:
    """What `beside_gaussian` found, as rows of (what, value)."""
    if "skipped" in scores:
        return [("beside a fitted Gaussian", f"skipped: {scores['skipped']}")]
    energy = scores["energy"]
    whose = "one fitted Gaussian a class" if scores["gaussians"] == "one a class" else "a fitted Gaussian"
    asked = " in the training rows' classes" if scores["gaussians"] == "one a class" else ""
    rows = _loss_table(scores["loss"], whose) if "loss" in scores else []
    return [
        *rows,
        (f"energy distance to held-out rows{asked}, n = {energy['n']}", f"{energy['model']:.4f}"),
        (f"  of {whose}", f"{energy['gaussian']:.4f}"),
        ("  of training rows", f"{energy['training_rows']:.4f}"),
    ]


def _loss_table(loss: dict[str, Any], whose: str) -> list[tuple[str, str]]:
    parts = {name: " ".join(f"{mean:.3f}" for mean in means) for name, means in loss["by_t"].items()}
    return [
        ("denoising loss, held-out (eps, mean over t)", f"{loss['model']:.4f}"),
        (f"  of {whose}", f"{loss['gaussian']:.4f}"),
        (f"  in {PARTS} equal parts of t, from 0 to 1", parts["model"]),
        (f"  of {whose}", parts["gaussian"]),
    ]
