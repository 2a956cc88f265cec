"""The learning curve: each point is the score of that snapshot's own samples, at the second that the log says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sfumato.metrics.features import FeatureNetwork, Seen
from sfumato.recipes import curve
from sfumato.tasks import generate, scores
from sfumato.train import Training

from ..tiny import silent, tiny, train_tiny, trained


def means(images: np.ndarray) -> Seen:
    return Seen(images.astype(np.float32).mean((1, 3)) / 255, None)


STUB = FeatureNetwork("columns", "FD(columns)", means)


def test_seconds_lie_between_the_lines_of_the_log(tmp_path: Path) -> None:
    lines = [{"step": 10, "seconds": 4.0}, {"step": 15, "held_out_loss": 1.0}, {"step": 20, "seconds": 9.0}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [curve.seconds_at(tmp_path / "log.jsonl", k) for k in (5, 10, 15, 20)] == [2.0, 4.0, 6.5, 9.0]


def test_a_run_logs_its_seconds() -> None:
    out = trained()
    found = [curve.seconds_at(out / "log.jsonl", k) for k in (0, 24, 48)]
    assert 0 == found[0] < found[1] < found[2]


@pytest.mark.slow
def test_points_are_the_scores_of_the_snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve, "feature_network", lambda name: STUB)
    shutil.copytree(trained(), tmp_path / "run")
    run = tiny(features="columns")
    training = Training(run, tmp_path / "run", say=silent)
    found = curve.learning_curve(training, silent, n=20)
    assert [point["step"] for point in found["points"]] == list(range(3, 49, 3))
    splits = training.splits
    reference = scores.reference(scores.pictures_of(splits.held_out, 10_000, 17), "held out", STUB)
    last = scores.score(generate(training.model(), 20).images(), reference, STUB)["frechet"]
    assert found["points"][-1]["frechet"] == pytest.approx(last, rel=0.05)  # snapshots are kept in half precision
    assert found["points"][0]["frechet"] != pytest.approx(last, rel=0.05)
    (real, _), *_ = scores.real_pictures(splits.train, splits.info, 20)
    assert found["floor"] == scores.floor(real, reference, STUB)["frechet"]
    text = "\n".join(curve.lines(found))
    assert "20 samples" in text
    assert f"| 48 | {found['points'][-1]['frechet']:.3f} |" in text


def test_features_that_are_not_there_stop_a_run_before_it_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nosuch"):
        train_tiny(tiny(features="nosuch"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_features_that_cannot_see_the_pictures_stop_a_run_before_its_first_step(tmp_path: Path) -> None:
    """Those of 28x28 digits, asked for 8x8 ones."""
    with pytest.raises(ValueError, match="28, 28"):
        train_tiny(tiny(features="mnist"), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
