"""The trilemma's marks and words from numbers that are known, and a whole run on a small set, stopped and gone on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato.experiments import figures, marks, trilemma
from sfumato.experiments.families import FAMILIES, Spent
from sfumato.experiments.marks import AXES, BETWEEN, CROSS, FEW, FLOOR, MANY, PUBLISHED, TICK, Facts, places, words
from sfumato.experiments.report import Report, Request, write
from sfumato.metrics import FeatureNetwork, Seen
from sfumato.tasks.scores import reference, score

BEST: Facts = {"frechet": 1.0, "precision": 0.9, "density": 1.0, "recall": 0.9, "coverage": 0.9, "ms_alone": 1.0}
BEST |= {"ms_together": 0.1, "calls": 1.0, "bits": 2.0, "rarest": 0.09, "steps": 900.0, "epochs": 1.5, "seconds": 9.0}
BEST |= {"parameters": 8e5, "drawing_parameters": 5e5}
BAD_QUALITY = {"frechet": 100.0, "precision": 0.3, "density": 0.1}
BAD_DIVERSITY = {"recall": 0.1, "coverage": 0.2, "rarest": 0.001}
SLOW = {"ms_alone": 900.0, "ms_together": 80.0, "calls": 250.0}
REAL = {**BEST, "frechet": 0.5, marks.SCATTER: 0.03}


def as_published() -> dict[str, Facts]:
    """Rows with just the published faults; few steps are quick and lose a little."""
    return {
        "VAE": {**BEST, **BAD_QUALITY},
        "GAN": {**BEST, **BAD_DIVERSITY, "bits": math.nan},
        "flow": {**BEST, **BAD_QUALITY},
        MANY: {**BEST, **SLOW},
        FEW: {**BEST, "frechet": 1.5, "ms_alone": 40.0, "ms_together": 4.0, "calls": 10.0},
    }


class TestMarks:
    def test_the_published_faults_give_the_published_marks(self) -> None:
        found = marks.marks(as_published())
        assert {row: {axis: mark for axis, (mark, _) in found[row].items()} for row in PUBLISHED} == PUBLISHED

    def test_places_by_hand(self) -> None:
        rows = {str(i): {"frechet": value, "recall": share} for i, (value, share) in enumerate([(1, 0.5), (4, 0.8)])}
        rows["2"] = {"frechet": 16.0, "recall": 0.6}
        assert places(rows, "frechet") == pytest.approx({"0": 1, "1": 0.5, "2": 0})  # on a log scale, less is better
        assert places(rows, "recall") == pytest.approx({"0": 0, "1": 1, "2": 1 / 3})

    def test_small_differences_make_no_cross(self) -> None:
        rows = {"a": {"frechet": 1.0, "recall": 0.90}, "b": {"frechet": 1.2, "recall": 0.88}}
        assert min(places(rows, "frechet").values()) == pytest.approx(1 - math.log(1.2) / math.log(2))
        assert min(places(rows, "recall").values()) == pytest.approx(0.8)

    @pytest.mark.parametrize(("share", "mark"), [(0.95, TICK), (0.5, BETWEEN), (0.05, CROSS)])
    def test_thirds(self, share: float, mark: str) -> None:
        rows = {
            **{name: {**BEST, "recall": end, "coverage": end} for name, end in (("top", 1.0), ("end", 0.0))},
            "mine": {**BEST, "recall": share, "coverage": share},
        }
        assert marks.marks(rows)["mine"]["diversity"] == (mark, pytest.approx(share))


class TestWords:
    def test_nothing_to_explain(self) -> None:
        text = words(as_published(), REAL, "FD(stub)")
        assert "12 of 12 marks are as published" in text
        assert "Why" not in text
        assert "20.0 times as fast and have 1.50 times the FD(stub) of many: few steps lose some" in text

    def test_a_diverse_gan_is_explained_by_its_rarest_digit(self) -> None:
        rows = as_published()
        rows["GAN"] |= {"recall": 0.88, "coverage": 0.9, "rarest": 0.081}
        rows["VAE"] |= {"recall": 0.1, "coverage": 0.1}
        text = words(rows, REAL, "FD(stub)")
        assert "10 of 12 marks are as published" in text
        assert "**GAN, diversity**: published ✗, measured ✓" in text
        assert "8.1% of its samples, of real ones 9.0%: no class is lost" in text
        assert "**VAE, diversity**: published ✓, measured ✗" in text
        assert "30% look real (of real pictures 90%)" in text
        rows["GAN"]["rarest"] = 0.0
        assert "classes are lost here too" in words(rows, REAL, "FD(stub)")

    def test_bad_diffusion_is_explained_by_its_steps(self) -> None:
        rows = as_published()
        rows[MANY] |= {"frechet": 80.0, "precision": 0.4, "density": 0.2, "steps": 1234.0}
        text = words(rows, REAL, "FD(stub)")
        assert f"**{MANY}, quality**: published ✓, measured ✗" in text
        assert "160.0 times the floor's after 1,234 steps" in text
        assert "0.02 times the FD(stub) of many: few steps lose next to nothing" in text

    def test_other_verdicts(self) -> None:
        rows = as_published()
        rows["flow"] |= {"frechet": 1.1, "precision": 0.9, "density": 1.0, "ms_alone": 800.0, "ms_together": 70.0}
        rows[FEW]["frechet"] = 9.0
        text = words(rows, REAL, "FD(stub)")
        assert "few steps lose much" in text
        assert "the worst row's (VAE) 90.9 times its own" in text
        assert "**flow, speed**: published ✓, measured ✗. Why: 800 ms alone and 70 ms among 256 for 1 call, " in text
        assert "what a call costs counts" in text
        assert "All three at once: none" in text
        rows[FEW] = dict(BEST)
        assert f"All three at once: {FEW}." in words(rows, REAL, "FD(stub)")


class TestTable:
    def test_every_number_is_in_the_csv_and_missing_ones_are_empty(self) -> None:
        rows = as_published()
        sweep = {family: {2e-4: 3.0, 6e-4: math.inf} for family in (*FAMILIES, "diffusion")}
        found = marks.table(rows, REAL, sweep, dict.fromkeys(rows, 2e-4))
        named = {(row, score): value for row, _, score, value in found if score != "validation_frechet"}
        assert named["GAN", "bits"] is None
        assert named["flow", "frechet"] == 100.0
        assert named[FLOOR, "frechet"] == 0.5
        assert named[FLOOR, "frechet_standard_deviation"] == 0.03
        assert {(row, f"{axis}_place") for row in rows for axis in AXES} <= set(named)
        assert all(len(line) == len(marks.COLUMNS) for line in found)

    def test_cells_fit_their_heads(self) -> None:
        rows = as_published()
        lines = marks.cells(rows, REAL, dict.fromkeys(rows, 6e-4))
        assert all(len(line) == len(marks.heads("FD(stub)")) for line in lines)
        assert lines[1][:3] == ["GAN", "✓ ✗ ✓", "✓ ✗ ✓"]
        assert lines[-1][:4] == ["training pictures (the floor)", "-", "-", "0.5 ± 0.03"]


def look(images: np.ndarray) -> Seen:
    """Means of quarters and rows as features; the brightest of ten stripes as the class."""
    x = images.astype(np.float32)[..., 0] / 255
    features = np.concatenate([x.reshape(len(x), 7, 112).mean(2), x.std((1, 2))[:, None]], 1)
    stripes = x[:, :20].reshape(len(x), 10, 56).mean(2)
    return Seen(features, np.log(np.exp(stripes) / np.exp(stripes).sum(1, keepdims=True)))


STUB = FeatureNetwork("stub", "FD(stub)", look, tuple("0123456789"))


class TestChoice:
    def images(self, brightness: int, seed: int = 0) -> Tensor:
        x = np.random.default_rng(seed).integers(0, brightness, (40, 1, 28, 28), dtype=np.uint8)
        return torch.from_numpy(x)

    def test_the_nearest_to_the_rows_kept_aside_wins_and_grief_never(self) -> None:
        aside = reference(self.images(200).permute(0, 2, 3, 1).numpy(), "aside", STUB)
        left = {1e-4: {"samples": self.images(60)}, 1e-3: {"samples": self.images(200, 1)}, 1e-2: {}}
        found = trilemma.chosen(left, aside, STUB)
        assert found[1e-2] == math.inf
        assert min(found, key=lambda rate: found[rate]) == 1e-3
        assert found[1e-3] < found[1e-4] / 10

    def test_the_rarest_class(self) -> None:
        images = np.zeros((10, 28, 28, 1), dtype=np.uint8)
        for k in range(10):
            images[k, 2 * min(k, 8)] = 255  # class 8 twice, class 9 never
        assert trilemma.rarest(images, STUB) == 0
        images[9] = 0
        images[9, 18] = 255
        assert trilemma.rarest(images, STUB) == pytest.approx(0.1)
        assert math.isnan(trilemma.rarest(images, replace(STUB, label_names=())))


def test_the_floor_is_of_several_disjoint_sets(small: Callable[..., Request]) -> None:
    """60 training rows are three sets of 16: means of their scores, and how far their distances scatter."""
    pictures = trilemma.write_rows(small())
    x = pictures.splits.train.take(np.arange(60))["x"].numpy().transpose(0, 2, 3, 1)
    test = pictures.test.held_out.take(np.arange(40))["x"].numpy().transpose(0, 2, 3, 1)
    against = reference(test, "test", STUB)
    real, shown = trilemma.floor_of(pictures, 16, against)
    even = np.arange(48) * 60 // 48
    sets = [x[even[k::3]] for k in range(3)]
    found = [score(images, against, STUB) for images in sets]
    assert len({one["frechet"] for one in found}) == 3
    for name in ("frechet", "precision", "density", "recall", "coverage"):
        assert real[name] == pytest.approx(np.mean([one[name] for one in found])), name
    assert real["rarest"] == pytest.approx(np.mean([trilemma.rarest(images, STUB) for images in sets]))
    assert real[marks.SCATTER] == pytest.approx(np.std([one["frechet"] for one in found], ddof=1))
    assert np.array_equal(shown.permute(0, 2, 3, 1).numpy(), sets[0])


def test_timed_draws_what_it_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trilemma, "TOGETHER", 4)
    asked: list[tuple[int, int]] = []

    def draw(n: int, seed: int) -> Tensor:
        asked.append((n, seed))
        return torch.arange(seed, seed + n)

    x, alone, together = trilemma.timed(draw, 10, 100)
    assert x.tolist() == list(range(100, 110))
    assert asked == [(1, 100)] * trilemma.SINGLES + [(4, 100), (4, 104), (2, 108)]
    assert (len(alone), len(together)) == (trilemma.SINGLES, 3)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Request]:
    """MNIST of 80 rows of stripes, a stub for features, one rate beside a second, and a wall-clock of moments."""
    draw = np.random.default_rng(0)
    images = (draw.random((120, 28, 1)) * np.ones((1, 1, 28)) * 255).astype(np.uint8)
    parts = {"train_images": images[:80], "train_labels": np.arange(80) % 10}
    parts |= {"test_images": images[80:], "test_labels": np.arange(40) % 10}
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "mnist.npz", **parts)
    monkeypatch.setenv("SFUMATO_DATA", str(tmp_path / "data"))
    size = trilemma.Size(0.01, 16, 3, 2, few=2, reference_rows=40)
    for name, value in (("KEPT_ASIDE", 20), ("RATES", (2e-4, 2e-3)), ("BATCH", 4), ("QUICK", size), ("SINGLES", 1)):
        monkeypatch.setattr(trilemma, name, value)
    monkeypatch.setattr(trilemma, "BOUND_DRAWS", 2)
    monkeypatch.setattr(trilemma, "CHANNELS", 8)
    monkeypatch.setattr(trilemma, "feature_network", lambda name: STUB)
    return lambda: Request("trilemma", tmp_path / "out", quick=True)


class Stopped(Exception):
    pass


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_ends_in_a_page(
    small: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    real = trilemma.train_one

    def counted(request: Request, family: str, rate: float, *others: Any) -> dict[str, Tensor]:
        trained.append(f"{family} {rate:g}")
        if len(trained) == 4:
            raise Stopped
        return real(request, family, rate, *others)

    monkeypatch.setattr(trilemma, "train_one", counted)
    with pytest.raises(Stopped):
        trilemma.run(small())
    report = trilemma.run(small())
    every = [f"{family} {rate:g}" for family in (*FAMILIES, "diffusion") for rate in (2e-4, 2e-3)]
    assert trained == [*every[:4], *every[3:]]  # only the one that was stopped is done twice
    again = trilemma.run(small())
    assert len(trained) == 9
    assert again.rows == report.rows
    _check(report, small(), trained)


def _check(report: Report, request: Request, trained: list[str]) -> None:
    named = {(row, score): value for row, _, score, value in report.rows}
    assert named[MANY, "calls"] == 3
    assert named[FEW, "calls"] == 2
    assert named["VAE", "calls"] == 1
    assert named["GAN", "bits"] is None
    assert named["flow", "bits"] > 0
    assert named[MANY, "steps"] == named[FEW, "steps"] >= 1
    assert named["GAN", "drawing_parameters"] < named["GAN", "parameters"]
    write(request, report, 1.0)
    page = (request.out / "README.md").read_text()
    assert "n = 16 (fewer than 50,000)" in page
    assert "FID" not in page
    assert "at most 5 disjoint sets" in page
    assert named[FLOOR, marks.SCATTER] > 0
    assert "of 12 marks are as published" in page
    assert len((request.out / "trilemma.png").read_bytes()) < figures.LIMIT


@pytest.mark.slow
def test_grief_is_said(small: Callable[..., Request], monkeypatch: pytest.MonkeyPatch) -> None:
    """A family whose every training ends without a number has no samples to score."""
    monkeypatch.setattr(trilemma, "train_within", lambda *given: Spent(1, 0.0, math.nan))
    with pytest.raises(ValueError, match=r"no training of the VAE came to an end"):
        trilemma.run(small())
