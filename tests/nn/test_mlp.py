"""The MLP against its formula, and what it promises of conditions, rows and linear answers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.nn import MLP, Conditions, MLPConfig

from .perturbed import perturbed

TOLD = Conditions(classes=3, vector=2)


def silu(h: torch.Tensor) -> torch.Tensor:
    return h / (1 + torch.exp(-h))


def test_the_mlp_is_its_formula():
    torch.manual_seed(0)
    net = perturbed(MLP(MLPConfig(width=8, depth=2), (3,), TOLD)).double()
    x, t = torch.randn(4, 3).double(), torch.rand(4)
    cond = {"label": torch.tensor([0, 1, 2, 3]), "vector": torch.randn(4, 2).double()}
    told = silu(net.embedding(t, cond)) @ net.film.weight.T + net.film.bias
    scale, shift = told.reshape(4, 3, 2, 8).unbind(2)  # a pair each block, and one for the end
    h = x @ net.stem.weight.T + net.stem.bias
    for layer in range(2):
        deviation = h - h.mean(1, keepdim=True)
        r = deviation / (deviation.square().mean(1, keepdim=True) + 1e-6).sqrt()
        r = (1 + scale[:, layer]) * r + shift[:, layer]
        h = h + net.outer[layer](silu(net.inner[layer](r)))
    expected = net.out((1 + scale[:, 2]) * h + shift[:, 2])
    torch.testing.assert_close(net(x, t, cond), expected, atol=1e-12, rtol=1e-10)


def test_without_its_blocks_it_is_affine_in_x_at_any_time():
    torch.manual_seed(1)
    net = MLP(MLPConfig(width=16), (3,)).double()
    torch.nn.init.normal_(net.out.weight)
    a, b, t = torch.randn(5, 3).double(), torch.randn(5, 3).double(), torch.rand(5)
    origin = net(0 * a, t)
    torch.testing.assert_close(net(2 * a - 3 * b, t) - origin, 2 * (net(a, t) - origin) - 3 * (net(b, t) - origin))
    assert not torch.allclose(net(a, t), net(a, t + 1), atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(size=st.integers(1, 9), out=st.sampled_from([None, 4]), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_any_size_goes_in_and_comes_out(size, out, dtype):
    net = MLP(MLPConfig(width=8, depth=1), (size,), out_channels=out)
    x, t = torch.randn(3, size, dtype=dtype), torch.rand(3)
    y = net(x, t)
    assert y.shape == (3, out or size)
    assert y.dtype == dtype
    assert not y.any(), "zero before training"
    with torch.autocast("cpu", torch.bfloat16):
        assert perturbed(net)(x, t).dtype == dtype


def test_conditions_are_heard_and_null_is_silence():
    torch.manual_seed(2)
    net = perturbed(MLP(MLPConfig(width=16, depth=2), (3,), TOLD))
    x, t = torch.randn(4, 3), torch.rand(4)
    silent = net(x, t)
    torch.testing.assert_close(net(x, t, {"label": torch.full((4,), 3), "vector": torch.zeros(4, 2)}), silent)
    for told in ({"label": torch.tensor([0, 1, 2, 0])}, {"vector": torch.ones(4, 2)}):
        assert not torch.allclose(net(x, t, told), silent, atol=1e-3)


def test_a_row_is_the_same_alone_and_in_a_batch_and_gradients_reach_all():
    torch.manual_seed(3)
    net = perturbed(MLP(MLPConfig(width=16, depth=3), (3,), TOLD))
    x, t = torch.randn(7, 3), torch.rand(7)
    cond = {"label": torch.arange(7) % 4, "vector": torch.randn(7, 2)}
    together = net(x, t, cond)
    for row in range(7):
        alone = net(x[row : row + 1], t[row : row + 1], {name: value[row : row + 1] for name, value in cond.items()})
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)
    together.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_dropout_acts_in_training_alone():
    torch.manual_seed(4)
    net = perturbed(MLP(MLPConfig(width=16, dropout=0.5), (3,)))
    x, t = torch.randn(4, 3), torch.rand(4)
    assert not torch.allclose(net.train()(x, t), net(x, t), atol=1e-3)
    torch.testing.assert_close(net.eval()(x, t), net(x, t))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: MLPConfig(width=3), "width = 3"),
        (lambda: MLPConfig(depth=0), "depth = 0"),
        (lambda: MLPConfig(dropout=-0.1), "dropout = -0.1"),
        (lambda: MLP(MLPConfig(), (1, 8)), "use unet"),
        (lambda: MLP(MLPConfig(), (3,), Conditions(concat=1)), "use unet"),
        (lambda: MLP(MLPConfig(), (3,))(torch.zeros(2, 4), torch.zeros(2)), r"\(2, 4\).*\(B, 3\)"),
        (lambda: MLP(MLPConfig(), (3,))(torch.zeros(2, 3), torch.zeros(1)), r"t has shape \(1,\)"),
    ],
)
def test_what_cannot_be_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
