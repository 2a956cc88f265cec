"""Scores of pictures: every distance of a set of pictures to a reference, by one feature network, in one pass.

A score is nothing without its circumstances, so each is kept with the features' name, n, and the reference's name and
size.  Scores of small n are biased (a Frechet distance by about 1/n, upwards): they are compared at equal n only, with
the floor beside them, which is the same score of as many real pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sfumato.data import Info, Rows
from sfumato.data.rows import TableRows
from sfumato.metrics import (
    DensityCoverage,
    FeatureNetwork,
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    LabelAgreement,
    PrecisionRecall,
    Seen,
)
from sfumato.tasks.generate import spread

SMALL = 50_000  # what the literature scores: fewer are said
SPLITS = 10  # parts of an Inception Score in the literature, of 5,000 pictures each; fewer pictures are one part
BATCH = 512  # pictures looked at between updates


def caution(n: int) -> str:
    """What must be said beside a score of n pictures; nothing from 50,000 on."""
    if n >= SMALL:
        return ""
    return (
        f"n = {n:,} is fewer than {SMALL:,}: scores of small n are biased upwards (Frechet) "
        "and are compared only at equal n"
    )


@dataclass(frozen=True)
class Reference:
    """Real pictures uint8 (N, H, W, C) under a name ("test split of mnist, 10,000 rows"), and what a network saw."""

    name: str
    images: np.ndarray
    seen: Seen
    features: str

    @cached_property
    def metrics(self) -> tuple[FrechetDistance, KernelDistance, PrecisionRecall, DensityCoverage]:
        """The metrics against this reference, made once for all scores: its own half of the work is the larger one."""
        seen = self.seen.features
        return FrechetDistance(seen), KernelDistance(seen), PrecisionRecall(seen), DensityCoverage(seen)


def reference(images: np.ndarray, name: str, network: FeatureNetwork) -> Reference:
    """The pictures to be compared with, looked at once."""
    return Reference(name, images, network.look(images), network.name)


def pictures_of(rows: Rows, n: int, levels: int | None) -> np.ndarray:
    """At most n pictures of a part of a data set, as uint8 (n, H, W, C) with its levels over 0..255.

    They are evenly spread over the part, since rows may lie sorted by class; of a stream they are the first shuffled
    ones.  levels: `splits.info.levels`.  ValueError for rows that are no pictures, and for other levels.
    """
    if n < 1:
        raise ValueError(f"{n} pictures were asked for; allowed is 1 or more")
    if rows.count is None:
        x = np.asarray(next(rows.batches(0, n, augment=False))["x"])
    else:
        n = min(n, rows.count)
        x = np.asarray(rows.take(np.arange(n) * rows.count // n)["x"])
    if levels is None or x.dtype != np.uint8 or x.ndim != 4:
        raise ValueError(f"rows are {x.dtype} {x.shape[1:]}, not pictures; scores are of uint8 pictures (C, H, W)")
    if x.max() >= levels:
        raise ValueError(f"values reach {x.max()} and levels is {levels}; give the data's own, splits.info.levels")
    return spread(x, levels)


def labels_of(rows: Rows) -> np.ndarray:
    """The labels of all rows (N,), without their pictures where that can be."""
    if isinstance(rows, TableRows) and rows.labels is not None:
        return np.asarray(rows.labels[rows.part])
    return np.asarray(rows.take(np.arange(len(rows)))["label"])


def real_pictures(rows: Rows, info: Info, n: int, sets: int = 1) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """At most so many disjoint sets of n pictures of a part, uint8 (n, H, W, C), with their labels, for a `floor`.

    Of labelled data with classes in turn, as samples have them: features of a classifier are clusters, one a class, and
    sets drawn blindly differ by their shares of the classes more than by anything else.  Where a class has too few
    rows for that, and without labels, evenly spread over the part.
    """
    if rows.count is None:
        return [(pictures_of(rows, n, info.levels), None)]
    n, whole = min(n, rows.count), np.zeros(rows.count, dtype=np.int64)
    labels = labels_of(rows) if info.label_names else None
    told, counts = np.unique(whole if labels is None else labels, return_inverse=True, return_counts=True)[1:]
    if len(counts) * counts.min() < n:  # there are too few of a class: as they come
        told, counts = whole, np.array([rows.count])
    each = -(-n // len(counts))
    sets = min(sets, int(counts.min()) // each)
    even = [np.flatnonzero(told == c)[np.arange(each * sets) * k // (each * sets)] for c, k in enumerate(counts)]
    chosen = [np.stack([index[k::sets] for index in even], 1).ravel()[:n] for k in range(sets)]
    pictures = [spread(np.asarray(rows.take(index)["x"]), info.levels or 256) for index in chosen]
    return [(x, None if labels is None else labels[index]) for x, index in zip(pictures, chosen, strict=True)]


def _batches(n: int) -> Iterator[slice]:
    return (slice(start, min(start + BATCH, n)) for start in range(0, n, BATCH))


def score(
    images: np.ndarray,
    reference: Reference,
    network: FeatureNetwork,
    labels: np.ndarray | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """All scores of pictures uint8 (N, H, W, C) against a reference, ready for JSON, in one pass over the pictures.

    labels (N,): the asked-for ones, as numbers of the network's own classes (`network.own_labels`); without them, and
    for networks that know others, there is no agreement.  The Inception Score or classifier score is None for networks
    without classes.  ValueError if the reference was seen by another network.
    """
    _check(images, reference, network, labels)
    frechet, kernel, precision_recall, density_coverage = metrics = reference.metrics
    sureness = InceptionScore(SPLITS if len(images) >= SMALL else 1, len(images))
    agreement = LabelAgreement(lambda log_probs: log_probs.argmax(1))
    for metric in metrics:
        metric.reset()
    for part in _batches(len(images)):
        seen = network.look(images[part])
        for metric in metrics:
            metric.update(seen.features)
        if seen.log_probs is not None:
            sureness.update(seen.log_probs)
        if seen.log_probs is not None and labels is not None and network.classes:
            agreement.update(seen.log_probs, labels[part])
    scores = {
        "title": network.title,
        "frechet": frechet.compute(),
        "kernel": kernel.compute(),
        "inception_score": None
        if reference.seen.log_probs is None
        else {"title": network.classifier_title, **sureness.compute()},
        **precision_recall.compute(),
        **density_coverage.compute(),
        "agreement": agreement.compute() if agreement.seen else None,
        "n": len(images),
        "reference": reference.name,
        "reference_n": len(reference.images),
        "features": network.name,
        "weights": network.weights,
    }
    say(headline(scores))
    return scores


def _check(images: np.ndarray, reference: Reference, network: FeatureNetwork, labels: np.ndarray | None) -> None:
    if reference.features != network.name:
        raise ValueError(
            f"the reference was seen by {reference.features}, the pictures by {network.name}; use one network"
        )
    if labels is not None and labels.shape != (len(images),):
        raise ValueError(f"labels came as {labels.shape} for {len(images)} pictures; give one a picture")
    if labels is not None and network.classes and not (labels.min() >= 0 and labels.max() < network.classes):
        raise ValueError(
            f"labels are {labels.min()} to {labels.max()}, {network.name} knows 0 to {network.classes - 1}; "
            "take features of the same data"
        )


def floor(
    real_images: np.ndarray,
    reference: Reference,
    network: FeatureNetwork,
    labels: np.ndarray | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The scores of real pictures, as many as the samples: what a model as good as its data would have.

    ValueError for the reference's own pictures, which would score as if n were endless.
    """
    if real_images.shape == reference.images.shape and np.array_equal(real_images, reference.images):
        raise ValueError("the floor came with the reference's own pictures; take as many of the training part")
    return score(real_images, reference, network, labels, say)


def headline(scores: dict[str, Any]) -> str:
    """The Frechet distance in one line that says what it is: title, n, reference, and the caution."""
    line = f"{scores['title']} {scores['frechet']:.4g}, n = {scores['n']:,}, against {scores['reference']}"
    warned = caution(scores["n"])
    return f"{line} ({warned})" if warned else line


def table(scores: dict[str, Any]) -> list[tuple[str, str]]:
    """The scores as rows of (what, value) for a person, n beside the first."""
    kernel, n, by = scores["kernel"], f"n = {scores['n']:,}", scores["features"]
    found = [
        (f"{scores['title']}, {n}", f"{scores['frechet']:.4g}"),
        (f"kernel distance ({by}), {n}", f"{kernel['value']:.4g} ± {kernel['standard_error']:.2g}"),
        (f"precision, recall, {n}", f"{scores['precision']:.3f}, {scores['recall']:.3f}"),
        (f"density, coverage, {n}", f"{scores['density']:.3f}, {scores['coverage']:.3f}"),
    ]
    if scores["inception_score"]:
        found.append((f"{scores['inception_score']['title']}, {n}", f"{scores['inception_score']['value']:.3f}"))
    if scores["agreement"] is not None:
        found.append((f"agreement with the labels ({by}), {n}", f"{100 * scores['agreement']:.1f} %"))
    found.append(("reference", f"{scores['reference']} ({scores['reference_n']:,} pictures)"))
    if caution(scores["n"]):
        found.append(("note", caution(scores["n"])))
    return found
