"""Scores in one pass are the metrics' own, complete and ready for JSON; n is said, and FID of nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sfumato import data
from sfumato.metrics import (
    DensityCoverage,
    FeatureNetwork,
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    PrecisionRecall,
    Seen,
)
from sfumato.tasks import scores
from sfumato.tasks.scores import SMALL, caution, floor, pictures_of, real_pictures, reference, score, table


def look(images: np.ndarray) -> Seen:
    """Six random projections, and three classes that the first of them tell apart."""
    pixels = images.reshape(len(images), -1) / 255
    features = pixels @ np.random.default_rng(7).normal(size=(pixels.shape[1], 6))
    logits = 4 * features[:, :3]
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return Seen(features.astype(np.float32), log_probs.astype(np.float32))


STUB = FeatureNetwork("stub", "FD(stub)", look, ("a", "b", "c"), "sha")
IMAGENET = FeatureNetwork("other", "FD(other)", look)  # with classes, and not the data's
BLIND = FeatureNetwork("blind", "FD(blind)", lambda images: Seen(look(images).features, None))


def pictures(n: int, seed: int, most: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, most, (n, 5, 4, 1), dtype=np.uint8)


def test_every_score_is_its_metrics_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "BATCH", 13)
    images, real = pictures(50, 0, 200), pictures(70, 1)
    labels = np.arange(50) % 3
    found = score(images, reference(real, "test split, 70 rows", STUB), STUB, labels)
    x, y = look(images), look(real)
    expected = {}
    for name, metric in (
        ("frechet", FrechetDistance(y.features)),
        ("kernel", KernelDistance(y.features)),
        ("prc", PrecisionRecall(y.features, k=3)),
        ("dc", DensityCoverage(y.features, k=5)),
        ("is", InceptionScore()),
    ):
        metric.update(x.log_probs if name == "is" else x.features)
        expected[name] = metric.compute()
    assert found.pop("frechet") == pytest.approx(expected["frechet"], rel=1e-6)
    assert found.pop("kernel") == pytest.approx(expected["kernel"], rel=1e-6)
    sureness = found.pop("inception_score")
    assert sureness.pop("title") == "classifier score (stub)"
    assert sureness.pop("value") == pytest.approx(expected["is"]["value"], rel=1e-6)
    assert sureness == {"standard_deviation": None, "splits": 1}
    agreement = float((x.log_probs.argmax(1) == labels).mean())
    assert found == {
        "title": "FD(stub)",
        **expected["prc"],
        **expected["dc"],
        "agreement": agreement,
        "n": 50,
        "reference": "test split, 70 rows",
        "reference_n": 70,
        "features": "stub",
        "weights": "sha",
    }


def test_scores_are_json_and_a_second_score_forgets_the_first() -> None:
    known = reference(pictures(70, 1), "r", STUB)
    first = score(pictures(50, 0), known, STUB, np.zeros(50, int))
    score(pictures(40, 5, 30), known, STUB)
    assert score(pictures(50, 0), known, STUB, np.zeros(50, int)) == first
    assert json.loads(json.dumps(first)) == first


def test_networks_without_the_datas_classes() -> None:
    known = reference(pictures(70, 1), "r", BLIND)
    found = score(pictures(50, 0), known, BLIND, labels=np.zeros(50, int))
    assert found["inception_score"] is None
    assert found["agreement"] is None
    found = score(pictures(50, 0), reference(pictures(70, 1), "r", IMAGENET), IMAGENET, np.full(50, 9))
    assert found["inception_score"]["value"] > 1
    assert found["agreement"] is None
    assert score(pictures(50, 0), reference(pictures(70, 1), "r", STUB), STUB)["agreement"] is None


def test_the_floor_is_the_score_of_other_real_pictures() -> None:
    real = pictures(70, 1)
    known = reference(real, "r", STUB)
    assert floor(pictures(50, 2), known, STUB) == score(pictures(50, 2), known, STUB)
    assert floor(pictures(50, 2), known, STUB)["frechet"] < score(pictures(50, 2, 100), known, STUB)["frechet"]
    with pytest.raises(ValueError, match="the reference's own pictures"):
        floor(real.copy(), known, STUB)


def test_fewer_than_fifty_thousand_is_said() -> None:
    assert caution(1000).startswith("n = 1,000 is fewer than 50,000: scores of small n are biased upwards (Frechet)")
    assert caution(SMALL - 1)
    assert caution(SMALL) == ""
    said: list[str] = []
    known = reference(pictures(70, 1), "test split, 70 rows", STUB)
    found = score(pictures(50, 0), known, STUB, np.zeros(50, int), say=said.append)
    assert said[0].startswith(f"FD(stub) {found['frechet']:.4g}, n = 50, against test split, 70 rows (n = 50 is fewer")
    lines = dict(table(found))
    assert {"FD(stub), n = 50", "classifier score (stub), n = 50", "agreement with the labels (stub), n = 50"} <= set(
        lines
    )
    assert lines["note"] == caution(50)
    assert not any("FID" in "".join(line) for line in lines.items())
    assert "note" not in dict(table({**found, "n": SMALL}))


def test_refusals() -> None:
    known = reference(pictures(70, 1), "r", STUB)
    with pytest.raises(ValueError, match="the reference was seen by stub, the pictures by blind"):
        score(pictures(50, 0), known, BLIND)
    with pytest.raises(ValueError, match=r"labels came as \(3,\) for 50 pictures"):
        score(pictures(50, 0), known, STUB, np.zeros(3, int))
    with pytest.raises(ValueError, match="labels are 0 to 9, stub knows 0 to 2"):
        score(pictures(50, 0), known, STUB, np.arange(50) % 10)
    with pytest.raises(ValueError, match="3 rows were given"):
        score(pictures(3, 0), known, STUB)


def test_pictures_of_digits_are_spread_over_all_of_uint8() -> None:
    splits = data.load(data.Data("digits"))
    images = pictures_of(splits.train, 40, splits.info.levels)
    assert images.shape == (40, 8, 8, 1)
    assert images.dtype == np.uint8
    assert images.max() == 255
    every = splits.train.take(np.arange(40) * len(splits.train) // 40)["x"].numpy().astype(float)
    assert np.array_equal(images, np.rint(every.transpose(0, 2, 3, 1) * 255 / 16).astype(np.uint8))
    assert len(pictures_of(splits.train, len(splits.train), 17)) == len(splits.train)
    with pytest.raises(ValueError, match=r"values reach 16 and levels is 16; give .* splits\.info\.levels"):
        pictures_of(splits.train, 40, 16)
    assert np.array_equal(
        pictures_of(splits.held_out, 9999, 17), pictures_of(splits.held_out, len(splits.held_out), 17)
    )
    with pytest.raises(ValueError, match="0 pictures were asked for"):
        pictures_of(splits.held_out, 0, 17)


def test_dark_pictures_are_pictures(tmp_path: Path) -> None:
    dark = np.random.default_rng(0).integers(0, 20, (12, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "dark.npz", train_images=dark[:6], test_images=dark[6:])
    splits = data.load(data.Data("file", path=str(tmp_path / "dark.npz")))
    assert np.array_equal(pictures_of(splits.train, 6, splits.info.levels)[..., 0], dark[:6])


def test_of_fifty_thousand_the_classifier_score_is_of_ten_parts_with_all_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Labels come in turn, as `generate` asks for them."""
    monkeypatch.setattr(scores, "SMALL", 1000)
    images = np.zeros((1000, 5, 4, 1), dtype=np.uint8)
    images[np.arange(1000), np.arange(1000) % 5] = np.random.default_rng(0).integers(200, 256, (1000, 1, 1))

    def sure(x: np.ndarray) -> Seen:
        rows = x[..., 0].mean(2)
        log_probs = np.where(rows == rows.max(1, keepdims=True), 0.0, -np.inf)
        return Seen(rows.astype(np.float32), log_probs.astype(np.float32))

    network = FeatureNetwork("rows", "FD(rows)", sure)
    found = score(images, reference(pictures(70, 1), "r", network), network)["inception_score"]
    assert found["splits"] == 10
    assert found["value"] == pytest.approx(5, rel=0.05)  # one part a class would have 1


def test_rows_that_are_no_pictures_are_refused() -> None:
    splits = data.load(data.Data("breast_cancer"))
    with pytest.raises(ValueError, match="not pictures"):
        pictures_of(splits.train, 10, splits.info.levels)


class TestRealPictures:
    splits = data.load(data.Data("digits"))

    def test_they_have_their_classes_in_turn_and_are_disjoint(self) -> None:
        sets = real_pictures(self.splits.train, self.splits.info, 55, 3)
        assert len(sets) == 3
        rows = self.splits.train.take(np.arange(len(self.splits.train)))
        known = {x.tobytes(): int(c) for x, c in zip(rows["x"].numpy(), rows["label"].numpy(), strict=True)}
        for images, labels in sets:
            assert images.shape == (55, 8, 8, 1)
            assert np.array_equal(labels, np.arange(55) % 10)
            back = np.rint(images.transpose(0, 3, 1, 2) / (255 / 16)).astype(np.uint8)
            assert [known[x.tobytes()] for x in back] == labels.tolist()
        every = np.concatenate([images.reshape(55, -1) for images, _ in sets])
        assert len(np.unique(every, axis=0)) == len(every)

    def test_without_labels_or_with_too_few_of_a_class_they_are_evenly_spread(self) -> None:
        train, info = self.splits.train, self.splits.info
        unlabelled = replace(info, label_names=())
        assert np.array_equal(real_pictures(train, unlabelled, 40)[0][0], pictures_of(train, 40, 17))
        assert len(real_pictures(train, info, 10**6)[0][0]) == len(train)
        pairs = real_pictures(train, unlabelled, 40, 2)
        assert not np.array_equal(pairs[0][0], pairs[1][0])
        assert pairs[0][1] is None
