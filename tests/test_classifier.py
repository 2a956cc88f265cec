"""A classifier's folder, what it is shown of noisy rows, and what the shipped ones are worth."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import sfumato
from sfumato import data, schedules
from sfumato.checkpoints import native
from sfumato.classifier import Classifier, ClassifierConfig, build_classifier, classifiers, load_classifier
from sfumato.data import Data
from sfumato.train.classifier import accuracy

from .nn.perturbed import perturbed
from .tiny import random_model

NEEDS_DATA = pytest.mark.skipif("SFUMATO_DATA" not in os.environ, reason="SFUMATO_DATA is unset: no real data")
OPTIONS = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4}


def made(schedule: str | None = None, time: str = "index", shape: tuple[int, ...] = (1, 8, 8)) -> Classifier:
    """A classifier of random weights, all of which speak."""
    config = ClassifierConfig(
        shape=shape,
        label_names=("a", "b", "c"),
        codec={"name": "pixels", "levels": 17},
        options=OPTIONS,
        schedule=schedule and schedules.from_spec(schedule).spec,
        time=time if schedule else "none",
        data={"name": "digits"},
    )
    torch.manual_seed(0)
    return Classifier(config, perturbed(build_classifier(config)), "a card\n")


def test_a_folder_gives_back_the_classifier(tmp_path: Path) -> None:
    classifier = made("cosine:steps=50")
    classifier.save(tmp_path / "one", half=False)
    again = load_classifier(tmp_path / "one")
    assert json.dumps(again.config.document()) == json.dumps(classifier.config.document())
    assert (again.config.shape, again.config.classes, again.card) == ((1, 8, 8), 3, "a card\n")
    x, t = torch.randn(4, 1, 8, 8), torch.tensor([0.02, 0.3, 0.7, 1.0])
    assert torch.equal(again.logits(x, t), classifier.logits(x, t))
    assert json.loads((tmp_path / "one" / "config.json").read_text())["format"] == "sfumato classifier 1"

    classifier.save(tmp_path / "half")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "one")]
    assert sizes[0] < 0.6 * sizes[1]
    torch.testing.assert_close(
        load_classifier(tmp_path / "half").logits(x, t), classifier.logits(x, t), atol=0.02, rtol=0.02
    )


@pytest.mark.parametrize(
    ("spec", "time", "told"),
    [
        ("cosine:steps=50", "index", lambda t: 50 * t - 1),
        ("cosine_continuous", "unit", lambda t: t),
        ("rectified", "unit", lambda t: t),
        ("edm:sigma_max=80", "c_noise", lambda t: (80 * t).log() / 4),
    ],
)
def test_the_network_sees_unit_scale_and_its_own_time(spec: str, time: str, told) -> None:  # type: ignore[no-untyped-def]
    classifier, schedule = made(spec, time), schedules.from_spec(spec)
    t = torch.tensor([0.1, 0.5, 0.94], dtype=torch.float64)
    x_t = torch.randn(3, 1, 8, 8)
    scale = (schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2).sqrt().float().reshape(-1, 1, 1, 1)
    torch.testing.assert_close(classifier.logits(x_t, t), classifier.net(x_t / scale, told(t).float()))


def test_the_gradient_flows_to_x_and_to_no_weight() -> None:
    classifier = made("cosine")
    x = torch.randn(2, 1, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(classifier.logits(x, torch.tensor([0.2, 0.9])).log_softmax(1)[:, 1].sum(), x)
    assert gradient.flatten(1).any(1).all()
    assert not any(p.requires_grad for p in classifier.net.parameters())


@pytest.mark.parametrize("schedule", [None, "cosine"])
def test_a_look_is_the_logits_of_the_clean_picture_whatever_the_batch(schedule: str | None) -> None:
    classifier = made(schedule, shape=(3, 8, 8))
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    features, log_probs = classifier.look(images)
    x_0 = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32)) / 127.5 - 1
    first = torch.zeros(7)  # the index of the first step, and all that a clean classifier is ever told
    torch.testing.assert_close(
        torch.from_numpy(log_probs), classifier.net(x_0, first).log_softmax(1), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(torch.from_numpy(features), classifier.net.features(x_0, first), atol=1e-5, rtol=1e-5)
    assert features.dtype == log_probs.dtype == np.float32
    assert (features.shape, log_probs.shape) == ((7, 16), (7, 3))
    np.testing.assert_allclose(np.exp(log_probs).sum(1), 1, atol=1e-6)
    for batch in (1, 3):
        for one, other in zip(classifier.look(images, batch), (features, log_probs), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    assert [part.shape for part in classifier.look(images[:0])] == [(0, 16), (0, 3)]


def test_what_does_not_fit_is_answered_in_one_line() -> None:
    clean, noisy = made(), made("cosine")
    x, t = torch.zeros(2, 1, 8, 8), torch.zeros(2)
    for ask, says in [
        (lambda: noisy.logits(x[:, :, :4], t), r"\(2, 1, 4, 8\).*\(B, 1, 8, 8\)"),
        (lambda: noisy.logits(x, t[:1]), r"t has shape \(1,\)"),
        (lambda: clean.logits(x, t + 0.5), "t = 0.5 came.*clean pictures only"),
        (lambda: clean.look(np.zeros((2, 28, 28, 1), np.uint8)), r"\(2, 28, 28, 1\).*\(N, 8, 8, 1\)"),
        (lambda: clean.look(np.zeros((2, 8, 8, 1), np.float32)), "float32.*uint8"),
        (lambda: load_classifier("mnits"), "unknown classifier 'mnits'"),
        (lambda: made("rectified", "index"), "index"),
        (lambda: made("cosine", "clock"), "unknown time 'clock'"),
    ]:
        with pytest.raises(ValueError, match=says) as error:
            ask()
        assert "\n" not in str(error.value)


def test_folders_of_another_kind_are_refused_by_name(tmp_path: Path) -> None:
    random_model().save(tmp_path / "denoiser")
    with pytest.raises(ValueError, match=r"is of a denoiser.*where a classifier is wanted"):
        load_classifier(tmp_path / "denoiser")
    made().save(tmp_path / "classifier")
    with pytest.raises(ValueError, match="classifier"):
        sfumato.load(tmp_path / "classifier")

    for name, edit, says in [
        ("foreign", {"colour": 3}, "foreign.*colour"),
        ("format", {"format": "sfumato classifier 9"}, "wanted 'sfumato classifier 1'"),
        ("options", {"options": {"channel": 3}}, "does not read as a config"),
        ("wider", {"options": {**OPTIONS, "channels": 16}}, "does not fit its config.json"),
        ("names", {"label_names": None}, "does not read as a config"),
    ]:
        shutil.copytree(tmp_path / "classifier", tmp_path / name)
        document = native.read_json(tmp_path / name / "config.json")
        native.write_json(tmp_path / name / "config.json", {**document, **edit})
        with pytest.raises(ValueError, match=says) as error:
            load_classifier(tmp_path / name)
        assert "\n" not in str(error.value)


def test_the_shipped_ones_are_all_there() -> None:
    assert set(classifiers()) == {"mnist", "mnist-noisy", "cifar10", "emoji"}


@pytest.mark.parametrize("name", sorted(classifiers()))
def test_each_shipped_one_is_small_and_says_how_it_was_made(name: str) -> None:
    classifier = load_classifier(name)
    assert (classifiers()[name] / "model.safetensors").stat().st_size <= 1_000_000
    assert 64 <= classifier.net.width <= 192
    for told in (f"command: `sfumato train {name}-classifier", "trained for", "data:", "held out:", "| clean |"):
        assert told in classifier.card, f"the card of {name} does not say {told!r}"
    assert (classifier.config.schedule is None) == ("noisy" not in name)


@NEEDS_DATA
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"), [("mnist", 0.993), ("mnist-noisy", 0.98), ("cifar10", 0.70), ("emoji", 0.60)]
)
def test_a_shipped_one_is_as_good_as_its_card_says(name: str, least: float) -> None:
    """Accuracy on the held-out rows, anew from the weights; 0.1 % for the order of float32 sums."""
    classifier = load_classifier(name)
    about = {key: value for key, value in classifier.config.data.items() if key not in ("source", "rule")}
    rows = data.load(Data(**about)).held_out
    said = re.search(r"\| clean \| ([0-9.]+)% \|", classifier.card)
    assert said
    found = accuracy(classifier, rows)
    assert found == pytest.approx(float(said[1]) / 100, abs=1e-3)
    assert found == pytest.approx(classifier.config.training["scores"]["accuracy"], abs=1e-3)
    assert found >= least
    for t, told in classifier.config.training["scores"].get("accuracy_by_t", {}).items():
        if t == "0.5":
            assert accuracy(classifier, rows, float(t)) == pytest.approx(told, abs=2e-3)
