"""A guidance by names: what fits is loaded and brought to the model's schedule, what does not is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.classifier import Classifier, ClassifierConfig, build_classifier
from sfumato.corruptions import from_spec
from sfumato.guidance import Guide
from sfumato.model import Model, load
from sfumato.tasks.guide import guide

from ..tiny import random_model, tiny


def classifier_like(model: Model, folder: Path, **changes: Any) -> str:
    """The folder of a classifier of random weights that fits the model, but for the changes."""
    asked = {
        "shape": model.config.shape,
        "label_names": model.config.label_names,
        "codec": model.config.codec,
        "options": {"channels": 8, "multipliers": (1,), "blocks": 1, "groups": 4},
        "schedule": model.config.schedule,
        "time": "index",
    }
    config = ClassifierConfig(**{**asked, **changes})
    torch.manual_seed(0)
    net = build_classifier(config)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    Classifier(config, net).save(folder)
    return str(folder)


def weaker(model: Model, folder: Path, **changes: Any) -> str:
    Model(replace(model.config, **changes), model.net).save(folder)
    return str(folder)


def test_a_scale_alone_is_a_scale_alone() -> None:
    model = load("digits")
    assert guide(model) == Guide(1.0)
    assert guide(model, 2.0, interval=(0.1, 0.8), mix="apg:eta=0") == Guide(2.0, 0.1, 0.8, "apg:eta=0")


@pytest.mark.parametrize("told", [{"weak": "digits"}, {"mix": "apg"}, {"interval": (0.1, 0.9)}])
def test_what_would_do_nothing_is_refused(told: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="w is 1, which is none"):
        guide(load("digits"), **told)


def test_a_weaker_model_pulls_the_other_way_whatever_its_schedule(tmp_path: Path) -> None:
    model = random_model(tiny(schedule="cosine"))
    assert torch.equal(
        model.sample(3, steps=3, guidance=guide(model, 2.0, weak=weaker(model, tmp_path / "same"))),
        model.sample(3, steps=3),
    )
    other = random_model(tiny(schedule="linear"))
    other.save(tmp_path / "linear")
    found = guide(model, 2.0, weak=str(tmp_path / "linear"))
    assert found.weak is not None
    assert found.weak.schedule.spec == model.denoiser.schedule.spec
    assert not torch.equal(model.sample(3, steps=3, guidance=found), model.sample(3, steps=3))
    assert found.document()["weak"] == str(tmp_path / "linear")


def test_a_classifier_steers_whatever_its_schedule(tmp_path: Path) -> None:
    model = random_model(tiny(schedule="cosine"))
    plain = model.sample(3, steps=3, guidance=0.0)
    for schedule in ("cosine", "linear"):
        spec = from_spec(schedule).spec
        name = classifier_like(model, tmp_path / schedule, schedule=spec)
        found = guide(model, 0.0, classifier=name, classifier_scale=50.0)
        assert not torch.equal(model.sample(3, steps=3, guidance=found), plain)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schedule": None, "time": "none"}, "noise-aware"),
        ({"label_names": tuple("abcdefghij")}, "label_names"),
        ({"label_names": tuple("012")}, "label_names"),
        ({"codec": {"name": "pixels", "levels": 256}}, "codec"),
        ({"shape": (1, 6, 6)}, "shape"),
    ],
)
def test_a_classifier_of_other_data_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    model = random_model()
    name = classifier_like(model, tmp_path / "classifier", **changes)
    with pytest.raises(ValueError, match=says):
        guide(model, classifier=name)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"label_names": tuple("abcdefghij")}, "label_names"), ({"codec": {"name": "pixels", "levels": 256}}, "codec")],
)
def test_a_weaker_model_of_other_data_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    model = random_model()
    with pytest.raises(ValueError, match=says):
        guide(model, 2.0, weak=weaker(model, tmp_path / "weak", **changes))


@pytest.mark.parametrize(
    "run",
    [
        tiny(schedule="cold:degradation=blur", target="x0", time="unit", loss=replace(tiny().loss, weighting="x0")),
        tiny(schedule="blurring:height=8,width=8", codec="dct", time="unit", loss=replace(tiny().loss, weighting="x0")),
        tiny(
            schedule="rectified",
            target="flow",
            time="unit",
            loss=replace(tiny().loss, kind="meanflow", times="logit_normal"),
        ),
    ],
)
def test_other_processes_are_steered_by_no_classifier(tmp_path: Path, run: Any) -> None:
    model = random_model(run)
    name = classifier_like(random_model(), tmp_path / "classifier")
    with pytest.raises(ValueError, match="plain Gaussian noise"):
        guide(model, classifier=name)
    random_model().save(tmp_path / "weak")
    with pytest.raises(ValueError, match=r"must be alike|plain Gaussian noise"):
        guide(model, 2.0, weak=str(tmp_path / "weak"))
