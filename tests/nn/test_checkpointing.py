"""Blocks computed again: the same gradients to the bit, dropout among them, and less kept."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from sfumato.nn import MLP, DiT, DiTConfig, MLPConfig, UNet, UNetConfig, checkpointing, dropout
from sfumato.noise import philox

from .perturbed import perturbed

NETS = {
    "unet": lambda: UNet(UNetConfig(channels=8, multipliers=(1, 2), attention=(1,), groups=4, dropout=0.3), (2, 8, 8)),
    "dit": lambda: DiT(DiTConfig(patch=2, width=16, depth=3, heads=2, dropout=0.3), (2, 8, 8)),
}


def gradients(net: torch.nn.Module) -> tuple[list[torch.Tensor], int]:
    """Of a loss, and how many numbers were kept for them."""
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.numel()
        return x

    x = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(3))
    net.train()
    keys = dropout.draw_keys(net, philox(0, 7, 1), 4)
    with dropout.rows_of(net, keys):
        with saved_tensors_hooks(keep, lambda x: x):
            y = net(x, torch.linspace(0, 1, 4))
        return list(torch.autograd.grad(y.square().sum(), list(net.parameters()))), sum(kept.values())


@pytest.mark.parametrize("name", NETS)
def test_the_gradients_are_the_same_and_less_is_kept(name: str) -> None:
    torch.manual_seed(0)
    net = perturbed(NETS[name]())
    usual, much = gradients(net)
    checkpointing.use(net, True)
    again, little = gradients(net)
    assert all(torch.equal(a, b) for a, b in zip(usual, again, strict=True))
    assert little < 0.6 * much
    checkpointing.use(net, False)
    assert gradients(net)[1] == much


def test_what_has_no_blocks_to_compute_again_says_so() -> None:
    with pytest.raises(ValueError, match="gradient_checkpointing came for a network of kind MLP"):
        checkpointing.use(MLP(MLPConfig(), (3,)), True)
