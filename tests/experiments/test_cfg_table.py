"""cfg-table: no guidance is the plain model bit for bit, calls are counted, words follow the numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato import grids
from sfumato.experiments import cfg_table, tradeoff
from sfumato.experiments.cfg_table import CURVES, W_SEEDS, Size
from sfumato.experiments.published import CFG
from sfumato.experiments.report import Report, Request, digest, write
from sfumato.experiments.sampled import bench
from sfumato.experiments.tradeoff import VALUES, Point, Real, at, course, of
from sfumato.guidance.guide import Guide
from sfumato.metrics.features import FeatureNetwork, Seen
from sfumato.model import load

from .conftest import tiny

STEPS, N = 6, 20


def look(images: np.ndarray) -> Seen:
    """Four means of quarters, and ten classes that are a fixed function of them."""
    x = images.reshape(len(images), 2, 4, 2, 4).mean((2, 4)).reshape(len(images), 4).astype(np.float32) / 255
    logits = 8 * x @ np.random.default_rng(0).standard_normal((4, 10)).astype(np.float32)
    return Seen(x, logits - np.log(np.exp(logits).sum(1, keepdims=True)))


STUB = FeatureNetwork("stub", "FD(stub)", look, tuple("0123456789"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cfg_table, "QUICK", Size(N, STEPS))
    scales = {**dict.fromkeys(CURVES, (3.0,)), "cfg": (0.0, 3.0)}
    few = {name: replace(curve, scales=scales[name]) for name, curve in CURVES.items()}
    monkeypatch.setattr(cfg_table, "CURVES", few)
    monkeypatch.setattr(cfg_table, "bench", lambda request: bench(request, STUB))
    monkeypatch.setattr(cfg_table, "weaker", lambda request: load(request.model))


def points_of(request: Request, monkeypatch: pytest.MonkeyPatch) -> tuple[Report, list[Point]]:
    """The report and the points behind it."""
    seen: list[list[Point]] = []
    words = cfg_table.words
    monkeypatch.setattr(cfg_table, "words", lambda points, *rest: (seen.append(points), words(points, *rest))[1])
    return cfg_table.run(request), seen[0]


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_scale_0_is_the_plain_model_and_calls_are_counted(
    request_of: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of("cfg-table")
    _, points = points_of(request, monkeypatch)
    model = load(request.model)
    plain = model.sample(N, sampler=cfg_table.SAMPLER, steps=STEPS, seed=request.seed)
    wanted = (plain[:10].float() * (255 / 16)).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(at(points, "cfg", 0.0).images, wanted)
    assert not np.array_equal(at(points, "cfg", 3.0).images, wanted)
    schedule = model.denoiser.schedule
    low, high = cfg_table.interval(schedule)
    assert schedule.logsnr(torch.tensor([low, high])).tolist() == pytest.approx(cfg_table.INTERVAL, abs=1e-6)
    times = grids.GRIDS[model.config.sampling.grid](schedule, STEPS)[:-1]
    inside = int(((times > low) & (times <= high)).sum())
    assert 0 < inside < STEPS
    for p in points:
        guided = {"interval": inside}.get(p.curve, STEPS) if p.scale else 0
        assert p["evaluations"] == STEPS + guided, (p.curve, p.scale)
    assert [(p.curve, p.scale) for p in points] == [
        (name, w) for name, curve in cfg_table.CURVES.items() for w in curve.scales
    ]
    # a model guided by itself is itself
    strong = at(points, "autoguidance", 3.0).images.astype(int)
    assert np.abs(strong - wanted).mean() < 0.05 * np.abs(at(points, "cfg", 3.0).images.astype(int) - wanted).mean()


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_the_page(request_of: Callable[..., Request], monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_of("cfg-table")
    report, points = points_of(request, monkeypatch)
    write(request, report, 1.0)
    assert (request.out / "cfg-table.png").stat().st_size < 300_000
    page = (request.out / "README.md").read_text()
    for text in ("FD(stub)", "classifier score (stub)", "fewer than 50,000", "1.55", "published FID"):
        assert text in page
    lines = (request.out / "cfg-table.csv").read_text().splitlines()
    assert len(lines) == 1 + len(points) + len(CFG) + 1


@pytest.mark.usefixtures("small")
def test_without_a_weaker_model_the_curve_is_left_out_and_said(
    request_of: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cfg_table, "weaker", lambda request: None)
    monkeypatch.setattr(cfg_table, "CURVES", {name: cfg_table.CURVES[name] for name in ("cfg", "autoguidance")})
    report, points = points_of(request_of("cfg-table"), monkeypatch)
    assert {p.curve for p in points} == {"cfg"}
    assert "left out" in " ".join(report.basis)


def test_the_curves_are_guided_as_they_say(saved: Callable[[int], str]) -> None:
    weak = load(saved(1))
    given = cfg_table.With(0.2, 0.8, weak)
    found = {name: curve.guide(3.0, given) for name, curve in CURVES.items()}
    assert found["cfg"] == Guide(3.0)
    assert found["interval"] == Guide(3.0, low=0.2, high=0.8)
    assert found["autoguidance"] == Guide(3.0, weak=weak.denoiser, told={"weak": digest(weak)})
    assert (found["rescale"], found["apg"]) == (Guide(3.0, mix="rescale"), Guide(3.0, mix="apg"))


@pytest.mark.slow
def test_the_weaker_model_of_the_zoo_guides(
    request_of: Callable[..., Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by its name, loaded, told of, counted; another network than the model's own."""
    request = request_of("cfg-table")
    tiny(1).save(f"{request.model}-weak")
    monkeypatch.setattr(cfg_table, "zoo", lambda: {f"{request.model}-weak": Path(f"{request.model}-weak")})
    monkeypatch.setattr(cfg_table, "QUICK", Size(N, STEPS))
    curves = {name: replace(CURVES[name], scales=(3.0,)) for name in ("cfg", "autoguidance")}
    monkeypatch.setattr(cfg_table, "CURVES", {**curves, "cfg": replace(curves["cfg"], scales=(0.0, 3.0))})
    monkeypatch.setattr(cfg_table, "bench", lambda request: bench(request, STUB))
    monkeypatch.setattr(cfg_table, "W_SEEDS", (0.0, 3.0))
    report, points = points_of(request, monkeypatch)
    model, weak = load(request.model), tiny(1)
    by = Guide(4.0, weak=weak.denoiser)
    wanted = model.sample(N, sampler=cfg_table.SAMPLER, steps=STEPS, seed=request.seed, guidance=by)
    found = at(points, "autoguidance", 3.0)
    assert np.array_equal(found.images, (wanted[:10].float() * (255 / 16)).round().byte().permute(0, 2, 3, 1).numpy())
    assert not np.array_equal(found.images, at(points, "cfg", 0.0).images)
    assert found["evaluations"] == 2 * STEPS
    assert f"weights sha256 `{digest(weak)}`" in " ".join(report.basis)


def test_a_model_of_no_zoo_has_no_weaker_one(tmp_path: Path) -> None:
    assert cfg_table.weaker(Request("cfg-table", tmp_path, model="nothing")) is None


def test_the_published_figures() -> None:
    """Ho & Salimans, table 1, p_uncond = 0.1: least FID at 0.1, a score that rises throughout."""
    assert CFG[0.0] == (1.80, 53.71)
    assert CFG[0.1] == (1.55, 66.11)
    assert CFG[0.3] == (3.03, 92.8)
    assert CFG[1.0] == (12.6, 170.1)
    assert CFG[3.0] == (24.83, 250.4)
    assert min(CFG, key=lambda w: CFG[w][0]) == 0.1
    inception = [CFG[w][1] for w in sorted(CFG)]
    assert inception == sorted(inception)
    assert set(W_SEEDS) <= set(CFG)


def curve(frechet: list[float], score: list[float], recall: list[float], name: str = "cfg") -> list[Point]:
    """Points at W_SEEDS."""
    usual = dict.fromkeys(VALUES, 0.9) | {"n": 1000, "evaluations": 40}
    columns = zip(W_SEEDS, frechet, score, recall, strict=True)
    return [
        Point(name, w, {**usual, "frechet": f, "classifier_score": c, "recall": r}, np.zeros((1, 4, 4, 1), np.uint8))
        for w, f, c, r in columns
    ]


REAL = Real(dict.fromkeys(VALUES, 0.9) | {"frechet": 1.0, "classifier_score": 9.8}, noise=0.1)
FLAT = [0.7] * 6
WORDS = [
    # as published: least at 0.1, sixteen times as far at 3, a score five times as large, recall lost
    (
        ([1.8, 1.5, 3.0, 12.0, 21.0, 24.0], [2, 3, 4, 6, 8, 9.6], [0.7, 0.7, 0.6, 0.5, 0.4, 0.3]),
        ("falls, then rises", "published one within noise. ", "of the published size", "published one.", "Recall pays"),
        ("less room", "only costs", "larger here"),
    ),
    (
        ([5.0, 4.8, 4.4, 3.0, 3.5, 4.0], [9.0, 9.1, 9.2, 9.4, 9.5, 9.6], FLAT),
        ("falls, then rises", "larger here", "gentler", "less room", "no loss of variety"),
        ("only costs", "Recall pays"),
    ),
    (
        ([2.0, 2.4, 3.0, 40.0, 60.0, 90.0], [5, 5, 5, 5, 5, 5], FLAT),
        ("it rises", "only costs", "steeper", "stays level", "less room"),
        ("larger here", "gentler", "published one within"),
    ),
]


@pytest.mark.parametrize(("values", "said", "unsaid"), WORDS, ids=["published", "helps", "costs"])
def test_the_words_follow_the_numbers(values: tuple, said: tuple[str, ...], unsaid: tuple[str, ...]) -> None:
    text = cfg_table.words(curve(*values), REAL, 10)
    for part in said:
        assert part in text
    for part in unsaid:
        assert part not in text


def test_other_curves_are_held_against_the_plain_rule() -> None:
    """At equal certainty, not at equal scales."""
    plain = curve([2.0, 2.0, 2.5, 4.0, 5.0, 6.0], [7.0, 7.1, 7.5, 8.0, 9.0, 9.5], FLAT)
    same = [p["frechet"] for p in plain]
    sure = [p["classifier_score"] for p in plain]
    for frechet, said in (
        ([f + 1 for f in same], "it is farther"),
        ([f - 1 for f in same], "it is nearer to the data."),
        (same, "where the plain rule is"),
        ([0.0, 9.0, *same[2:]], "nearer to the data at 1 of 6 scales, farther at 1"),
    ):
        text = cfg_table.words([*plain, *curve(frechet, sure, FLAT, "interval")], REAL, 10)
        assert said in text.split("**Interval**")[1]
    assert cfg_table.plain_at(plain, "classifier_score", 8.5) == pytest.approx(4.5)
    assert "Interval" not in cfg_table.words(plain, REAL, 10)


def test_courses() -> None:
    assert course([1, 1.05, 0.98], 0.1) == "stays level"
    assert course([1, 2, 3], 0.1) == "rises"
    assert course([3, 2, 1], 0.1) == "falls"
    assert course([3, 1, 2], 0.1) == "falls, then rises"
    assert course([1, 3, 2], 0.1) == "rises, then falls"
    assert course([1, 0.95, 2], 0.1) == "rises"
    assert tradeoff.shares(1000) == pytest.approx(2 * np.sqrt(0.25 / 1000))
    assert [p.scale for p in of(list(reversed(curve(FLAT, FLAT, FLAT))), "cfg")] == list(W_SEEDS)
