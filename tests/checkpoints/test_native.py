"""Folders that are written whole or not at all: a kill, a full disk or a forbidden place at every point."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sfumato.checkpoints import native

OLD, NEW = {"w": torch.zeros(3)}, {"w": torch.ones(3)}


class Killed(BaseException):
    """The process ends here: nothing of ours catches it."""


def test_a_model_folder_comes_back(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(2, 3).T, "b": torch.tensor(3), "c": torch.randn(4).to(torch.bfloat16)}
    native.write_folder(tmp_path / "deep" / "model", "model", tensors, {"x": [1, 2.5]}, {"card.md": "é\n"})
    found, document, card = native.read_model(tmp_path / "deep" / "model")
    assert document == {"x": [1, 2.5]}
    assert card == "é\n"
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], x) and found[key].dtype == x.dtype for key, x in tensors.items())
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["model"]


def test_a_state_comes_back_and_holds_any_float(tmp_path: Path) -> None:
    document = {"step": 7, "best": float("inf"), "third": 1 / 3, "lengths": [0.05]}
    native.write_folder(tmp_path / "state", "state", NEW, document)
    tensors, found = native.read_state(tmp_path / "state")
    assert found == document
    assert torch.equal(tensors["w"], NEW["w"])


KILLS = ["save_file", "_flush", "rename old", "rename fresh", "rmtree"]


@pytest.mark.parametrize("where", KILLS)
def test_a_kill_at_any_point_leaves_the_old_folder_or_the_new(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    native.write_folder(folder, "model", OLD, {"which": "old"}, {"card.md": "old"})

    def after(real: Callable[..., Any], moment: Callable[..., bool]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            answer = real(*args, **options)
            if moment(*args):
                raise Killed
            return answer

        return call

    with monkeypatch.context() as patched:
        if where.startswith("rename"):
            fresh = where == "rename fresh"
            patched.setattr(Path, "rename", after(Path.rename, lambda source, _: source.name.startswith(".") == fresh))
        elif where == "rmtree":
            patched.setattr(
                native.shutil, "rmtree", after(shutil.rmtree, lambda path: path.exists() or "old" in path.name)
            )
        else:
            patched.setattr(native, where, after(getattr(native, where), lambda *_: True))
        with pytest.raises(Killed):
            native.write_folder(folder, "model", NEW, {"which": "new"}, {"card.md": "new"})
    tensors, document, card = native.read_model(folder)
    assert card == document["which"]
    assert torch.equal(tensors["w"], {"old": OLD, "new": NEW}[card]["w"])
    native.write_folder(
        folder, "model", NEW, {"which": "new"}, {"card.md": "new"}
    )  # and the next writer is not in its way
    assert native.read_model(folder)[1] == {"which": "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_too_little_disk_is_seen_before_and_the_old_folder_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    native.write_folder(folder, "model", OLD, {"which": "old"})
    monkeypatch.setattr(native.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**19))
    with pytest.raises(ValueError, match=r"cannot write .*model: .* MiB are needed and 0\.5 MiB are free; free space"):
        native.write_folder(folder, "model", NEW, {"which": "new"})
    assert native.read_model(folder)[1] == {"which": "old"}


@pytest.mark.parametrize("where", ["save_file", "_flush", "rename"])
def test_an_error_of_the_disk_at_any_point_leaves_the_old_folder(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    native.write_folder(folder, "model", OLD, {"which": "old"})

    def full(*args: Any) -> None:
        if where != "rename" or args[0].name.endswith(".writing"):
            raise OSError(28, "No space left on device")
        real(*args)

    real = Path.rename
    with monkeypatch.context() as patched:
        patched.setattr(Path if where == "rename" else native, where, full)
        with pytest.raises(ValueError, match=r"cannot write .*: No space left on device; free space or choose") as told:
            native.write_folder(folder, "model", NEW, {"which": "new"})
    assert "\n" not in str(told.value)
    assert native.read_model(folder)[1] == {"which": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file" / "model", Path("/proc/sfumato/model")):
        with pytest.raises(ValueError, match=rf"cannot write {place}: .*--out"):
            native.write_folder(place, "model", NEW, {})
        with pytest.raises(ValueError, match=rf"cannot write {place}.json: .*--out"):
            native.write_json(place.with_name("model.json"), {})


def test_json_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    native.write_json(path, {"a": 1})
    monkeypatch.setattr(native, "_flush", lambda path: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        native.write_json(path, {"a": 2})
    assert native.read_json(path) == {"a": 1}
    with pytest.raises(ValueError, match="is missing"):
        native.read_json(tmp_path / "b.json")


def test_the_digest_without_file_digest_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 9000)
    with open(path, "rb") as file:
        assert native._slow_digest(file) == native._digest(path)


def test_fill_names_all_that_does_not_fit() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    with pytest.raises(ValueError, match="take the pair that was saved together") as told:
        native.fill(net, {"0.weight": torch.ones(3, 3), "0.bias": torch.ones(3), "z": torch.ones(1)}, "here")
    text = str(told.value)
    assert "\n" not in text
    for part in ("here", "missing: 1.bias, 1.weight", "foreign: z", "0.weight is (3, 3), wanted (3, 2)"):
        assert part in text
    before = {name: x.clone() for name, x in net.state_dict().items()}
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
    many = {f"{i}": torch.ones(1) for i in range(9)}
    with pytest.raises(ValueError, match=r"foreign: 0, 1, 2, 3 and 5 more"):
        native.fill(nn.Identity(), many, "here")


def test_fill_takes_another_precision() -> None:
    net = nn.Linear(1, 1)
    native.fill(net, {"weight": torch.tensor([[0.5]]).half(), "bias": torch.tensor([2.0]).bfloat16()}, "here")
    assert net.weight.dtype == torch.float32
    assert net(torch.ones(1)).item() == 2.5


def test_json_has_no_numbers_that_are_none(tmp_path: Path) -> None:
    native.write_json(
        tmp_path / "a.json", {"a": math.nan, "b": [1.5, math.inf], "c": {"d": (-math.inf, np.float32(2))}}
    )
    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert found == {"a": None, "b": [1.5, None], "c": {"d": [None, 2]}}
