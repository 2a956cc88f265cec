"""What cannot be asked is said in one line, of the last subject too, before anything is sampled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sfumato
from sfumato import data
from sfumato.data import Info
from sfumato.guidance import Guide
from sfumato.metrics import FeatureNetwork, Seen
from sfumato.model import Model
from sfumato.nn import MLPConfig
from sfumato.tasks import asked as asking
from sfumato.tasks import scores
from sfumato.tasks.asked import LEAST_REFERENCE, Asked, settled
from sfumato.tasks.examine import examine_all
from sfumato.tasks.subjects import LEAST

from ..tiny import random_model, trained


def look(images: np.ndarray) -> Seen:
    return Seen(images.reshape(len(images), -1)[:, :3].astype(np.float32), None)


STUB = FeatureNetwork("stub", "FD(stub)", look)


@pytest.fixture
def _stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "feature_network", lambda name, weights=None: STUB)


def refused(names: list[str], asked: Asked, expected: str) -> None:
    said: list[str] = []
    with pytest.raises(ValueError, match=expected) as told:
        examine_all(names, asked, say=said.append)
    assert "\n" not in str(told.value)
    assert not said


def test_what_cannot_be_asked_is_said_before_sampling(tmp_path: Path) -> None:
    np.savez(tmp_path / "big.npz", images=np.zeros((20, 9, 9), np.uint8))
    np.savez(tmp_path / "a.npz", images=np.zeros((20, 8, 8), np.uint8))
    random_model(info=Info((2,), "vector", None), network=MLPConfig(width=16, depth=1)).save(tmp_path / "vectors")
    run, a, big, vectors = str(trained()), *(str(tmp_path / name) for name in ("a.npz", "big.npz", "vectors"))
    for names, asked, expected in (
        ([run], Asked(by_steps=(5, 21)), "steps must be a whole number from 1 to 20; got 21"),
        ([run], Asked(by_steps=(2,), sampler="rk45:tolerance=0.1"), "sampler rk45:.* chooses its own steps"),
        ([run], Asked(sampler="nothing"), "unknown sampler 'nothing'"),
        ([run], Asked(weights="w.pt"), "--weights w.pt came without --features"),
        ([run], Asked(features="nothing"), "features nothing are none of"),
        ([run], Asked(features="mnist"), r"looks at uint8 \(N, 28, 28, 1\)"),
        ([run], Asked(reference="nothing"), "unknown reference 'nothing'"),
        ([run], Asked(reference=big), r"its pictures are 8x8, those of the reference \(.*big.npz, 20 pictures\) 9x9"),
        ([run, big], Asked(), r"its pictures are 9x9, those of the reference \(test split of digits, 179 rows\) 8x8"),
        ([run, run], Asked(), "each named once"),
        ([run, vectors], Asked(), "makes vectors; only models of one kind can be compared"),
        ([a], Asked(), "pictures do not say which data they are like: give --reference .*npz$"),
        ([a], Asked(reference="digits", steps=5), "--steps is for models, and only pictures came"),
        ([vectors], Asked(features="mnist"), "--features is for pictures, and this model makes vectors"),
    ):
        refused(names, asked, expected)


@pytest.mark.parametrize("other", ["train", "digits:train", "a.npz"])
def test_without_features_every_reference_is_taken_for_the_energy_distance(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((20, 8, 8), np.uint8))
    monkeypatch.chdir(tmp_path)
    run = str(trained())
    for names in ([run], [run, str(trained() / "model")]):
        plan = settled(names, Asked(reference=other))
        assert plan.lens is None
        assert plan.held is not None
        assert plan.held.name.startswith("a.npz" if other == "a.npz" else "train split of digits")


def test_the_models_own_test_part_has_any_of_its_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((20, 8, 8), np.uint8))
    for reference in ("test", "digits", "digits:test"):
        held = settled([str(trained()), str(tmp_path / "a.npz")], Asked(reference=reference)).held
        assert held is not None
        assert held.name == "test split of digits, 179 rows"
    assert settled([str(tmp_path / "a.npz")], Asked(reference="digits:train")).lens is None


@pytest.mark.usefixtures("_stub")
def test_with_features_every_reference_is_taken() -> None:
    plan = settled([str(trained())], Asked(reference="train", features="stub"))
    assert plan.lens is not None
    assert plan.lens.held.name.startswith("train split of digits")


def test_the_last_subjects_mistakes_come_before_the_first_is_sampled(tmp_path: Path) -> None:
    """Its name is said; what its guidance, its sampler and its steps refuse is found by one row's first step."""
    random_model(info=Info((1, 8, 8), "picture", 17)).save(tmp_path / "unlabelled")
    random_model(schedule="cosine:steps=30").save(tmp_path / "longer")
    run, unlabelled, longer = str(trained()), str(tmp_path / "unlabelled"), str(tmp_path / "longer")
    refused([run, unlabelled], Asked(guide=lambda model: Guide(2.0)), f"^{unlabelled}: guidance 2 came, allowed is 1")
    refused([longer, run], Asked(steps=25), f"^{run}: steps must be a whole number from 1 to 20; got 25")

    def first_algorithm(model: Model) -> Guide:
        if model.denoiser.schedule.steps == 30:
            return Guide()
        return Guide(classifier=lambda x, t: x.flatten(1)[:, :10], algorithm=1)

    refused([longer, run], Asked(guide=first_algorithm), f"^{run}: .*ancestral")  # DDIM adds no tilt
    settled([longer, run], Asked(guide=first_algorithm, sampler="ancestral"))


def test_guidance_is_built_once_for_each_model() -> None:
    built: list[Model] = []
    guide = Guide(1.5)
    asked = Asked(guide=lambda model: built.append(model) or guide)  # type: ignore[func-returns-value]
    run = trained()
    plan = settled([str(run), str(run / "model")], asked)
    assert list(plan.guides.values()) == [guide, guide]
    assert built == [plan.subjects[str(run)], plan.subjects[str(run / "model")]]
    usual = sfumato.load(run).config.sampling.guidance
    assert settled([str(run)], Asked()).guides[str(run)] == Guide(usual)


@pytest.mark.usefixtures("_stub")
def test_too_few_pictures_for_scores_by_features_are_said_before(tmp_path: Path) -> None:
    for n in (3, 5, 20):
        np.savez(tmp_path / f"{n}.npz", images=np.zeros((n, 8, 8), np.uint8))
    run, three, five, twenty = str(trained()), *(str(tmp_path / f"{n}.npz") for n in (3, 5, 20))
    refused([run], Asked(n=3, features="stub"), f"{run}: 3 samples came, and scores by features need 4; give -n 4")
    refused([run, three], Asked(features="stub"), f"{three}: 3 samples came, and scores by features need 4")
    refused([twenty], Asked(reference=five, features="stub"), "5 pictures came, and scores by features need 6; take")
    settled([three], Asked(n=3, reference=five))  # by values


def test_the_fewest_that_are_taken_can_be_scored_and_no_fewer() -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 1), dtype=np.uint8)
    for n, held, fails in ((LEAST, LEAST_REFERENCE, False), (LEAST - 1, 20, True), (20, LEAST_REFERENCE - 1, True)):
        try:
            scores.score(images[:n], scores.reference(images[-held:], "r", STUB), STUB)
        except ValueError:
            assert fails
        else:
            assert not fails


def test_a_part_too_small_for_a_floor_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from sfumato.tasks import subjects

    splits = data.load(data.Data("digits"))
    monkeypatch.setattr(subjects, "LEAST", len(splits.held_out) + 1)
    assert subjects.against("train", data.Data("digits")).real is None
    assert subjects.against("test", data.Data("digits")).real is not None
