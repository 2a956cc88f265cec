"""A folder that is written whole or not at all, and read with every doubt spoken.

A model folder is ``model.safetensors`` + ``config.json`` + ``card.md``; a training state is ``state.safetensors`` +
``state.json`` with the digest of both.  All are written beside their place, flushed to the disk, and renamed
into it, so a process killed at any moment leaves the old folder or the new one.  No pickle is read or written.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_PICKLES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"}


def write_folder(
    folder: Path,
    name: str,
    tensors: Mapping[str, Tensor],
    document: Mapping[str, Any],
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write NAME.safetensors, its JSON (config.json for a model, state.json else) and texts as `folder`, atomically.

    Raises ValueError if there is no room or no right to write; what stood at `folder` before is then still there.
    """
    folder = Path(folder)
    fresh, old = folder.with_name(f".{folder.name}.writing"), folder.with_name(f".{folder.name}.old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _check_room(folder.parent, sum(x.numel() * x.element_size() for x in tensors.values()))
        if old.exists() and not folder.exists():  # a writer was killed between its two renames
            old.rename(folder)
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir()
        save_file({key: x.detach().cpu().contiguous() for key, x in tensors.items()}, fresh / f"{name}.safetensors")
        written = dict(document)
        if name == "state":
            written["sha256"] = _seal(fresh / f"{name}.safetensors", document)
        (fresh / ("config.json" if name == "model" else f"{name}.json")).write_text(
            json.dumps(written, indent=1) + "\n"
        )
        for file, text in (texts or {}).items():
            (fresh / file).write_text(text)
        for file_path in fresh.iterdir():
            file_path.chmod(0o644)
        for file_path in [*fresh.iterdir(), fresh]:
            _flush(file_path)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        _flush(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise ValueError(
            f"cannot write {folder}: {_reason(error)}; free space or choose another folder by --out"
        ) from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _check_room(where: Path, size: int) -> None:
    free = shutil.disk_usage(where).free
    if free < size + 2**20:
        raise OSError(28, f"{size / 2**20:.1f} MiB are needed and {free / 2**20:.1f} MiB are free")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _slow_digest(file)
        )


def _seal(path: Path, document: Mapping[str, Any]) -> str:
    """The digest of a tensor file and of what is said of it, so that neither can be edited alone."""
    said = json.dumps(document, sort_keys=True)
    return hashlib.sha256(f"{_digest(path)} {said}".encode()).hexdigest()


def _slow_digest(file: Any) -> str:  # Python 3.10
    digest = hashlib.sha256()
    for block in iter(lambda: file.read(2**20), b""):
        digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write one JSON file, whole or not at all; what is no number there becomes null, which every reader knows."""
    write_text(path, json.dumps(finite(document), indent=1, allow_nan=False) + "\n")


def finite(document: Any) -> Any:
    """A document as JSON has it: None in the place of NaN and of infinite numbers, and no numbers of numpy's."""
    if isinstance(document, Mapping):
        return {key: finite(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [finite(value) for value in document]
    value = document.item() if isinstance(document, np.generic) else document
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str) -> None:
    """Write one text file, whole or not at all."""
    fresh = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(text)
        _flush(fresh)
        fresh.replace(path)
    except OSError as error:
        raise ValueError(
            f"cannot write {path}: {_reason(error)}; free space or choose another folder by --out"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; a folder written by sfumato has it") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); it is torn or was edited") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path} holds {type(document).__name__}, not an object; it is torn or was edited")
    return document


def read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; a folder written by sfumato has it") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}); it is torn or was edited") from error


def read_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and document of a training state; ValueError names the file that is torn or edited."""
    document = read_json(folder / "state.json")
    path = folder / "state.safetensors"
    digest = document.pop("sha256", None)
    if path.exists() and _seal(path, document) != digest:
        raise ValueError(
            f"{path} and state.json are not the pair that was written (the sha256 differs); one is torn or was edited"
        )
    return read_tensors(path), document


def read_model(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Tensors, config and card of a model folder; a pickle in its place is refused."""
    folder = Path(folder)
    if not folder.exists() and (interrupted := folder.with_name(f".{folder.name}.old")).exists():
        folder = interrupted  # a writer was killed between its two renames
    if folder.suffix in _PICKLES:
        raise ValueError(f"{folder} is a pickle, which can run code when read, so it is refused; give a model folder")
    if not folder.is_dir():
        unfinished = (folder.parent / "run.json").exists()
        mend = (
            "the run there has not finished: give its command again, or take its folder best"
            if unfinished
            else ("a model is a folder with model.safetensors and config.json")
        )
        raise ValueError(f"{folder} is no folder; {mend}")
    if not (folder / "model.safetensors").exists():
        pickles = sorted(f.name for f in folder.iterdir() if f.suffix in _PICKLES)
        if pickles:
            raise ValueError(f"{folder} holds only {', '.join(pickles)}: a pickle can run code, so it is refused")
    config = read_json(folder / "config.json")
    card = folder / "card.md"
    return read_tensors(folder / "model.safetensors"), config, card.read_text() if card.exists() else ""


def fill(net: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load tensors into a network; ValueError names what is missing, foreign or misshapen."""
    wanted = net.state_dict()
    missing, foreign = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    misshapen = [
        f"{key} is {tuple(tensors[key].shape)}, wanted {tuple(wanted[key].shape)}"
        for key in sorted(wanted.keys() & tensors.keys())
        if tensors[key].shape != wanted[key].shape
    ]
    doubts = [
        f"{what}: {', '.join(found[:4])}{f' and {len(found) - 4} more' if len(found) > 4 else ''}"
        for what, found in (("missing", missing), ("foreign", foreign), ("misshapen", misshapen))
        if found
    ]
    if doubts:
        raise ValueError(
            f"{where} does not fit its config.json ({'; '.join(doubts)}); take the pair that was saved together"
        )
    net.load_state_dict({key: x.to(wanted[key].dtype) for key, x in tensors.items()})
