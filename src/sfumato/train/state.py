"""The state of a training on disk: everything that is not a function of (seed, step).

    OUT/run.json                        the Run
    OUT/checkpoints/step-00001000/      weights, averages, optimiser, loss history; the last two are kept
    OUT/ema/step-00001000/              the averages alone, in half precision, kept for good

A checkpoint that is torn or edited is refused by name and the one before it is used.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sfumato.checkpoints import native

KEPT = 2
MAY_CHANGE = {
    "steps",
    "log_every",
    "save_every",
    "evaluate_every",
    "sample_every",
    "snapshots",
    "sampling",
    "features",
    "gradient_checkpointing",  # the gradients are the same
    "data.cache",  # and the rows
    "source.cache",
}


class Documented(Protocol):
    """What says all its settings as JSON: a Run, a ClassifierRun."""

    def document(self) -> dict[str, Any]: ...


State = tuple[dict[str, Tensor], dict[str, Any]]


def folder_of(out: Path, step: int) -> Path:
    return out / "checkpoints" / f"step-{step:08d}"


def save(out: Path, step: int, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Write the checkpoint of a step, then drop all but the last two."""
    native.write_folder(folder_of(out, step), "state", tensors, {"step": step, **document})
    for old in sorted((out / "checkpoints").glob("step-*"))[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def load(out: Path, say: Callable[[str], None]) -> State | None:
    """The newest whole checkpoint, or None if the run has none; what is torn is named through `say`.

    Raises ValueError if there are checkpoints but none is whole.
    """
    found = sorted((out / "checkpoints").glob("step-*"), reverse=True)
    for path in found:
        try:
            return native.read_state(path)
        except ValueError as error:
            say(f"refused checkpoint {path.name}: {error}")
    if found:
        raise ValueError(f"no checkpoint in {out / 'checkpoints'} is whole; move the folder away to start again")
    return None


def goes_on(out: Path) -> str:
    """Where the same command goes on, for a person."""
    found = sorted((out / "checkpoints").glob("step-*"))
    if not found:
        return "no step was saved, so the same command starts anew"
    return f"the same command goes on from step {int(found[-1].name.removeprefix('step-'))}"


def drop_snapshots(out: Path, step: int) -> None:
    """Take back the snapshots after `step`: the run that goes on from there makes its own."""
    for path in (out / "ema").glob("step-*"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path, ignore_errors=True)


def save_snapshot(out: Path, step: int, tensors: Mapping[str, Tensor], lengths: tuple[float, ...]) -> None:
    half = {name: x.to(torch.float16) for name, x in tensors.items()}
    native.write_folder(out / "ema" / f"step-{step:08d}", "state", half, {"step": step, "lengths": list(lengths)})


def check_same_run(out: Path, run: Documented, write: bool = True) -> None:
    """Write OUT/run.json, or compare it: a run that goes on from a checkpoint has the settings it began with."""
    path = out / "run.json"
    wanted = _flat(run.document())
    if path.exists() and any((out / "checkpoints").glob("step-*")):
        began = _flat(native.read_json(path))
        different = [
            f"{key}: {began.get(key)!r} then, {wanted.get(key)!r} now"
            for key in sorted(began.keys() | wanted.keys())
            if began.get(key) != wanted.get(key) and not {key, key.split(".")[0]} & MAY_CHANGE
        ]
        if different:
            raise ValueError(
                f"{out} began with other settings ({'; '.join(different)}); "
                "give the same settings to go on, or another --out to start anew"
            )
    if write:
        native.write_json(path, run.document())


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
