"""Experiments: a table or figure of the literature each, computed anew from weights and data.

EXPERIMENTS is the whole table; a new experiment is one file and one row.  `reproduce(NAME)` writes

    OUT/NAME.png   OUT/NAME.csv   OUT/NAME.json   OUT/README.md      (and OUT/NAME.gif for a film; `report` says how)

To resume a run that was stopped, give the same command again.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sfumato.experiments import (
    assumptions,
    bound_terms,
    cfg_table,
    classifier_guidance,
    ddim_table,
    flow,
    forward_chain,
    interpolation,
    nll,
    progressive,
    reconstruction,
    reuse,
    reverse_film,
    schedules,
    solver_orders,
    solver_table,
    sweep,
    trilemma,
)
from sfumato.experiments.report import UNFINISHED, Report, Request, write
from sfumato.options import unknown


@dataclass(frozen=True)
class Experiment:
    """A row of EXPERIMENTS: what computes it, one line of what it shows, and the model it looks at by default.

    model is empty where an experiment trains its own models, or needs none.
    """

    run: Callable[[Request], Report]
    summary: str
    model: str = ""


EXPERIMENTS: dict[str, Experiment] = {
    "forward-chain": Experiment(forward_chain.run, "noise step by step against the closed form, mean and variance"),
    "schedules": Experiment(schedules.run, "linear, quadratic, cosine, sigmoid: betas, logSNR, cost, pictures"),
    "reverse-film": Experiment(
        reverse_film.run, "forward and reverse chain side by side: three drawings, digits", "digits"
    ),
    "bound-terms": Experiment(
        bound_terms.run, "L_T, every L_{t-1}, L_0 and lambda_t of a trained model, bits/dim", "digits"
    ),
    "progressive": Experiment(progressive.run, "the predicted x_0 as t falls (DDPM, figure 6)", "digits"),
    "interpolation": Experiment(
        interpolation.run, "two held-out pictures mixed at several t (DDPM, figures 8 and 9)", "digits"
    ),
    "solver-orders": Experiment(
        solver_orders.run, "error of every deterministic solver by steps and by calls, log-log"
    ),
    "assumptions": Experiment(assumptions.run, "eps, x0, v, flow, no time, blur: one budget, one score"),
    "nll": Experiment(
        nll.run, "linear and cosine x simple, hybrid, vlb: bits/dim and samples (Improved DDPM, table 2)"
    ),
    "flow": Experiment(flow.run, "paths straight or bent, with and without coupling: straightness, steps needed"),
    "reconstruction": Experiment(
        reconstruction.run, "encode and decode: error by steps, paths between latents (DDIM)", "digits"
    ),
    "ddim-table": Experiment(ddim_table.run, "score by steps and eta, beside DDIM's table 1", "mnist"),
    "solver-table": Experiment(solver_table.run, "score of every good sampler at 3 to 20 evaluations", "mnist"),
    "classifier-guidance": Experiment(
        classifier_guidance.run, "scale against agreement, distance, precision, recall (ADM, table 4)", "mnist"
    ),
    "cfg-table": Experiment(
        cfg_table.run, "classifier-free guidance by scale, in an interval, by a weaker model (Ho & Salimans)", "mnist"
    ),
    "reuse": Experiment(reuse.run, "deep features used again at neighbouring steps: error, time (DeepCache)", "mnist"),
    "sweep": Experiment(sweep.run, "which network a small recipe should have, by quality after equal time"),
    "trilemma": Experiment(
        trilemma.run, "VAE, GAN, flow, diffusion on one wall-clock: quality, diversity, speed in numbers"
    ),
}

__all__ = ["EXPERIMENTS", "Experiment", "Report", "Request", "reproduce"]


def reproduce(
    name: str,
    *,
    quick: bool = False,
    model: str | None = None,
    out: Path | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Compute experiment `name` and write its report; the folder it lies in (reports/NAME unless `out` is given).

    quick: fewer rows and steps, within 10 minutes on 2 cores.  model: a zoo name, a model folder or a run; by default
    the row's own.
    """
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    usual = EXPERIMENTS[name].model
    if model is not None and not usual:
        raise ValueError(f"experiment {name!r} looks at no trained model; leave --model out")
    where = Path("reports") / name if out is None else Path(out)
    request = Request(name, where, quick, usual if model is None else str(model), seed, say, usual)
    begun = time.perf_counter()
    report = EXPERIMENTS[name].run(request)
    write(request, report, time.perf_counter() - begun)
    shutil.rmtree(request.out / UNFINISHED, ignore_errors=True)
    return request.out
