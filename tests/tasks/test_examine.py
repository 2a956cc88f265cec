"""Examine: scores that say truly how they were measured, of samples and of pictures that others made."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import sfumato
from sfumato import data
from sfumato.guidance import Guide
from sfumato.metrics import EnergyDistance, FeatureNetwork, Seen
from sfumato.processes import Share
from sfumato.tasks import examine as examining
from sfumato.tasks import generate, write
from sfumato.tasks import scores as by_features
from sfumato.tasks.asked import Asked, reference_of
from sfumato.tasks.evaluate import table
from sfumato.tasks.examine import Evaluation, chosen, examine, examine_all, sampled
from sfumato.tasks.records import side_by_side
from sfumato.tasks.subjects import Against, Lens, Pictures, scattered

from ..tiny import trained


def stub(images: np.ndarray) -> Seen:
    x = images.reshape(len(images), -1).astype(np.float32) / 255
    return Seen(np.stack([x[:, k::5].mean(1) for k in range(5)], 1), None)


STUB = FeatureNetwork("stub", "FD(stub)", stub, weights="0123abcd")


@cache
def examined() -> Evaluation:
    asked = Asked(n=24, seed=5, ode=2, by_steps=(2, 7))
    model = sfumato.load(trained())
    held = reference_of(model, asked)
    assert held is not None
    return examine("tiny", model, sampled(model, Guide(), asked), asked, held, Lens(STUB, held))


@pytest.mark.slow
def test_every_score_is_stored_with_all_that_says_how_it_was_measured() -> None:
    scores = json.loads(json.dumps(examined().scores))
    names = [row["name"] for row in scores["records"]]
    for wanted in ("bits/dim", "FD(stub)", "kernel", "precision", "recall", "density", "coverage", "label agreement"):
        assert any(name.startswith(wanted) for name in names), wanted
    settings = ("sampler", "steps", "grid", "seed", "guidance")
    for row in scores["records"]:
        assert row.keys() == {
            *("name", "value", "error", "real", "real_n", "better", "n", "reference", "features", "seconds"),
            *("sampler", "steps", "grid", "seed", "guidance", "ema", "sampling_seconds"),
        }
        assert row["n"] > 0
        assert row["ema"] == 0.05
        assert row["seconds"] >= 0
        if row["name"].startswith("bits/dim"):  # of held-out rows, unguided, drawn by their own seed
            assert [row[name] for name in settings] == [None, None, None, 0, None]
            assert row["reference"] == "held-out rows"
            assert row["sampling_seconds"] is None
        else:
            assert [row[name] for name in settings] == ["ddim", 4, row["grid"], 5, 1.0]
            assert row["grid"]
            assert row["sampling_seconds"] > 0
            assert (row["reference"] is None) == (row["name"] == "milliseconds a sample")
    assert sum(name.startswith("bits/dim") for name in names) == 2
    fd = scores["records"][names.index("FD(stub)")]
    assert (fd["n"], fd["features"], fd["reference"]) == (24, "stub", "test split of digits, 179 rows")
    assert fd["value"] == scores["by_features"]["frechet"]
    assert (fd["real"], fd["real_n"]) == (scores["by_features"]["floor"]["frechet"], 24)
    assert scores["by_features"]["floor"]["n"] == 24
    how = scores["how"]
    assert (how["threads"], how["processes"], how["n"], how["features"]) == (torch.get_num_threads(), 1, 24, "stub")
    assert (how["weights"], how["real_n"], how["chosen"]) == ("0123abcd", 24, None)
    assert how["sfumato"] == "0.1.0"


@pytest.mark.slow
def test_scores_by_features_and_by_steps_are_those_of_the_samples() -> None:
    """The same as asked of `scores` directly, with samples made anew."""
    found, model = examined(), sfumato.load(trained())
    splits = data.load(model.config.trained_on)
    held_out = by_features.pictures_of(splits.held_out, len(splits.held_out), 17)
    seen = by_features.reference(held_out, "r", STUB)
    for steps, n in ((4, 24), (2, 24), (7, 24)):
        samples = generate(model, n, seed=5, steps=steps)
        direct = by_features.score(samples.images(), seen, STUB)["frechet"]
        points = {p["steps"]: p["value"] for p in found.scores["by_steps"]["points"]}
        assert direct == pytest.approx(
            found.scores["by_features"]["frechet"] if steps == 4 else points[steps], rel=1e-9
        )
    floor = by_features.floor(by_features.real_pictures(splits.train, splits.info, 24)[0][0], seen, STUB)
    assert found.scores["by_features"]["floor"]["frechet"] == pytest.approx(floor["frechet"])
    assert found.scores["by_steps"]["real"] == pytest.approx(floor["frechet"])
    assert found.scores["by_steps"]["real_n"] == 24
    words = dict(table(found.scores))
    assert words["FD(stub), n = 24"] == f"{found.scores['by_features']['frechet']:.4g}"
    assert "fewer than 50,000" in words["note"]
    assert "  of 24 real training pictures" in words


@pytest.mark.parametrize("rank", [0, 1])
def test_all_subjects_are_sampled_before_any_is_scored(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the processes that help would wait, in the second's samples, for the one that scores the first."""
    said: list[str] = []

    def fails(*given: object, **more: object) -> None:
        raise ValueError("scored")

    monkeypatch.setattr(examining, "measure", fails)
    monkeypatch.setattr(sys.modules[Share.__module__], "joined", lambda mine, n, share: mine)
    run, same = str(trained()), str(trained() / "model")
    names, asked = [run, same], Asked(n=4, by_steps=(3,))
    if rank == 0:
        with pytest.raises(ValueError, match="scored"):
            examine_all(names, asked, share=Share(0, 2), say=said.append)
    else:
        assert examine_all(names, asked, share=Share(1, 2), say=said.append) == []
    assert said == [f"{name}: {text}" for name in names for text in ("4 samples", "4 samples in each of 3 steps")]


# pictures: classes that lie sorted, and what judges them --------------------------------------------------------------

NAMES = ("zero", "one", "two")


def drawn(labels: np.ndarray, seed: int) -> np.ndarray:
    """Pictures (N, 6, 6, 1) as bright as their class."""
    noise = np.random.default_rng(seed).integers(0, 30, (len(labels), 6, 6, 1))
    return (labels[:, None, None, None] * 80 + 20 + noise).astype(np.uint8)


def judge(names: tuple[str, ...]) -> FeatureNetwork:
    """A network that knows every class, in the order of these names, of which some may be none of NAMES."""

    def look(images: np.ndarray) -> Seen:
        read = np.rint((images.mean((1, 2, 3)) - 35) / 80).astype(int)
        place = [names.index(name) if name in names else 0 for name in NAMES]
        log_probs = np.full((len(images), len(names)), -9.0, np.float32)
        log_probs[np.arange(len(images)), np.array(place)[read]] = 0
        return Seen(images.reshape(len(images), -1)[:, :4].astype(np.float32), log_probs)

    return FeatureNetwork("judge", "FD(judge)", look, names)


@cache
def held() -> Against:
    """A reference, and 40 real pictures, the half of which bear the label of another class."""
    train, some = np.arange(90) % 3, np.arange(40) % 3
    real = drawn(some, 2), np.where(np.arange(40) < 20, some, (some + 1) % 3)
    reference, held_out = drawn(np.arange(60) % 3, 3), drawn(np.arange(30) % 3, 4)
    return Against("a test part", reference, lambda n: real, "training", held_out, drawn(train, 5), train, NAMES)


def of_pictures(pictures: Pictures, lens: Lens | None, n: int = 30, against: Against | None = None) -> Evaluation:
    asked, against = Asked(n=n), against or held()
    return examine(pictures.name, pictures, chosen(pictures, asked, against), asked, against, lens)


def pictures(n: int = 30) -> Pictures:
    labels = np.arange(n) % 3
    return Pictures("a", drawn(labels, 6), labels, NAMES, {})


def test_agreement_is_by_the_names_of_the_classes_and_stands_beside_that_of_real_pictures() -> None:
    found = of_pictures(pictures(), Lens(judge(("two", "zero", "one")), held())).scores
    assert found["by_features"]["agreement"] == 1
    assert found["by_features"]["floor"]["agreement"] == 0.5
    row = next(row for row in found["records"] if row["name"] == "label agreement (judge)")
    assert (row["value"], row["real"], row["real_n"]) == (1, 0.5, 40)
    assert "agreement" not in found  # no second judge
    assert found["how"]["real_n"] == 40


def test_a_network_of_other_classes_judges_nothing() -> None:
    """Of as many, too: its log-probabilities are about others."""
    found = of_pictures(pictures(), Lens(judge(("zero", "one", "shirt")), held())).scores
    assert found["by_features"]["agreement"] is None
    assert found["by_features"]["floor"]["agreement"] is None
    assert found["agreement"]["value"] == 1  # by the support vector classifier


def test_of_sorted_pictures_some_of_every_class_are_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """n of them, evenly spread; so is the part of a sorted reference whose energy distance is taken."""
    monkeypatch.setattr(examining, "BOUND_ROWS", 30)
    monkeypatch.setattr(examining, "GAUSSIAN_ROWS", 12)
    labels = np.arange(300) // 100
    mine = Pictures("sorted", drawn(labels, 7), labels, NAMES, {})
    reference = Against("sorted too", drawn(np.arange(90) // 30, 8))
    found = of_pictures(mine, None, 30, reference)
    assert np.bincount(found.samples.labels, minlength=3).tolist() == [10, 10, 10]  # type: ignore[arg-type]
    assert np.array_equal(found.samples.images(), mine.images[scattered(300, 30)])
    assert found.scores["how"]["chosen"] == "30 of 300, evenly spread"
    x, y = mine.images[scattered(300, 30)], reference.images[scattered(90, 30)]
    pairs = [(part / 127.5 - 1).astype(np.float32) for part in (x[scattered(30, 12)], y)]
    metric = EnergyDistance(pairs[1].transpose(0, 3, 1, 2))
    metric.update(pairs[0].transpose(0, 3, 1, 2))
    assert found.scores["energy"]["value"] == pytest.approx(metric.compute())
    row = next(row for row in found.scores["records"] if row["name"].startswith("energy"))
    assert row["reference"] == "sorted too, 30 of them evenly spread"

    said: list[str] = []
    np.savez(tmp_path / "sorted.npz", images=mine.images, labels=labels)
    np.savez(tmp_path / "too.npz", images=reference.images)
    asked = Asked(n=30, reference=str(tmp_path / "too.npz"))
    (again,) = examine_all([str(tmp_path / "sorted.npz")], asked, say=said.append)
    assert again.scores["energy"] == {**found.scores["energy"], "reference": again.scores["energy"]["reference"]}
    assert "30 of 300, evenly spread" in said
    whole = of_pictures(mine, None, 300, reference).scores["how"]
    assert whole["chosen"] is None


def test_a_models_own_samples_in_a_file_have_its_scores_by_values(tmp_path: Path) -> None:
    """In the same rows, in the same unit, though its data have 17 levels; and so they have beside any reference."""
    run = str(trained())
    file, other = str(tmp_path / "its.npz"), str(tmp_path / "other.npz")
    write(generate(sfumato.load(trained()), 24), Path(file))
    write(generate(sfumato.load(trained()), 30, seed=100), Path(other))
    for reference, real in (("digits", True), (other, False)):
        asked = Asked(n=24, ode=0, by_steps=(), reference=reference)
        compared = side_by_side([one.scores for one in examine_all([run, file], asked)])
        rows = dict(compared)
        for name in (
            "distance to the nearest training row (median; pixels, 0 to 255)",
            "energy distance (pixels, -1 to 1)",
        ):
            mine, its = rows[name]
            assert mine is not None
            assert its is not None
            assert mine["value"] == pytest.approx(its["value"], rel=1e-9)
            assert {key: mine[key] for key in ("n", "reference", "features")} == {
                key: its[key] for key in ("n", "reference", "features")
            }
        assert len([name for name in rows if name.startswith("energy")]) == 1
        energy = rows["energy distance (pixels, -1 to 1)"][0]
        assert energy is not None
        assert (energy["real"] is not None) == real
        assert energy["real_n"] == (24 if real else None)
