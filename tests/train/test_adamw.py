"""One pass over the weights against torch.optim.AdamW, PyTorch's clipping and the averages' own update."""

from __future__ import annotations

import copy
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from sfumato.nn import compiled
from sfumato.train import adamw
from sfumato.train.ema import EMA

LENGTHS = (0.05, 0.1)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 200), nn.SiLU(), nn.Linear(200, 200), nn.SiLU(), nn.Linear(200, 3))


def optimiser(*modules: nn.Module) -> torch.optim.AdamW:
    groups = [{"params": list(module.parameters())} for module in modules]
    return torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)


def gradients(module: nn.Module, k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    for p in module.parameters():
        p.grad = torch.randn(p.shape, generator=generator) * 10.0 ** (k % 3 - 2)


@pytest.mark.parametrize("here", [True, False], ids=["compiled", "pytorch"])
def test_steps_are_those_of_torch_and_the_averages_theirs(here: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if here and adamw._compiled() is None:
        pytest.skip("no C compiler here")
    if not here:
        monkeypatch.setattr(adamw, "_compiled", lambda: None)
    found, other = net(), nn.Linear(1, 1)
    truth, theirs = copy.deepcopy(found), copy.deepcopy(other)
    mine, usual = optimiser(found, other), optimiser(truth, theirs)
    ours, expected = EMA(found, LENGTHS), EMA(truth, LENGTHS)
    for k in range(1, 8):
        for one in (mine, usual):
            one.param_groups[0]["lr"] = 1e-3 * k
        for module in (found, truth, other, theirs):
            gradients(module, k)
        norm = torch.nn.utils.clip_grad_norm_(truth.parameters(), 1.0)
        usual.step()
        expected.update(truth, k)
        adamw.descend(mine, found, ours, k, adamw.clipping(float(norm), 1.0))
        if k == 4:  # a state that was saved and read again
            mine.load_state_dict(copy.deepcopy(mine.state_dict()))
    for a, b in zip(
        [*found.parameters(), *other.parameters()], [*truth.parameters(), *theirs.parameters()], strict=True
    ):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-7)
    for name, x in ours.tensors().items():
        torch.testing.assert_close(x, expected.tensors()[name], rtol=2e-6, atol=2e-7)
    for p, q in zip(found.parameters(), truth.parameters(), strict=True):
        assert mine.state[p]["step"] == usual.state[q]["step"] == 7
        torch.testing.assert_close(mine.state[p]["exp_avg_sq"], usual.state[q]["exp_avg_sq"], rtol=1e-5, atol=1e-12)


def test_a_gradient_is_held_to_its_length_and_no_more() -> None:
    assert adamw.clipping(4.0, 1.0) == 0.25
    assert adamw.clipping(0.5, 1.0) == 1.0
    assert adamw.clipping(0.0, 1.0) == 1.0


def test_what_does_not_learn_stays_as_it_is() -> None:
    module = net()
    before = copy.deepcopy(module.state_dict())
    gradients(module, 1)
    module[0].weight.grad = None  # type: ignore[union-attr]
    adamw.descend(optimiser(module), module, EMA(module, LENGTHS), 1, 1.0)
    assert torch.equal(module[0].weight, before["0.weight"])
    assert not torch.equal(module[2].weight, before["2.weight"])


@pytest.mark.skipif(adamw._compiled() is None, reason="no C compiler here")
def test_a_transformed_weight_is_not_kept_past_a_step() -> None:
    """What watches a tensor's version, as kept transforms do, sees that C has written to it."""
    module = net()
    gradients(module, 1)
    versions = [p._version for p in module.parameters()]
    adamw.descend(optimiser(module), module, EMA(module, LENGTHS), 1, 1.0)
    assert all(p._version > before for p, before in zip(module.parameters(), versions, strict=True))


@pytest.mark.skipif(compiled.compiler() is None, reason="no C compiler here")
def test_it_compiles_without_a_warning(tmp_path: Path) -> None:
    cc = compiled.compiler()
    assert cc is not None
    command = [cc, *compiled.FLAGS, "-Wall", "-Wextra", "-Werror", str(adamw.SOURCE), "-o", str(tmp_path / "a.so")]
    done = subprocess.run([*command, "-lm"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
