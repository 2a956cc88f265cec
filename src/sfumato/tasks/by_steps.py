"""The score by number of steps: the same seeds, walked in few steps and in many, beside real data of the same n.

    {"score", "n", "reference", "sampling": {sampler, grid, seed, guidance, n}, "real", "real_n",
     "points": [{"steps", "value", "milliseconds_per_sample"}, ...]}

By a feature network it is the Frechet distance; without one the energy distance of the values, in codec units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sfumato.data import Rows, Splits
from sfumato.metrics import EnergyDistance
from sfumato.model import Model
from sfumato.tasks import scores
from sfumato.tasks.generate import Samples
from sfumato.tasks.subjects import HELD_OUT_ROWS, Lens, some_rows


def by_features(walks: Mapping[int, Samples], lens: Lens) -> dict[str, Any]:
    """The Frechet distance of the samples made in each number of steps."""
    held, network, seen = lens.held, lens.network, lens.seen
    n = len(next(iter(walks.values())).x)
    points = _points(walks, lambda samples: scores.score(samples.images(), seen, network)["frechet"])
    floor = scores.floor(held.real(n)[0], seen, network) if held.real else {"frechet": None, "n": None}
    beside = {"real": floor["frechet"], "real_n": floor["n"]}
    about = {"score": network.title, "n": n, "reference": held.name, "sampling": _sampling(walks)}
    return {**about, **beside, "points": points}


def by_values(model: Model, splits: Splits, walks: Mapping[int, Samples]) -> dict[str, Any]:
    """Their energy distance to held-out rows."""
    held_out, n = some_rows(splits.held_out, HELD_OUT_ROWS)["x"], len(next(iter(walks.values())).x)
    metric = EnergyDistance(model.codec.encode(held_out).numpy())

    def score(x: Tensor) -> float:
        metric.reset()
        metric.update(model.codec.encode(x).numpy())
        return metric.compute()

    real = _spread_over(splits.train, n)
    return {
        "score": "energy distance",
        "n": n,
        "reference": f"held-out rows, {len(held_out):,}",
        "sampling": _sampling(walks),
        "real": score(real),
        "real_n": len(real),
        "points": _points(walks, lambda samples: score(torch.from_numpy(samples.x))),
    }


def _sampling(walks: Mapping[int, Samples]) -> dict[str, Any]:
    """How all of them were made."""
    settings = next(iter(walks.values())).settings
    return {name: value for name, value in settings.items() if name != "steps"}


def _points(walks: Mapping[int, Samples], score: Callable[[Samples], float]) -> list[dict[str, float]]:
    return [
        {"steps": steps, "value": score(x), "milliseconds_per_sample": 1000 * x.seconds / len(x.x)}
        for steps, x in walks.items()
    ]


def _spread_over(rows: Rows, n: int) -> Tensor:
    found: Tensor = some_rows(rows, n)["x"]
    return found
