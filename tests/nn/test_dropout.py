"""Dropout by row: masks that a row takes with it, whatever its batch, its memory or how often it is asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from sfumato.nn import MLP, DiT, DiTConfig, MLPConfig, UNet, UNetConfig, dropout
from sfumato.nn.dropout import Dropout, draw_keys, kept, rows_of

from .perturbed import perturbed

NETS: dict[str, tuple[tuple[int, ...], nn.Module]] = {
    "unet": (
        (1, 6, 5),
        UNet(UNetConfig(channels=8, multipliers=(1, 2), blocks=1, groups=4, dropout=0.3), (1, 6, 5)),
    ),
    "dit": ((1, 6, 4), DiT(DiTConfig(width=12, depth=2, heads=3, dropout=0.3), (1, 6, 4))),
    "mlp": ((3,), MLP(MLPConfig(width=16, depth=2, dropout=0.3), (3,))),
}


def keys_of(rows: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(-(2**31), 2**31, (rows, 2), dtype=np.int32))


def hashed(i: int, first: int, second: int) -> int:
    """(2) of the module in Python's integers, modulo 2^32 by hand."""
    u = i ^ first % 2**32
    v = ((u ^ u >> 16) * 0x7FEB352D + second) % 2**32
    return (v ^ v >> 15) * 0x846CA68B % 2**32


def test_masks_are_the_formula() -> None:
    keys = keys_of(3)
    mask = kept(keys, torch.empty(3, 2, 3, 5), 0.7).flatten(1)
    for row, (first, second) in enumerate(keys.tolist()):
        assert mask[row].tolist() == [hashed(i, first, second) ^ 2**31 < 0.7 * 2**32 for i in range(30)]


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_mean_variance_and_independence(p: float) -> None:
    """Over a million values, six statistics each within 4.5 standard errors: 2e-5 for one false alarm a case."""
    rows, n = 500, 2048
    x = torch.ones(rows, n, dtype=torch.float64)
    layer = Dropout(p).train()
    layer.keys = keys_of(rows)
    y = layer(x)
    assert set(y.unique().tolist()) == {0.0, 1 / (1 - p)}
    error = (y - 1) / (p / (1 - p)) ** 0.5  # mean 0, variance 1
    scaled = [error.mean() * (rows * n) ** 0.5]
    for other in (error.roll(1, 0), error.roll(1, 1), error.roll(45, 1), error[:, torch.arange(n) ^ 1]):
        scaled.append((error * other).mean() * (rows * n) ** 0.5)  # of neighbours: rows, values, places below
    layer.keys = keys_of(rows, seed=1)
    scaled.append((error * (layer(x) - 1)).mean() / (p / (1 - p)) ** 0.5 * (rows * n) ** 0.5)
    assert max(abs(float(z)) for z in scaled) < 4.5, scaled
    assert float(error.var()) == pytest.approx(1, abs=0.01)
    between = error @ error.T / n  # all pairs of rows; squares of their correlations have mean 1/n
    assert float(between.fill_diagonal_(0).square().sum() / (rows * (rows - 1)) * n) == pytest.approx(1, abs=0.05)


def test_without_rows_it_is_torchs_own_and_in_eval_mode_nothing() -> None:
    x = torch.ones(4, 500)
    layer = Dropout(0.25)
    torch.manual_seed(3)
    ours = layer(x)
    torch.manual_seed(3)
    assert torch.equal(ours, torch.nn.functional.dropout(x, 0.25))
    assert layer.eval()(x) is x
    assert Dropout(0.0).train()(x) is x


def test_the_layout_in_memory_stays_and_changes_no_mask() -> None:
    x = torch.randn(3, 8, 4, 6)
    layer = Dropout(0.4).train()
    layer.keys = keys_of(3)
    for rows in (1, 3):
        layer.keys = keys_of(rows)
        last = x[:rows].contiguous(memory_format=torch.channels_last)
        assert layer(last).is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(layer(last), layer(x[:rows]))
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def case(name: str) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A network in training, x and t of 6 rows in float64, and keys."""
    torch.manual_seed(0)
    shape, net = NETS[name]
    net = perturbed(net).double().train()
    return net, torch.randn(6, *shape).double(), torch.rand(6).double(), draw_keys(net, np.random.default_rng(0), 6)


@pytest.mark.parametrize("name", NETS)
def test_a_row_takes_its_masks_with_it(name: str) -> None:
    """Alone, among others, in another order, and asked again: the same answer; another layer or key: another mask."""
    net, x, t, keys = case(name)
    with rows_of(net, keys):
        whole = net(x, t)
        assert torch.equal(net(x, t), whole)
    for rows in ([4], [5, 0, 3], list(range(1, 6, 2))):
        with rows_of(net, keys[rows]):
            torch.testing.assert_close(net(x[rows], t[rows]), whole[rows], atol=1e-12, rtol=1e-10)
    with rows_of(net, keys.flip(1)):
        assert not torch.allclose(net(x, t), whole, atol=1e-6)
    with rows_of(net, keys.roll(1, 0)):
        assert (net(x, t) - whole).flatten(1).abs().amax(1).min() > 1e-6
    assert all(layer.keys is None for layer in dropout.layers(net))
    net.eval()
    with rows_of(net, keys):
        assert torch.equal(net(x, t), net.eval()(x, t))


def test_keys_of_a_row_do_not_depend_on_the_batch() -> None:
    net = NETS["unet"][1]
    many = draw_keys(net, np.random.default_rng(7), 12)
    assert torch.equal(draw_keys(net, np.random.default_rng(7), 5), many[:5])
    assert len(set(many.flatten().tolist())) == many.numel() == 12 * 2 * len(dropout.layers(net))
    assert draw_keys(nn.Linear(1, 1), np.random.default_rng(7), 3).shape == (3, 0, 2)


def test_rows_are_left_even_where_the_network_fails() -> None:
    net, x, t, keys = case("mlp")
    with pytest.raises(ValueError, match="x"), rows_of(net, keys):
        net(x[:, :2], t)
    assert all(layer.keys is None for layer in dropout.layers(net))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch, at its first such product
@pytest.mark.parametrize("name", NETS)
def test_forward_mode_goes_through(name: str) -> None:
    """MeanFlow derives the network as it is trained: with fixed masks it is differentiable like any other."""
    net, x, t, keys = case(name)
    v, h = torch.randn_like(x), 1e-6
    with rows_of(net, keys), sdpa_kernel(SDPBackend.MATH):
        _, slope = jvp(lambda x: net(x, t), (x,), (v,))
        torch.testing.assert_close(slope, (net(x + h * v, t) - net(x - h * v, t)) / (2 * h), atol=1e-6, rtol=1e-5)
