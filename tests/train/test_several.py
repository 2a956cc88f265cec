"""Several processes: the same training as one, data parallel and sharded; and what is left when one of them dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sfumato
from sfumato.train import Run
from sfumato.train.log import read

from ..tiny import checkpoint, steps_of, tiny
from . import two_processes
from .two_processes import DROPPING, HISTORY

ENV = {**os.environ, "PYTHONPATH": str(Path(sfumato.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def logged(out: Path) -> dict[str, list[float]]:
    lines = read(out / "log.jsonl")
    names = ("loss", "grad_norm", "learning_rate", "held_out_loss")
    return {name: [line[name] for line in lines if name in line] for name in names}


def assert_alike(one: Path, two: Path, run: Run) -> None:
    """Losses and all of the last checkpoint and of the model, to 1e-4; learning rates to the bit."""
    expected, got = logged(one), logged(two)
    assert len(got["loss"]) == run.steps
    assert got["learning_rate"] == expected["learning_rate"]
    for name, values in got.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-4, err_msg=name)
    states = [checkpoint(out, run.steps) for out in (one, two)]
    assert states[0].keys() == states[1].keys()
    for name, x in states[0].items():
        assert x.shape == states[1][name].shape
        assert float((x.nan_to_num() - states[1][name].nan_to_num()).abs().max()) < 1e-4, name
    models = [sfumato.load(out).net.state_dict() for out in (one, two)]
    assert all(float((x - models[1][name]).abs().max()) < 1e-4 for name, x in models[0].items())


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    """With dropout; killed and resumed; with what rows do together; and with their weights in two parts."""
    subprocess.run([sys.executable, two_processes.__file__, str(tmp_path)], env=ENV, check=True, timeout=280)
    told = json.loads((tmp_path / "ends.json").read_text())
    said = {path.name: path.read_text() for path in tmp_path.glob("*.*.*")}
    assert told["ends"]["alone"] == [0], said["alone.0.err"]
    assert "batch 16 = 1 process x 2 parts x 8 rows" in said["alone.0.out"]
    assert "history" in checkpoint(tmp_path / "alone" / "history", 8)

    assert told["ends"]["killed"] == [2, -signal.SIGKILL]
    (line,) = [line for line in said["killed.0.err"].splitlines() if line.startswith("sfumato: ")]
    assert "another of the 2 processes has ended, so process 0 stops; the same command goes on from step 4" in line
    assert "Traceback" not in said["killed.0.err"]
    assert told["left"] == ["step-00000004"]

    total = sum(p.numel() for p in sfumato.load(tmp_path / "alone" / "history").net.parameters())
    for mode in ("together", "sharded"):
        assert told["ends"][mode] == [0, 0], said[f"{mode}.0.err"] + said[f"{mode}.1.err"]
        first, second = said[f"{mode}.0.out"], said[f"{mode}.1.out"]
        assert "batch 16 = 2 processes x 2 parts x 4 rows" in first
        assert "going on from step 4 of 8" in first
        assert "going on" not in second
        for name, run in (("dropping", DROPPING), ("history", HISTORY)):
            assert_alike(tmp_path / "alone" / name, tmp_path / mode / name, run)
        here = [int(out.split("parameters here")[1].split()[0]) for out in (first, second)]
        assert here == [total, total] if mode == "together" else sum(here) == total and min(here) > 0.4 * total

    one, two = (np.load(tmp_path / mode / "samples.npz") for mode in ("alone", "together"))
    assert one["images"].shape == (7, 8, 8, 1)
    assert all(np.array_equal(one[name], two[name]) for name in ("images", "labels", "settings"))


def test_dropped_values_are_another_every_step_and_the_same_every_time(tmp_path: Path) -> None:
    run = tiny(network=DROPPING.network, steps=3)
    first, losses = steps_of(run, tmp_path)
    torch.manual_seed(123)  # no other generator has a say
    again, same = steps_of(run, tmp_path)
    assert losses == same
    assert all(torch.equal(a, b) for a, b in zip(first.bare.parameters(), again.bare.parameters(), strict=True))
    _, other = steps_of(replace(run, network=replace(run.network, dropout=0.0)), tmp_path)
    assert other[0] == losses[0]  # a new network's blocks end in zeros
    assert other[1:] != losses[1:]
