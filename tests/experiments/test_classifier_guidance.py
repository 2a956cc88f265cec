"""classifier-guidance: scale 0 is no guidance bit for bit, what is refused, what Gaussians say, words and numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from sfumato.classifier import Classifier, ClassifierConfig, build_classifier
from sfumato.experiments import classifier_guidance, guided_gaussians
from sfumato.experiments.classifier_guidance import ANCESTRAL, ARMS, CONDITIONAL, DDIM, Size
from sfumato.experiments.published import ADM
from sfumato.experiments.report import Report, Request, write
from sfumato.experiments.sampled import bench
from sfumato.experiments.tradeoff import VALUES, Point, Real, at
from sfumato.metrics.features import FeatureNetwork, Seen
from sfumato.model import Model, load

STEPS, N = 5, 20
FEW = (0.0, 1.0, 10.0)


def look(images: np.ndarray) -> Seen:
    """Four means of quarters, and ten classes that are a fixed function of them."""
    x = images.reshape(len(images), 2, 4, 2, 4).mean((2, 4)).reshape(len(images), 4).astype(np.float32) / 255
    logits = 8 * x @ np.random.default_rng(0).standard_normal((4, 10)).astype(np.float32)
    return Seen(x, logits - np.log(np.exp(logits).sum(1, keepdims=True)))


def classifier_of(model: Model) -> Classifier:
    """Random weights, of the model's shape and schedule."""
    config = ClassifierConfig(
        shape=model.config.shape,
        label_names=model.config.label_names,
        codec=model.config.codec,
        options={"channels": 8, "multipliers": (1,), "blocks": 1, "groups": 4},
        schedule=model.config.schedule,
        time="index",
    )
    net = build_classifier(config)
    generator = torch.Generator().manual_seed(0)
    for p in net.parameters():
        p.data = 0.2 * torch.randn(p.shape, generator=generator)
    return Classifier(config, net)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {curve: replace(arm, scales=FEW) for curve, arm in ARMS.items()}
    network = FeatureNetwork("stub", "FD(stub)", look, tuple("0123456789"))
    monkeypatch.setattr(classifier_guidance, "ARMS", arms)
    monkeypatch.setattr(classifier_guidance, "SCALES", FEW[:2])  # of the Gaussians
    monkeypatch.setattr(classifier_guidance, "QUICK", Size(N, STEPS, STEPS, STEPS))
    monkeypatch.setattr(classifier_guidance, "bench", lambda request: bench(request, network))
    monkeypatch.setattr(classifier_guidance, "noise_aware", lambda request, model: classifier_of(model))


def points_of(request: Request, monkeypatch: pytest.MonkeyPatch) -> tuple[Report, list[Point]]:
    """The report and the points behind it."""
    seen: list[list[Point]] = []
    words = classifier_guidance.words
    monkeypatch.setattr(
        classifier_guidance, "words", lambda points, real: (seen.append(points), words(points, real))[1]
    )
    return classifier_guidance.run(request), seen[0]


def shown(x: torch.Tensor) -> np.ndarray:
    """The first ten of samples in data units, as an experiment keeps them."""
    return (x[:10].float() * (255 / 16)).round().byte().permute(0, 2, 3, 1).numpy()


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_scale_0_is_no_guidance_and_the_page_is_written(
    request_of: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of("classifier-guidance")
    report, points = points_of(request, monkeypatch)
    assert [(p.curve, p.scale) for p in points] == [(curve, s) for curve in ARMS for s in FEW]
    model = load(request.model)
    for curve, arm in ARMS.items():
        plain = model.sample(N, sampler=arm.sampler, steps=STEPS, seed=request.seed, guidance=arm.w)
        assert np.array_equal(at(points, curve, 0.0).images, shown(plain)), curve
        assert not np.array_equal(at(points, curve, 10.0).images, shown(plain)), curve
    assert {at(points, CONDITIONAL, s)["evaluations"] for s in FEW} == {STEPS}

    write(request, report, 1.0)
    assert (request.out / "classifier-guidance.png").stat().st_size < 300_000
    page = (request.out / "README.md").read_text()
    for text in ("FD(stub)", "fewer than 50,000", "33.03", "p(x) p(y\\|x)^s", "table 4"):
        assert text in page
    lines = (request.out / "classifier-guidance.csv").read_text().splitlines()
    assert len(lines) == 1 + len(points) + 1 + 5 * 2


def test_what_has_no_classifier_is_refused(request_of: Callable[..., Request], monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_of("classifier-guidance")
    model = load(request.model)
    with pytest.raises(ValueError, match=r"mnist.*not of digits"):
        classifier_guidance.noise_aware(request, model)
    monkeypatch.setattr(classifier_guidance, "NOISY", {"digits": "digits-noisy"})
    monkeypatch.setattr(classifier_guidance, "load_classifier", lambda name: classifier_of(model))
    assert classifier_guidance.noise_aware(request, model).config.schedule == model.config.schedule
    other = replace(model.config, schedule={**asdict(model.config)["schedule"], "steps": 7})
    with pytest.raises(ValueError, match="schedule"):
        classifier_guidance.noise_aware(request, Model(other, model.net))


def test_the_published_figures() -> None:
    """Dhariwal & Nichol, table 4: (FID, sFID, IS, precision, recall)."""
    known = {
        (False, 0.0): (26.21, 6.35, 39.70, 0.61, 0.63),
        (False, 1.0): (33.03, 6.99, 32.92, 0.56, 0.65),
        (False, 10.0): (12.00, 10.40, 95.41, 0.76, 0.44),
        (True, 0.0): (10.94, 6.02, 100.98, 0.69, 0.63),
        (True, 1.0): (4.59, 5.25, 186.70, 0.82, 0.52),
        (True, 10.0): (9.11, 10.93, 283.92, 0.88, 0.32),
    }
    assert {key: tuple(vars(row).values()) for key, row in ADM.items()} == known


@pytest.fixture(scope="module")
def found() -> dict[float, guided_gaussians.Line]:
    return {one.scale: one for one in guided_gaussians.lines((0.0, 1.0, 2.0), 20)}


class TestGaussians:
    def test_closed_forms(self, found: dict[float, guided_gaussians.Line]) -> None:
        """The ODE's variance is S_0^(1-s) S_1^s, the product's precision (1-s)/S_0 + s/S_1; alike at 0 and 1 only."""
        S = guided_gaussians.STD**2
        for s, one in found.items():
            assert one.ode[1] == pytest.approx(math.sqrt(S**s), rel=1e-6)
            assert one.product == pytest.approx((s / S / (1 - s + s / S), (1 - s + s / S) ** -0.5))
            apart = [guided_gaussians.apart(end, one.product) for end in (one.ode, one.sde)]
            assert (max(apart) < 1e-6) == (s < 2)
            assert (min(apart) > 0.1) == (s == 2)

    def test_samplers_come_near_their_limits(self, found: dict[float, guided_gaussians.Line]) -> None:
        for one in found.values():
            assert guided_gaussians.apart(one.ddim, one.ode) < 0.2
            assert guided_gaussians.apart(one.ancestral, one.sde) < 0.5
        finer = guided_gaussians.chain("ancestral", guided_gaussians.classifier_mean, 2.0, 40)
        mean, std = float(finer.mean), math.sqrt(float(finer.covariance))
        assert guided_gaussians.apart((mean, std), found[2.0].sde) < 0.7 * guided_gaussians.apart(
            found[2.0].ancestral, found[2.0].sde
        )

    def test_words_and_rows(self, found: dict[float, guided_gaussians.Line]) -> None:
        lines = list(found.values())
        text = guided_gaussians.words(lines, 40)
        assert "at s = 0 and 1 only" in text
        assert "too narrow at every s above 1" in text
        assert "At s = 2 the ODE" in text
        wide = [*lines[:2], replace(lines[2], sde=(1.0, 9.0))]
        assert "of another width" in guided_gaussians.words(wide, 40)
        rows = guided_gaussians.rows(lines, 40)
        assert len(rows) == 15
        assert rows[0] == ["Gaussians: ode", 0.0, None, *lines[0].ode, pytest.approx(0, abs=1e-6)]
        assert all(
            len(row) == len(classifier_guidance.COLUMNS) for row in classifier_guidance.gaussian_table(lines, 40)
        )


def curve(name: str, columns: dict[str, list[float]]) -> list[Point]:
    """Points of an arm at its scales."""
    usual = dict.fromkeys(VALUES, 0.9) | {"n": 1000, "evaluations": 40}
    pictures = np.zeros((1, 4, 4, 1), np.uint8)
    return [
        Point(name, scale, {**usual, **{key: values[k] for key, values in columns.items()}}, pictures)
        for k, scale in enumerate(ARMS[name].scales)
    ]


REAL = Real(dict.fromkeys(VALUES, 0.9) | {"frechet": 1.0}, noise=0.1)
AS_PUBLISHED = {
    "frechet": [26.0, 33.0, 30.0, 20.0, 12.0],
    "precision": [0.61, 0.56, 0.6, 0.7, 0.76],
    "recall": [0.63, 0.65, 0.6, 0.5, 0.44],
    "agreement": [0.1, 0.5, 0.8, 0.9, 0.99],
}
OTHERWISE = {
    "frechet": [5.0, 4.0, 6.0, 9.0, 20.0],
    "precision": [0.8, 0.8, 0.8, 0.8, 0.8],
    "recall": [0.8, 0.8, 0.7, 0.5, 0.4],
    "agreement": [0.1, 0.97, 0.99, 0.99, 0.99],
}


def words(columns: dict[str, list[float]], conditional: list[float]) -> str:
    three = curve(CONDITIONAL, {"frechet": conditional})
    return classifier_guidance.words([*curve(DDIM, columns), *curve(ANCESTRAL, columns), *three], REAL)


def test_the_words_follow_the_numbers() -> None:
    same = words(AS_PUBLISHED, [10.9, 4.6, 9.1])
    assert same.count("The shape is the published one.") == 2
    assert "scale 1 is not enough" in same
    assert "published trade" in same
    assert "they are as good" in same
    assert "rises, then falls" in same
    other = words(OTHERWISE, [2.0, 3.0, 9.0])
    assert "The shape is the published one." not in other
    assert "scale 1 is enough" in other
    assert "price of recall" in other
    assert "precision does not gain" in other
    assert "97.0 % at scale 1" in other
    score = [5.0, 8.0, 8.5, 9.0, 9.0]
    paid = words({**OTHERWISE, "frechet": [9.0, 4.0, 3.0, 2.0, 1.0], "classifier_score": score}, [2.0, 3.0, 9.0])
    assert "1 pays already" in paid
    assert "5.00 without, 9.00 at 10" in paid


def test_features_without_classes_say_nothing_of_labels() -> None:
    none = {**AS_PUBLISHED, "agreement": [None] * 5}
    assert "Agreement" not in words(none, [10.9, 4.6, 9.1])  # type: ignore[arg-type]
