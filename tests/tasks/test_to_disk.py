"""Samples that go to the disk as they are made: the same files, whole or not there, and memory that does not grow."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sfumato
from sfumato import processes
from sfumato.data import Info
from sfumato.nn import MLPConfig
from sfumato.processes import Share
from sfumato.tasks import Draw, generate, stream, write

from ..tiny import random_model, tiny


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as held:
        return dict(held)


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(x.dtype == b[k].dtype and np.array_equal(x, b[k]) for k, x in a.items())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("label", [None, "7", [3, 1, 4, 1, 5, 9, 2]])
@pytest.mark.parametrize("batch", [3, 256])
def test_the_files_are_those_of_samples_at_hand(label: str | list[int] | None, batch: int, tmp_path: Path) -> None:
    model = random_model()
    at_hand = generate(model, 7, seed=5, label=label, guidance=1.5)
    draw = Draw(model, 7, seed=5, label=label, guidance=1.5, batch=batch)
    assert np.array_equal(at_hand.x, model.sample(7, seed=5, label=label, guidance=1.5).numpy())
    for name in ("a.npz", "deep/folder", "a.png"):
        write(at_hand, tmp_path / "at-hand" / name)
        stream(draw, tmp_path / "streamed" / name, {})
    one, two = (arrays(tmp_path / way / "a.npz") for way in ("at-hand", "streamed"))
    assert same(one, two)
    assert one["labels"].tolist() == {"7": [7] * 7}.get(str(label), label or list(range(7)))
    for way in ("at-hand", "streamed"):
        (tmp_path / way / "a.npz").unlink()  # a zip knows the time
    assert files(tmp_path / "at-hand") == files(tmp_path / "streamed")
    assert len(files(tmp_path / "streamed" / "deep" / "folder")) == 8


def test_vectors_are_streamed_and_settings_added(tmp_path: Path) -> None:
    model = random_model(tiny(network=MLPConfig(width=8, depth=1)), Info((3,), "vector", None))
    stream(Draw(model, 5, batch=2), tmp_path / "a.npz", {"model": "mine"})
    held = arrays(tmp_path / "a.npz")
    assert held.keys() == {"samples", "settings"}
    np.testing.assert_allclose(held["samples"], generate(model, 5).x, rtol=1e-5)  # rounding differs by batch
    assert '"model": "mine"' in str(held["settings"])


def test_a_mistake_leaves_nothing_and_an_end_half_way_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model()
    with pytest.raises(ValueError, match="steps must be a whole number"):
        stream(Draw(model, 4, steps=0), tmp_path / "new" / "a.npz", {})
    assert not list(tmp_path.iterdir())

    stream(Draw(model, 4), tmp_path / "a.npz", {})
    before = (tmp_path / "a.npz").read_bytes()
    real = Draw.blocks

    def broken(draw: Draw) -> Iterator[np.ndarray]:
        yield next(real(draw))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Draw, "blocks", broken)
    with pytest.raises(ValueError, match=r"cannot write .*a\.npz: No space left on device; choose another --out"):
        stream(Draw(model, 4, seed=1, batch=2), tmp_path / "a.npz", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    assert (tmp_path / "a.npz").read_bytes() == before


def test_of_two_processes_both_make_and_the_first_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    whole = generate(model, 7, seed=3).x
    made: list[tuple[int, torch.Tensor]] = []

    def joined(mine: torch.Tensor, n: int, share: Share) -> torch.Tensor:
        first = sum(len(x) for rank, x in made if rank == share.rank) * 2
        made.append((share.rank, mine))
        assert np.array_equal(mine.numpy(), whole[first : first + n][share.rank :: 2])
        return torch.from_numpy(whole[first : first + n])

    monkeypatch.setattr(processes, "joined", joined)
    draw = Draw(model, 7, seed=3, batch=2, share=Share(1, 2))
    stream(draw, tmp_path / "none.npz", {})
    assert not list(tmp_path.iterdir())
    stream(replace(draw, share=Share(0, 2)), tmp_path / "a.npz", {})
    assert np.array_equal(arrays(tmp_path / "a.npz")["labels"], np.arange(7))
    assert [(rank, len(x)) for rank, x in made] == [(1, 2), (1, 1), (0, 2), (0, 2)]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"n": 0}, "n must be a whole number >= 1; got 0"),
        ({"batch": 0}, "batch must be a whole number >= 1; got 0"),
        ({"seed": 0.5}, "seed must be a whole number; got 0.5"),
        ({"n": 3, "label": [1, 2]}, "labels must be 3 numbers in 0..9; got 2"),
    ],
)
def test_what_cannot_be_drawn(asked: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Draw(random_model(), **asked)  # type: ignore[arg-type]


PEAKS = """
import resource, sys
from pathlib import Path
from sfumato.model import load
from sfumato.tasks import Draw, stream
model, folder = load(sys.argv[1]), Path(sys.argv[2])
for n, steps in ((64, 2), (64, 100), (2000, 2)):
    stream(Draw(model, n, steps=steps, batch=32), folder / "a.npz", {})
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_samples_or_steps(tmp_path: Path) -> None:
    """Samples of 16 KiB: 2,000 would take 31 MiB, and the states of 100 steps of 32 rows three times 50."""
    run = tiny(network=MLPConfig(width=4, depth=1), schedule="cosine:steps=100")
    random_model(run, Info((4096,), "vector", None)).save(tmp_path / "model")
    env = {**os.environ, "PYTHONPATH": str(Path(sfumato.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PEAKS, str(tmp_path / "model"), str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=250)
    first, steps, rows = (int(line) / 1024 for line in done.stdout.split())
    assert arrays(tmp_path / "a.npz")["samples"].shape == (2000, 4096)
    assert steps - first < 12, (first, steps, rows)
    assert rows - steps < 12, (first, steps, rows)
