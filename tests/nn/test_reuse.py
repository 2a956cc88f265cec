"""Deep features used again: the whole network where nothing is reused, and what is kept is kept for a walk alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sfumato
from sfumato.nn import MLP, Conditions, MLPConfig, UNet, UNetConfig
from sfumato.nn.reuse import Reuse
from sfumato.tasks import generate

from .perturbed import perturbed

CONFIGS = [
    UNetConfig(channels=8, multipliers=(1, 2, 2), blocks=2, attention=(0,), groups=4),
    UNetConfig(channels=8, multipliers=(1, 2), blocks=1, adaptive=False, residual_resampling=False, groups=4),
    UNetConfig(channels=8, multipliers=(1,), blocks=1, groups=4),
]


def asked(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 2, 7, 6, generator=generator)
    return x, torch.rand(rows, generator=generator), {"label": torch.arange(rows) % 3}


@pytest.mark.parametrize("config", CONFIGS, ids=["adm", "ddpm", "one level"])
def test_the_first_level_with_its_own_deep_features_is_the_network(config: UNetConfig) -> None:
    torch.manual_seed(0)
    net = perturbed(UNet(config, (2, 7, 6), Conditions(classes=3))).eval()
    given = asked(3, 1)
    y, deep = net.answer(*given)
    assert torch.equal(y, net(*given))
    torch.testing.assert_close(net.answer(*given, deep)[0], y)
    other = net.answer(*asked(3, 2))[1]
    assert not torch.allclose(net.answer(*given, other)[0], y, atol=1e-3)


def test_every_third_call_is_whole() -> None:
    torch.manual_seed(0)
    net = perturbed(UNet(CONFIGS[0], (2, 7, 6), Conditions(classes=3))).eval()
    reuse, kept = Reuse(net, 3), None
    for call in range(7):
        given = asked(4, call)
        if call % 3 == 0:
            kept = net.answer(*given)[1]
        torch.testing.assert_close(reuse(*given), net.answer(*given, kept)[0])
    fewer = asked(2, 9)  # as when guidance begins to act on some rows alone
    torch.testing.assert_close(reuse(*fewer), net(*fewer))
    always = Reuse(net, 1)
    for call in range(3):
        given = asked(4, call)
        assert torch.equal(always(*given), net(*given))


def test_what_cannot_be_reused_is_said() -> None:
    net = UNet(CONFIGS[2], (2, 7, 6))
    with pytest.raises(ValueError, match="reuse 0 came"):
        Reuse(net, 0)
    with pytest.raises(ValueError, match="MLP, allowed is a UNet"):
        Reuse(MLP(MLPConfig(), (3,)), 2)
    net.compile()
    with pytest.raises(ValueError, match="first level alone was not compiled; take precision"):
        Reuse(net, 2)


def test_samples_with_reuse_know_neither_their_batch_nor_the_walk_before() -> None:
    model = sfumato.load("digits")
    whole = model.sample(6, steps=10, reuse=2, seed=1)
    assert torch.equal(whole, model.sample(6, steps=10, reuse=2, seed=1))
    parts = model.sample(6, steps=10, reuse=2, seed=1, batch=2)
    assert (whole.int() - parts.int()).abs().max() <= 1
    drawn = generate(model, 6, steps=10, reuse=2, seed=1)
    assert np.array_equal(drawn.x, whole.numpy())
    assert drawn.settings["reuse"] == 2
    plain = model.sample(6, steps=10, seed=1)
    assert not torch.equal(whole, plain)
    assert (whole.float() - plain.float()).abs().mean() < 1.5  # of 17 levels
