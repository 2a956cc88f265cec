"""How far an answer carries: every network can be told the span, and derived along x, t and span in forward mode.

MeanFlow's target is u = v - (t - s) du/dt, where du/dt is the derivative of net(x, t, span) along (v, 1, 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from sfumato.nn import MLP, Conditions, DiT, DiTConfig, MLPConfig, UNet, UNetConfig

from .perturbed import perturbed

PLAIN = Conditions(classes=3, vector=2)
UNETS = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "groups": 4, "time_scale": 2.0}
# name -> (shape, build); the UNet always attends in its middle
NETS: dict[str, tuple[tuple[int, ...], Callable[[Conditions], nn.Module]]] = {
    "mlp": ((3,), lambda told: MLP(MLPConfig(width=16, depth=2, time_scale=2.0), (3,), told)),
    "unet": ((1, 6, 5), lambda told: UNet(UNetConfig(**UNETS, attention=(0, 1)), (1, 6, 5), told)),
    "unet-ddpm": (
        (2, 7),
        lambda told: UNet(
            UNetConfig(**UNETS, adaptive=False, residual_resampling=False, head_channels=0), (2, 7), told
        ),
    ),
    "dit": ((1, 6, 4), lambda told: DiT(DiTConfig(width=12, depth=2, heads=3, time_scale=2.0), (1, 6, 4), told)),
}
EVERY = pytest.mark.parametrize("name", NETS)
WITH_CONTEXT = pytest.mark.parametrize(
    ("name", "context"), [(name, context) for name in NETS for context in ([0] if name == "mlp" else [0, 5])]
)


def case(name: str, context: int = 0, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor, dict[str, Tensor]]:
    """A perturbed network that is told the span, x, t and conditions, for 4 rows; in float64."""
    torch.manual_seed(seed)
    shape, build = NETS[name]
    net = perturbed(build(replace(PLAIN, span=1, context=context))).double().eval()
    x, t = torch.randn(4, *shape).double(), torch.linspace(0.3, 1, 4).double()
    cond = {"label": torch.tensor([0, 1, 2, 3]), "vector": torch.randn(4, 2).double(), "span": t * torch.rand(4)}
    if context:
        cond["context"] = torch.randn(4, 3, context).double()
        cond["context"][1, 1:] = 0
    return net, x, t, cond


@EVERY
def test_a_new_network_answers_the_same_for_every_span(name):
    """The weights of a network that is not told the span start one that is, and its answers stay."""
    torch.manual_seed(0)
    shape, build = NETS[name]
    plain, spanned = perturbed(build(PLAIN)), build(replace(PLAIN, span=1))
    missing, unexpected = spanned.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(key.startswith("embedding.span.") for key in missing)
    assert missing
    x, t = torch.randn(4, *shape), torch.rand(4)
    expected = plain(x, t)
    for cond in ({}, {"span": torch.zeros(4)}, {"span": t}):
        torch.testing.assert_close(spanned(x, t, cond), expected)


@EVERY
def test_the_span_is_heard_in_every_row_and_null_is_the_instant(name):
    net, x, t, cond = case(name)
    told = net(x, t, cond)
    instant = net(x, t, {key: value for key, value in cond.items() if key != "span"})
    torch.testing.assert_close(net(x, t, dict(cond, span=torch.zeros(4))), instant)
    for row in range(4):
        assert not torch.allclose(told[row], instant[row], atol=1e-3)
        alone = {key: value[row : row + 1] for key, value in cond.items()}
        torch.testing.assert_close(net(x[row : row + 1], t[row : row + 1], alone)[0], told[row])
    told.square().sum().backward()
    assert all(each.grad is not None and each.grad.any() for each in net.embedding.span.parameters())


@WITH_CONTEXT
def test_forward_mode_is_the_finite_difference(name, context):
    """Along x, t and span together and each alone; attention asks its caller for the backend that can."""
    net, x, t, cond = case(name, context)

    def answer(x: Tensor, t: Tensor, span: Tensor) -> Tensor:
        return net(x, t, dict(cond, span=span))

    point = (x, t, cond["span"])
    tangent = (torch.randn_like(x), torch.randn_like(t), torch.randn_like(t))
    h = 1e-5
    for along in ((1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        step = tuple(scale * each for scale, each in zip(along, tangent, strict=True))
        with sdpa_kernel(SDPBackend.MATH):
            primal, derivative = jvp(answer, point, step)
        ahead, behind = (answer(*[p + sign * h * d for p, d in zip(point, step, strict=True)]) for sign in (1, -1))
        assert derivative.abs().mean() > 1e-2
        torch.testing.assert_close(derivative, (ahead - behind) / (2 * h), atol=1e-7, rtol=1e-7)
        torch.testing.assert_close(primal, answer(*point), atol=1e-12, rtol=1e-12)


@WITH_CONTEXT
def test_reverse_mode_goes_through_the_primal_of_the_same_call(name, context):
    """MeanFlow's loss: its gradient is that of |net - target|^2 with the target a constant."""
    net, x, t, cond = case(name, context)
    v = torch.randn_like(x)
    with sdpa_kernel(SDPBackend.MATH):
        u, slope = jvp(lambda *at: net(at[0], at[1], dict(cond, span=at[2])), (x, t, cond["span"]), (v, t / t, t / t))
    span = cond["span"].reshape(-1, *[1] * (x.ndim - 1))
    target = (v - span * slope).detach()
    (u - target).square().mean().backward()
    got = {key: parameter.grad.clone() for key, parameter in net.named_parameters()}
    net.zero_grad()
    (net(x, t, cond) - target).square().mean().backward()
    for key, parameter in net.named_parameters():
        torch.testing.assert_close(got[key], parameter.grad, atol=1e-10, rtol=1e-8)
    assert all(each.any() for each in got.values())


@EVERY
def test_forward_mode_in_training_and_float32(name):
    net, x, t, cond = case(name)
    exact, slope = (each.float() for each in jvp_at(net, x, t, cond))
    cond = {key: value.float() if value.is_floating_point() else value for key, value in cond.items()}
    u, du = jvp_at(net.float().train(), x.float(), t.float(), cond)
    assert du.dtype == torch.float32
    torch.testing.assert_close(u, exact, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(du, slope, atol=1e-3, rtol=1e-3)


def jvp_at(net: nn.Module, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The answer and its derivative along (1, 1, 1)."""
    point = (x, t, cond["span"])
    with sdpa_kernel(SDPBackend.MATH):
        return jvp(lambda *at: net(at[0], at[1], dict(cond, span=at[2])), point, tuple(map(torch.ones_like, point)))
