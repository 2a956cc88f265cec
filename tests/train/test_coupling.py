"""Couplings: optimal transport against every permutation, and what a training makes of them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato import data
from sfumato.nn import MLPConfig
from sfumato.noise import training_noise
from sfumato.train import Loss, Run, Training, trainer
from sfumato.train.coupling import COUPLINGS
from sfumato.train.trainer import train

from ..tiny import silent, tiny


def rows(n: int, shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    x_0, eps = torch.randn(2, n, *shape, generator=torch.Generator().manual_seed(seed))
    return 2 * x_0 + 1, eps


def cost(x_0: Tensor, eps: Tensor, p: Tensor) -> float:
    return float((x_0.double() - eps[p].double()).square().sum())


@pytest.mark.parametrize("shape", [(1,), (2,), (1, 3, 2)])
@pytest.mark.parametrize("n", range(1, 7))
def test_ot_is_the_best_of_all_permutations(n: int, shape: tuple[int, ...]) -> None:
    for seed in range(4):
        x_0, eps = rows(n, shape, seed)
        p = COUPLINGS["ot"](x_0, eps, False)
        assert sorted(p.tolist()) == list(range(n))
        best = min(itertools.permutations(range(n)), key=lambda order: cost(x_0, eps, torch.tensor(order)))
        assert p.tolist() == list(best)


def test_on_a_line_ot_keeps_the_order() -> None:
    """Of many rows: the i-th smallest x_0 goes with the i-th smallest eps."""
    x_0, eps = rows(500, (1,), 0)
    p = COUPLINGS["ot"](x_0, eps, False)
    assert torch.equal(eps[p].flatten().argsort(), x_0.flatten().argsort())


def test_ot_costs_less_than_chance_and_is_always_the_same() -> None:
    for seed in range(5):
        x_0, eps = rows(64, (4,), seed)
        chance = cost(x_0, eps, COUPLINGS["independent"](x_0, eps, False))
        p = COUPLINGS["ot"](x_0, eps, False)
        assert cost(x_0, eps, p) < 0.8 * chance
        assert torch.equal(p, COUPLINGS["ot"](x_0.clone(), eps.clone(), True))


@pytest.mark.parametrize("conditional", [False, True])
def test_auto_is_ot_only_without_conditions(conditional: bool) -> None:
    x_0, eps = rows(20, (3,), 0)
    wanted = COUPLINGS["independent" if conditional else "ot"](x_0, eps, conditional)
    assert torch.equal(COUPLINGS["auto"](x_0, eps, conditional), wanted)
    assert torch.equal(COUPLINGS["independent"](x_0, eps, conditional), torch.arange(20))


Seen = tuple[Tensor, Tensor, dict[str, Tensor]]


def first_step(run: Run, out: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Training, Seen, Tensor]:
    """x_0, eps and cond as the loss of step 1 got them, and the noise that was drawn."""
    seen: list[Seen] = []
    real = trainer.row_losses

    def watch(
        training: Training, denoiser: Any, x_0: Tensor, t: Tensor, eps: Tensor, cond: dict[str, Tensor]
    ) -> Tensor:
        seen.append((x_0, eps, cond))
        return real(training, denoiser, x_0, t, eps, cond)

    monkeypatch.setattr(trainer, "row_losses", watch)
    training = Training(run, out, say=silent, resume=False)
    next(train(training))
    return training, seen[0], training_noise(run.seed, 1, run.batch, range(run.batch), training.config.shape)


@pytest.mark.parametrize("coupling", ["independent", "ot", "auto"])
def test_labels_stay_with_their_rows(coupling: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits: rows and labels are those of the batch in its order; the noise alone is permuted, and only if asked."""
    run = tiny(loss=Loss(coupling=coupling), batch=16, drop_label=0.0)
    training, (x_0, eps, cond), drawn = first_step(run, tmp_path, monkeypatch)
    wanted, labels = training.encode(next(training.splits.train.batches(run.seed, run.batch)))
    assert torch.equal(x_0, wanted)
    assert torch.equal(cond["label"], labels["label"])
    order = COUPLINGS["ot"](x_0, drawn, True) if coupling == "ot" else torch.arange(16)
    assert torch.equal(eps, drawn[order])
    if coupling == "ot":
        assert not torch.equal(order, torch.arange(16))


def test_auto_transports_data_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((200, 2)))
    run = tiny(
        data=data.Data("file", path=str(tmp_path / "x.npy")),
        network=MLPConfig(width=8, depth=1),
        loss=Loss(coupling="auto"),
        batch=32,
    )
    _, (x_0, eps, cond), drawn = first_step(run, tmp_path / "out", monkeypatch)
    assert not cond
    assert torch.equal(eps, drawn[COUPLINGS["ot"](x_0, drawn, False)])
    assert cost(x_0, eps, torch.arange(32)) < 0.7 * cost(x_0, drawn, torch.arange(32))


def test_an_unknown_coupling_is_refused(tmp_path: Path) -> None:
    run = tiny(loss=Loss(coupling="optimal"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown coupling 'optimal'"):
        Training(run, tmp_path, say=silent, resume=False)
