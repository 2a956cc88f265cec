"""A training killed ten times at random moments, and a disk that fills: nothing is lost, to the bit."""

from __future__ import annotations

import collections
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sfumato
from sfumato.train import log, state
from sfumato.train.trainer import Training

from ..tiny import checkpoint, different, silent, tiny, train_tiny
from . import killed_run

fitting = importlib.import_module("sfumato.recipes.fit")  # the package has a function of that name


@pytest.mark.slow
def test_a_training_killed_ten_times_is_the_training_that_was_not(tmp_path: Path) -> None:
    source = Path(sfumato.__file__).parents[1]
    command = [sys.executable, killed_run.__file__, str(tmp_path), "0"]
    env = {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr

    whole, killed = (checkpoint(tmp_path / name, killed_run.STEPS) for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert {name.split("/")[0] for name in whole} == {"net", "ema", "adam", "history"}
    assert not whole["history"].isnan().any()  # importance sampling has begun to look at it
    assert not different(whole, killed)

    # the same rows, and the same weights before each step, whenever the step was made and however often
    made: dict[int, set[str]] = collections.defaultdict(set)
    times: collections.Counter[int] = collections.Counter()
    for name in ("whole", "killed"):
        for line in (tmp_path / f"{name}.batches").read_text().splitlines():
            step = json.loads(line)
            made[step["step"]].add(line)
            times[step["step"]] += name == "killed"
    assert sorted(made) == list(range(1, killed_run.STEPS + 1))
    assert max(times.values()) > 1  # some steps were lost and made again
    assert all(len(lines) == 1 for lines in made.values())

    for name in ("whole", "killed"):
        lines = log.read(tmp_path / name / "log.jsonl")
        assert [line["step"] for line in lines if "loss" in line] == list(range(1, killed_run.STEPS + 1))
        assert [line["step"] for line in lines if "held_out_loss" in line] == [10, 20, 30, 40, 50, 60]
    losses = [
        [(line.get("grad_norm"), line.get("held_out_loss")) for line in log.read(tmp_path / name / "log.jsonl")]
        for name in ("whole", "killed")
    ]
    assert losses[0] == losses[1]
    for part in ("model", "best"):
        one, two = (sfumato.load(tmp_path / name / part).net.state_dict() for name in ("whole", "killed"))
        assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("steps", [8, 12])
def test_a_step_that_was_saved_and_not_looked_at_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Killed between its checkpoint and its held-out loss, at the last step and at another."""
    run = tiny(steps=steps, save_every=8, evaluate_every=8, snapshots=steps // 4, log_every=1)
    train_tiny(run, tmp_path / "whole")
    look = fitting._look

    def killed(training: Training, *rest: Any) -> None:
        if training.step == 8:
            raise SystemExit
        look(training, *rest)

    out = tmp_path / "killed"
    monkeypatch.setattr(fitting, "_look", killed)
    with pytest.raises(SystemExit):
        train_tiny(run, out)
    monkeypatch.setattr(fitting, "_look", look)
    train_tiny(run, out)
    for what in ("step", "held_out_loss", "grad_norm"):
        whole, found = (
            [line.get(what) for line in log.read(folder / "log.jsonl")] for folder in (tmp_path / "whole", out)
        )
        assert found == whole
    kept = [sorted(p.name for p in folder.rglob("step-*")) for folder in (tmp_path / "whole", out)]
    assert kept[0] == kept[1]
    assert (out / "model" / "model.safetensors").exists()


def _torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _edited(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


def _other_step(path: Path) -> None:
    path.write_text(path.read_text().replace('"step": 8', '"step": 7'))


DAMAGE = {
    "torn tensors": ("state.safetensors", _torn, "torn or was edited"),
    "an edited byte": ("state.safetensors", _edited, "sha256 differs"),
    "no tensors": ("state.safetensors", Path.unlink, "missing"),
    "torn json": ("state.json", _torn, "torn or was edited"),
    "an edited number": ("state.json", _other_step, "sha256 differs"),
    "garbage": ("state.json", lambda path: path.write_bytes(b"\xff\xfe["), "torn or was edited"),
    "no object": ("state.json", lambda path: path.write_text("[]"), "not an object"),
    "no json": ("state.json", Path.unlink, "missing"),
}
RUN = tiny(steps=8, save_every=4, evaluate_every=8, snapshots=1)


@pytest.fixture(scope="module")
def eight_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("eight") / "run"
    train_tiny(RUN, out)
    return out


@pytest.mark.parametrize("damage", sorted(DAMAGE))
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(
    damage: str, eight_steps: Path, tmp_path: Path
) -> None:
    file, harm, reason = DAMAGE[damage]
    out = tmp_path / "run"
    shutil.copytree(eight_steps, out)
    harm(out / "checkpoints" / "step-00000008" / file)
    said: list[str] = []
    training = Training(RUN, out, say=said.append)
    assert training.step == 4
    assert "refused checkpoint step-00000008" in said[0]
    assert file in said[0]
    assert reason in said[0]
    assert said[1] == "going on from step 4 of 8"
    again = train_tiny(RUN, out)
    assert again.step == 8
    assert not different(checkpoint(out, 8), checkpoint(eight_steps, 8))

    for step in (4, 8):
        harm_path = out / "checkpoints" / f"step-{step:08d}" / "state.json"
        harm_path.unlink()
    with pytest.raises(ValueError, match=r"no checkpoint in .*checkpoints is whole; move the folder away"):
        state.load(out, silent)


def test_two_checkpoints_are_kept(eight_steps: Path) -> None:
    assert [p.name for p in sorted((eight_steps / "checkpoints").iterdir())] == ["step-00000004", "step-00000008"]


def test_a_disk_that_fills_stops_the_run_in_one_line_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sfumato.checkpoints import native

    real, calls = native.save_file, []

    def full(tensors: object, path: Path) -> None:
        calls.append(path)
        if "step-00000008" in str(path):
            path.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(native, "save_file", full)
    run = tiny(steps=12, save_every=4, evaluate_every=100, snapshots=1)
    with pytest.raises(ValueError, match=r"cannot write .*step-00000008: No space left on device; free space") as told:
        train_tiny(run, tmp_path)
    assert "\n" not in str(told.value)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    monkeypatch.setattr(native, "save_file", real)
    said: list[str] = []
    assert Training(run, tmp_path, say=said.append).step == 4
    assert said == ["going on from step 4 of 12"]


def test_a_log_that_cannot_be_written_stops_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = log.Log(tmp_path, 0)

    def full(*anything: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log, "open", full, raising=False)
    with pytest.raises(ValueError, match=r"cannot write .*log\.jsonl: No space left on device"):
        book.write(1, loss=1.0)
    book.close()


def test_the_log_takes_back_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    book = log.Log(tmp_path, 0)
    for step in range(1, 6):
        book.write(step, loss=float(step))
    book.close()
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # torn by a kill
    book = log.Log(tmp_path, 3)
    book.write(4, loss=-4.0)
    book.close()
    assert [(line["step"], line["loss"]) for line in log.read(tmp_path / "log.jsonl")] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, -4),
    ]


def test_changed_settings_are_named_and_nothing_is_touched(eight_steps: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in eight_steps.rglob("*.json")}
    with pytest.raises(ValueError, match=r"batch: 16 then, 8 now; seed: 0 then, 1 now.*another --out"):
        Training(tiny(steps=8, save_every=4, batch=8, seed=1), eight_steps, say=silent)
    assert before == {p: p.read_bytes() for p in eight_steps.rglob("*.json")}
    Training(tiny(steps=8, save_every=2, log_every=1), eight_steps, say=silent)  # these may change


def test_settings_may_be_mended_while_there_is_no_checkpoint(tmp_path: Path) -> None:
    Training(tiny(batch=8), tmp_path, say=silent)
    stale = tmp_path / "ema" / "step-00000003"
    stale.mkdir(parents=True)
    Training(tiny(batch=16), tmp_path, say=silent)
    assert json.loads((tmp_path / "run.json").read_text())["batch"] == 16
    assert not stale.exists()  # a snapshot of steps that were never saved
