"""Records: every score alone, with all that says how it was measured; and what is said of scores side by side.

    name value error real real_n better n reference features sampler steps grid seed guidance ema seconds
    sampling_seconds

value is the samples' score, real that of real_n real pictures where it is known; better is "lower", "higher" or None,
which is near the real; seconds the wall-clock of the score, sampling_seconds that of its samples.  What a score has not
is None: bits/dim are of held-out rows, of the model unguided, and drawn by a seed of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sfumato.tasks.scores import SMALL, caution
from sfumato.tasks.subjects import TRAIN_ROWS

RECORDED = ("reference", "sampler", "steps", "grid", "seed", "guidance", "ema", "sampling_seconds")
UNSAMPLED = dict.fromkeys(("sampler", "steps", "grid", "guidance", "sampling_seconds"))  # of scores of held-out rows
BOUND_SEED = 0  # of the draws of bits/dim, which are the same whatever the samples' seed is
FOUND = {"precision": "higher", "recall": "higher", "density": None, "coverage": None}  # density may pass the real one
SURE = 2.0  # standard errors of a difference from which on it is one
SETTINGS = ("n", "reference", "sampler", "steps", "grid", "seed", "guidance", "features")  # alike in a fair comparison


def records(scores: Mapping[str, Any], how: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every score alone, with all that says how it was measured; `better` is "lower", "higher" or None."""
    told = {name: how[name] for name in RECORDED}
    return [
        {**told, "features": None, "n": how["n"], **row, "seconds": scores["seconds"].get(part)}
        for part, row in _rows(scores)
    ]


def nearest_title(found: Mapping[str, Any]) -> str:
    """What the median distance to the nearest training row is called, with its unit if that was stored."""
    unit = f"; {found['unit']}" if "unit" in found else ""
    return f"distance to the nearest training row (median{unit})"


def _row(name: str, value: float, better: str | None, real: float | None = None, **more: Any) -> dict[str, Any]:
    return {"name": name, "value": value, "error": None, "real": real, "real_n": None, "better": better, **more}


def _rows(scores: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(the part of the scores that a row comes from, the row)."""
    for part, what in (("bits_per_dim", "bits/dim (bound)"), ("bits_per_dim_ode", "bits/dim (ODE)")):
        if part in scores:
            found = scores[part]
            rest = {"error": found["standard_error"], "n": found["rows"], "reference": "held-out rows"}
            yield part, _row(what, found["value"], "lower", **rest, **UNSAMPLED, seed=BOUND_SEED)
    if "by_features" in scores:
        yield from _feature_rows(scores["by_features"])
    if "agreement" in scores:
        found = scores["agreement"]
        judge = {"reference": "the labels asked for", "features": found["judge"]}
        yield (
            "agreement",
            _row(
                f"label agreement ({found['judge']})",
                found["value"],
                "higher",
                found["judge_held_out_accuracy"],
                **judge,
            ),
        )
    if "nearest" in scores:
        found = scores["nearest"]
        among = {"reference": f"{TRAIN_ROWS:,} training rows, or fewer, evenly spread", "features": "values"}
        yield "nearest", _row(nearest_title(found), found["median"], None, found["held_out_median"], **among)
    if "energy" in scores:
        found = scores["energy"]
        rest = {"n": found["n"], "reference": found["reference"], "features": "values", "real_n": found.get("real_n")}
        yield "energy", _row(f"energy distance ({found['unit']})", found["value"], "lower", found.get("real"), **rest)
    energy = scores.get("gaussian", {}).get("energy")
    if energy and "energy" not in scores:  # of pictures there is the one that all subjects have
        rest = {"n": energy["n"], "reference": f"held-out rows, {energy['held_out_rows']:,}", "features": "codec units"}
        yield (
            "gaussian",
            _row("energy distance (codec units)", energy["model"], "lower", energy["training_rows"], **rest),
        )
    if "milliseconds_per_sample" in scores["sampling"]:
        taken = scores["sampling"]["milliseconds_per_sample"]
        yield "sampling", _row("milliseconds a sample", taken, "lower", reference=None)


def _feature_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    real = found.get("floor", {})
    by = {**{name: found[name] for name in ("n", "reference", "features")}, "real_n": real.get("n")}
    yield "by_features", _row(found["title"], found["frechet"], "lower", real.get("frechet"), **by)
    kernel = found["kernel"]
    rest = {"error": kernel["standard_error"]}
    its = real["kernel"]["value"] if real else None
    yield "by_features", {**_row(f"kernel distance ({by['features']})", kernel["value"], "lower", its, **by), **rest}
    sure = found["inception_score"]
    if sure:
        its = real["inception_score"]["value"] if real else None
        yield "by_features", _row(sure["title"], sure["value"], "higher", its, **by)
    for name, better in FOUND.items():
        yield "by_features", _row(f"{name} ({by['features']})", found[name], better, real.get(name), **by)
    if found["agreement"] is not None:
        what, its = f"label agreement ({by['features']})", real.get("agreement")
        yield "by_features", _row(what, found["agreement"], "higher", its, **by)


def shown(value: float | None, error: float | None = None) -> str:
    """A number for a table: four significant digits, its standard error behind it."""
    if value is None:
        return "–"
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


def cautions(hows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What must be said beside the scores of subjects: small n, few real pictures, and settings that are not alike."""
    said = _small(min(how["n"] for how in hows), any(how["features"] for how in hows))
    for how in hows:
        if how["real_n"] not in (None, how["n"]):
            said.append(
                f"the real data beside {how['subject']} are {how['real_n']:,} pictures, all there are, and its samples "
                f"{how['n']:,}: of fewer pictures a distance by features is larger"
            )
    for learned in dict.fromkeys(how["features_learned"] for how in hows if how.get("features_learned")):
        said.append(
            f"the features were learned from {learned}: of training pictures, and so of a floor made of them, they say "
            "too much good"
        )
    for name in SETTINGS:
        values = [how[name] for how in hows]
        if any(value != values[0] for value in values):
            each = ", ".join(f"{how['subject']}: {told(value)}" for how, value in zip(hows, values, strict=True))
            said.append(f"{name} is not the same for all ({each}), so their scores differ by that too")
    return said


def _small(n: int, by_features: bool) -> list[str]:
    """What is said of few samples, of whose bias nothing is known but that of scores by features."""
    if by_features or n >= SMALL:
        return [caution(n)] if caution(n) else []
    return [f"n = {n:,} is fewer than {SMALL:,}: scores of few samples are compared only at equal n"]


def told(value: Any) -> str:
    """A setting for a person."""
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {told(one)}" for key, one in value.items() if one is not None)
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def best(rows: Sequence[Mapping[str, Any] | None]) -> int | None:
    """Which of the records of one score is best, by more than SURE standard errors of its difference to each other one.

    None where that means nothing, where it is alone or measured otherwise than another, and where another may be as
    good.
    """
    there = [(k, row) for k, row in enumerate(rows) if row is not None]
    if len(there) < 2 or there[0][1]["better"] is None:
        return None
    if any(len({row[name] for _, row in there}) > 1 for name in ("n", "reference", "features")):
        return None
    sign = 1 if there[0][1]["better"] == "lower" else -1
    (which, first), *others = sorted(there, key=lambda one: sign * one[1]["value"])
    for _, row in others:
        error = math.hypot(first["error"] or 0.0, row["error"] or 0.0)
        if not sign * (row["value"] - first["value"]) > SURE * error:
            return None
    return which


def side_by_side(scores: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any] | None]]]:
    """(name, the record of each subject or None) of every score that any of them has, in order."""
    tables = [{row["name"]: row for row in one["records"]} for one in scores]
    names = list(dict.fromkeys(name for table in tables for name in table))
    return [(name, [table.get(name) for table in tables]) for name in names]
