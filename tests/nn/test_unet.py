"""The UNet against itself in other dimensions, and against what its conditions promise.

Against diffusers' own it is held in tests/checkpoints/test_diffusers.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.nn import NETWORKS, Conditions, UNet, UNetConfig

from .perturbed import perturbed

DDPM: dict[str, Any] = {"adaptive": False, "residual_resampling": False, "head_channels": 0}
TINY: dict[str, Any] = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "groups": 4}
ALL = Conditions(classes=10, vector=3, context=5, concat=2)
STYLES = pytest.mark.parametrize("style", [{}, DDPM], ids=["adm", "ddpm"])


def told(rows: int, *spatial: int, tokens: int = 4) -> dict[str, torch.Tensor]:
    """Every condition of ALL, for that many rows."""
    return {
        "label": torch.arange(rows) % 10,
        "vector": torch.randn(rows, 3),
        "context": torch.randn(rows, tokens, 5),
        "image": torch.randn(rows, 2, *spatial),
    }


def test_the_cifar10_configuration_of_ddpm_has_its_35_7_million_parameters():
    with torch.device("meta"):
        net = UNet(UNetConfig(channels=128, multipliers=(1, 2, 2, 2), attention=(1,), **DDPM), (3, 32, 32))
    assert sum(parameter.numel() for parameter in net.parameters()) == 35_746_307


@STYLES
@pytest.mark.parametrize("spatial", [(7,), (8,)])
def test_a_signal_is_a_flat_picture_is_a_flat_volume(style, spatial):
    """With one pixel along an axis, a kernel's middle is all that acts: the 2-D and 3-D nets are the 1-D net."""
    torch.manual_seed(1)
    config = UNetConfig(**TINY, **style)
    net = perturbed(UNet(config, (3, *spatial), ALL))
    x, t, cond = torch.randn(5, 3, *spatial), torch.rand(5), told(5, *spatial)
    expected = net(x, t, cond)
    for extra in (1, 2):
        flat = perturbed(UNet(config, (3, *[1] * extra, *spatial), ALL))
        for name, parameter in flat.state_dict().items():
            source = net.state_dict()[name]
            middle = (..., *[n // 2 for n in parameter.shape[2 : 2 + extra]], slice(None))
            (parameter[middle] if parameter.ndim > 2 else parameter).copy_(source)
        flatly = dict(cond, image=cond["image"].reshape(5, 2, *[1] * extra, *spatial))
        out = flat(x.reshape(5, 3, *[1] * extra, *spatial), t, flatly)
        torch.testing.assert_close(out.reshape(expected.shape), expected, atol=2e-5, rtol=1e-5)


@STYLES
def test_a_condition_that_is_not_given_is_null(style):
    torch.manual_seed(2)
    net = perturbed(UNet(UNetConfig(**TINY, **style), (1, 6, 5), ALL))
    x, t, cond = torch.randn(3, 1, 6, 5), torch.rand(3), told(3, 6, 5)
    null = {
        "label": torch.full((3,), 10),
        "vector": torch.zeros(3, 3),
        "context": torch.zeros(3, 7, 5),
        "image": torch.zeros(3, 2, 6, 5),
    }
    silent = net(x, t)
    torch.testing.assert_close(net(x, t, null), silent, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(net(x, t, {"guidance": torch.ones(3)}), silent)
    for name, value in cond.items():
        assert not torch.allclose(net(x, t, {name: value}), silent, atol=1e-3), f"{name} is not heard"
        torch.testing.assert_close(
            net(x, t, dict(null, **{name: value})), net(x, t, {name: value}), atol=1e-5, rtol=1e-5
        )


@STYLES
@pytest.mark.parametrize("shape", [(2, 9), (1, 6, 5), (1, 3, 4, 5)])
def test_a_row_is_the_same_alone_and_in_any_batch(style, shape):
    torch.manual_seed(3)
    net = perturbed(UNet(UNetConfig(**TINY, **style), shape, ALL)).eval()
    x, t, cond = torch.randn(7, *shape), torch.rand(7), told(7, *shape[1:])
    cond["context"][0, 2:] = 0  # row 0 has two tokens, padded to its batch-mates' four
    together = net(x, t, cond)
    backwards = net(x.flip(0), t.flip(0), {name: value.flip(0) for name, value in cond.items()}).flip(0)
    torch.testing.assert_close(backwards, together, atol=1e-5, rtol=1e-5)
    for row in range(7):
        alone = {name: value[row : row + 1] for name, value in cond.items()}
        if row == 0:
            alone["context"] = alone["context"][:, :2]
        torch.testing.assert_close(
            net(x[row : row + 1], t[row : row + 1], alone)[0], together[row], atol=1e-5, rtol=1e-5
        )


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=3).flatmap(
        lambda spatial: st.integers(1, 3).map(lambda channels: (channels, *spatial))
    ),
    style=st.sampled_from([{}, DDPM, {"adaptive": False}, {"residual_resampling": False}]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    out=st.sampled_from([None, 5]),
)
def test_any_size_goes_in_and_comes_out(shape, style, dtype, out):
    net = UNet(UNetConfig(channels=4, multipliers=(1, 2, 1), blocks=1, groups=2, **style), shape, out_channels=out)
    x, t = torch.randn(2, *shape, dtype=dtype), torch.rand(2)
    y = net(x, t)
    assert y.shape == (2, out or shape[0], *shape[1:])
    assert y.dtype == dtype
    assert not y.any(), "zero before training"
    half = dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        y = perturbed(net).to(torch.float32 if half else dtype)(x, t)
    assert y.dtype == dtype
    assert y.isfinite().all()
    assert y.any()


@STYLES
def test_gradients_reach_every_parameter_and_the_input(style):
    torch.manual_seed(4)
    net = perturbed(UNet(UNetConfig(**TINY, **style), (1, 7, 6), ALL))
    x = torch.randn(3, 1, 7, 6, requires_grad=True)
    net(x, torch.rand(3), told(3, 7, 6)).square().sum().backward()
    assert x.grad is not None
    assert x.grad.any()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_parameters_of_conditions_that_are_not_given_are_still_in_the_graph():
    net = perturbed(UNet(UNetConfig(**TINY), (1, 4, 4), ALL))
    net(torch.randn(2, 1, 4, 4), torch.rand(2)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())  # what several processes wait for


def test_dropout_acts_in_training_alone():
    torch.manual_seed(5)
    dry = perturbed(UNet(UNetConfig(**TINY), (1, 6, 6)))
    net = UNet(UNetConfig(**TINY, dropout=0.5), (1, 6, 6))
    net.load_state_dict(dry.state_dict())
    x, t = torch.randn(2, 1, 6, 6), torch.rand(2)
    torch.testing.assert_close(net.eval()(x, t), dry(x, t))
    assert not torch.allclose(net.train()(x, t), net(x, t), atol=1e-3)


def test_time_is_embedded_in_float32_whatever_the_precision_around():
    """In bfloat16 the times 500 and 501 are one number; the network must tell them apart as float32 does."""
    torch.manual_seed(6)
    net = perturbed(UNet(UNetConfig(**TINY), (1, 4, 4)))
    x, t = torch.randn(1, 1, 4, 4).expand(2, 1, 4, 4), torch.tensor([500.0, 501.0])
    exact = net(x, t)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(x, t)
    assert half.dtype == torch.float32
    assert (exact[0] - exact[1]).abs().mean() > 0.1
    assert (half - exact).abs().mean() < 0.2 * (exact[0] - exact[1]).abs().mean()


@pytest.mark.parametrize("scale", [1000.0, 0.25])
def test_time_scale_multiplies_the_time(scale):
    torch.manual_seed(7)
    plain = perturbed(UNet(UNetConfig(**TINY), (1, 4, 4)))
    scaled = UNet(UNetConfig(**TINY, time_scale=scale), (1, 4, 4))
    scaled.load_state_dict(plain.state_dict())
    x, t = torch.randn(3, 1, 4, 4), torch.tensor([0.125, 0.5, 1.0])
    torch.testing.assert_close(scaled(x, t), plain(x, t * scale))
    torch.testing.assert_close(plain(x, torch.tensor([0, 1, 7])), plain(x, torch.tensor([0.0, 1.0, 7.0])))


def test_channels_last_gives_the_same_picture():
    torch.manual_seed(8)
    net = perturbed(UNet(UNetConfig(**TINY), (3, 8, 7)))
    x, t = torch.randn(4, 3, 8, 7), torch.rand(4)
    expected = net(x, t)
    last = torch.channels_last
    torch.testing.assert_close(net.to(memory_format=last)(x.to(memory_format=last), t), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("x", "t", "cond", "says"),
    [
        ((2, 1, 8, 8), (2,), {}, r"\(2, 1, 8, 8\).*\(B, 3, 8, 8\)"),
        ((3, 8, 8), (3,), {}, r"\(3, 8, 8\).*\(B, 3, 8, 8\)"),
        ((2, 3, 8, 9), (2,), {}, r"\(2, 3, 8, 9\)"),
        ((2, 3, 8, 8), (), {}, r"t has shape \(\).*\(2,\)"),
        ((2, 3, 8, 8), (3,), {}, r"t has shape \(3,\)"),
        ((2, 3, 8, 8), (2,), {"label": torch.tensor([0, 11])}, r"labels from 0 to 11.*0\.\.9.*10 for no label"),
        ((2, 3, 8, 8), (2,), {"label": torch.tensor([-1, 1])}, r"labels from -1"),
    ],
)
def test_what_does_not_fit_is_answered_in_one_line(x, t, cond, says):
    net = UNet(UNetConfig(**TINY), (3, 8, 8), ALL)
    with pytest.raises(ValueError, match=says) as error:
        net(torch.zeros(x), torch.zeros(t), cond)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"channels": 7}, "channels = 7"),
        ({"multipliers": ()}, "multipliers"),
        ({"attention": (3,)}, r"attention = \(3,\).*0\.\.2"),
        ({"blocks": 0}, "blocks = 0"),
        ({"groups": 0}, "groups = 0"),
        ({"dropout": 1.0}, "dropout = 1.0"),
    ],
)
def test_a_config_that_cannot_be_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        UNetConfig(**options)


def test_a_shape_that_is_no_signal_image_or_volume_is_refused():
    for shape in [(3,), (1, 2, 3, 4, 5), (0, 8)]:
        with pytest.raises(ValueError, match="use mlp"):
            UNet(UNetConfig(**TINY), shape)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_row_of_the_table_builds(name):
    row = NETWORKS[name]
    shape = (4,) if name == "mlp" else (1, 8, 8)
    net = row.build(row.config(), shape, Conditions(classes=2), 2 * shape[0])
    assert net(torch.randn(2, *shape), torch.rand(2)).shape == (2, 2 * shape[0], *shape[1:])
    assert row.summary
