"""Rows of several processes in order, and the loss of one of them in one line."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from sfumato.processes import ALONE, Share, announced, joined, launched, one_line

from .tiny import tiny

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:11447. GLHF!"
LATE = "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv"


class Gathered:
    """One process of several: `gather` is given what the others would have sent."""

    def __init__(self, others: list[torch.Tensor]):
        self.others = others

    def __call__(self, mine: torch.Tensor) -> torch.Tensor:
        return torch.cat([mine, *self.others])


@pytest.mark.parametrize(("n", "world"), [(7, 3), (6, 3), (2, 3), (1, 2)])
def test_rows_of_several_processes_come_in_order(n: int, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.arange(n)[:, None].expand(n, 2) + 1
    most = -(-n // world)
    padded = [torch.cat([rows[r::world], torch.zeros(most - len(rows[r::world]), 2).long()]) for r in range(1, world)]
    monkeypatch.setattr("accelerate.utils.gather", Gathered(padded))
    assert torch.equal(joined(rows[0::world], n, Share(0, world)), rows)


def test_one_process_is_all_of_them() -> None:
    assert launched() == ALONE == Share(0, 1)
    x = torch.ones(3)
    assert joined(x, 3, ALONE) is x


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError(GLOO), "has ended"),
        (RuntimeError(LATE), "did not answer"),
        (torch.distributed.DistBackendError("NCCL error"), "has ended"),
        (torch.distributed.DistNetworkError("recvValue failed"), "has ended"),
    ],
)
def test_the_loss_of_a_process_is_one_line(error: RuntimeError, reason: str) -> None:
    with (
        pytest.raises(
            ValueError, match=f"another of the 8 processes {reason}, so process 3 stops; start again"
        ) as told,
        one_line(Share(3, 8), lambda: "start again"),
    ):
        raise error
    assert "\n" not in str(told.value)
    assert told.value.__suppress_context__


def test_a_process_lost_before_the_first_step_is_one_line_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """While the data are read and the network is dealt, the launcher's word is all that is known."""

    def lost(*given: object) -> None:
        raise RuntimeError(GLOO)

    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    fitting = importlib.import_module("sfumato.recipes.fit")  # the module; the package has a function of its name
    monkeypatch.setattr(fitting, "Training", lost)
    with pytest.raises(ValueError, match="another of the 4 processes has ended, so process 2 stops; no step was saved"):
        fitting.fit(tiny(), tmp_path, None, "the command", print, lambda step, loss, rate: None)
    assert announced() == Share(2, 4)


@pytest.mark.parametrize(
    ("share", "error"), [(Share(0, 2), RuntimeError("shapes cannot be multiplied")), (ALONE, RuntimeError(GLOO))]
)
def test_other_errors_are_left_alone(share: Share, error: RuntimeError) -> None:
    with pytest.raises(RuntimeError) as told, one_line(share, lambda: "start again"):
        raise error
    assert told.value is error
