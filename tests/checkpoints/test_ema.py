"""Power-function averages: the recursion against the closed profile, and other lengths made afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sfumato.checkpoints import ema as averages
from sfumato.train import Training
from sfumato.train.ema import EMA

from ..tiny import silent, tiny, train_tiny, trained

LENGTHS = [0.01, 0.05, 0.1, 0.2, 0.27]


@pytest.mark.parametrize("length", LENGTHS)
def test_gamma_is_the_inverse_of_the_length(length: float) -> None:
    gamma = averages.gamma(length)
    assert gamma > 0
    assert (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) == pytest.approx(length**2, rel=1e-9)


def test_gamma_of_the_paper() -> None:
    """EDM2 gives sigma_rel 0.05 as gamma 16.97 and 0.10 as 6.94."""
    assert averages.gamma(0.05) == pytest.approx(16.97, abs=0.005)
    assert averages.gamma(0.10) == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize("length", [0.0, -0.1, 0.28, 1.0, float("nan")])
def test_lengths_that_no_average_has(length: float) -> None:
    with pytest.raises(ValueError, match=r"share of the training in \(0, 0\.28\)"):
        averages.gamma(length)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_profile_is_what_the_recursion_gives(length: float) -> None:
    """ema_k of unit weights, one step at a time in float64, is row k of the identity averaged: the profile itself."""
    steps = 300
    average = np.zeros(steps)
    for k in range(1, steps + 1):
        beta = averages.beta(k, length)
        average = beta * average + (1 - beta) * np.eye(steps)[k - 1]
        if k in (1, 2, 7, 100, steps):
            np.testing.assert_allclose(averages.profile(k, length, steps), average, rtol=1e-9, atol=1e-15)
    assert average.sum() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("length", [0.05, 0.1, 0.2])
def test_a_length_is_the_standard_deviation_of_its_profile(length: float) -> None:
    last = 20_000
    share, place = averages.profile(last, length, last), np.arange(1, last + 1) / last
    mean = (share * place).sum()
    assert np.sqrt((share * (place - mean) ** 2).sum()) == pytest.approx(length, rel=1e-3)


def test_the_tracked_average_is_the_recursion() -> None:
    """EMA.update in float32 beside float64 numpy, 200 steps of a random walk; the copy of a network follows."""
    net = nn.Linear(3, 2)
    ema = EMA(net, (0.05, 0.2))
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.standard_normal((200, 2, 3)), 0)
    expected = {length: np.zeros((2, 3)) for length in ema.tracks}
    for k, w in enumerate(walk, start=1):
        with torch.no_grad():
            net.weight.copy_(torch.from_numpy(w))
        ema.update(net, k)
        for length in expected:
            beta = (1 - 1 / k) ** (averages.gamma(length) + 1)
            expected[length] = beta * expected[length] + (1 - beta) * w
        if k == 1:
            assert torch.equal(ema.tracks[0.05][0], net.weight.detach())
    for length, value in expected.items():
        np.testing.assert_allclose(ema.tracks[length][0].numpy(), value, rtol=1e-4, atol=1e-4)
        profile = averages.profile(200, length, 200)
        np.testing.assert_allclose(value, np.tensordot(profile, walk, 1), rtol=1e-9)
    copy = nn.Linear(3, 2)
    ema.copy_to(copy, 0.2)
    assert torch.equal(copy.weight.detach(), ema.tracks[0.2][0])
    other = EMA(nn.Linear(3, 2), (0.05, 0.2))
    other.restore(ema.tensors())
    assert all(torch.equal(x, ema.tensors()[name]) for name, x in other.tensors().items())


SNAPSHOTS = [(step, length) for step in range(64, 1025, 64) for length in (0.05, 0.10)]


@pytest.mark.parametrize("wanted", [(1024, 0.05), (1024, 0.10), (512, 0.10)])
def test_a_snapshot_is_made_of_itself(wanted: tuple[int, float]) -> None:
    shares, error = averages.solve(SNAPSHOTS, *wanted)
    np.testing.assert_allclose(shares, [float(one == wanted) for one in SNAPSHOTS], atol=1e-6)
    assert error < 1e-6


# length -> the most by which the reconstruction may be off, relative to the spread of the walk within the average;
# measured with 16 snapshots of lengths 0.05 and 0.10: below 1 % from 0.06 to 0.2, 1.3 % at 0.25
RECONSTRUCTED = {0.03: 0.05, 0.04: 0.02, 0.06: 0.01, 0.08: 0.01, 0.12: 0.01, 0.15: 0.01, 0.2: 0.01, 0.25: 0.02}


@pytest.mark.parametrize("length", sorted(RECONSTRUCTED))
def test_other_lengths_of_a_random_walk_are_near_those_tracked(length: float) -> None:
    """The error over the spread of the weights around their average, over 400 walks of 1,024 steps."""
    walk = np.cumsum(np.random.default_rng(1).standard_normal((1024, 400)), 0)
    shares, _ = averages.solve(SNAPSHOTS, 1024, length)
    kept = np.stack([averages.profile(at, kept, 1024) @ walk for at, kept in SNAPSHOTS])
    profile = averages.profile(1024, length, 1024)
    direct = profile @ walk
    spread = np.sqrt((profile[:, None] * (walk - direct) ** 2).sum(0)).mean()
    error = np.sqrt(np.mean((shares @ kept - direct) ** 2)) / spread
    assert error < RECONSTRUCTED[length], error
    assert np.abs(shares).sum() < 30  # half precision must not be blown up


@pytest.mark.slow
def test_a_real_runs_tracked_lengths_come_back_to_half_precision(tmp_path: Path) -> None:
    run = tiny(steps=48)
    training = Training(run, trained(), say=silent)
    for length in run.ema:
        tracked = dict(zip(training.ema.names, training.ema.tracks[length], strict=True))
        made = averages.reconstruct(trained() / "ema", length)
        assert made.keys() == tracked.keys()
        for name, x in tracked.items():
            torch.testing.assert_close(made[name], x, rtol=2e-3, atol=1e-6)


@pytest.mark.slow
def test_a_real_runs_other_length_is_near_that_of_a_run_that_tracked_it(tmp_path: Path) -> None:
    """0.08 made of snapshots of 0.05 and 0.10, beside the same training with 0.08 tracked."""
    training = train_tiny(tiny(ema=(0.08,), sample_every=1000), tmp_path)
    made = averages.reconstruct(trained() / "ema", 0.08)
    start = averages.reconstruct(trained() / "ema", 0.2)
    off = moved = 0.0
    for name, x in zip(training.ema.names, training.ema.tracks[0.08], strict=True):
        off += float((made[name] - x).square().sum())
        moved += float((start[name] - x).square().sum())
    assert off**0.5 < 0.1 * moved**0.5  # a tenth of what another length makes; measured 6 %


def test_damaged_snapshots_are_named(tmp_path: Path) -> None:
    shutil.copytree(trained() / "ema", tmp_path / "ema")
    last = sorted((tmp_path / "ema").iterdir())[-1]
    path = last / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=rf"{last.name}/state\.safetensors.*torn or was edited"):
        averages.reconstruct(tmp_path / "ema", 0.07)
    with pytest.raises(ValueError, match="there are no snapshots in"):
        averages.reconstruct(tmp_path / "none", 0.07)
