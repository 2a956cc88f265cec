"""Every row of PRECISIONS runs the same network: how near, forwards, backwards and in what is sampled."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import sfumato
from sfumato import engine
from sfumato.engine import PRECISIONS, Engine
from sfumato.nn import MLP, Conditions, DiT, DiTConfig, MLPConfig, UNet, UNetConfig, compiled

ADM = UNetConfig(channels=32, multipliers=(1, 2, 2), blocks=1, attention=(1,))
DDPM = UNetConfig(
    channels=32, multipliers=(1, 2), attention=(1,), adaptive=False, residual_resampling=False, head_channels=0
)


def told(net: nn.Module) -> nn.Module:
    """The network with weights that are not zero anywhere."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator)
    return net


def asked(net: nn.Module, x: Tensor, precision: str) -> tuple[Tensor, list[Tensor]]:
    engine.prepare(net, precision)
    y = net(x, torch.linspace(1, 900, len(x)), {"label": torch.arange(len(x)) % 3})
    return y, list(torch.autograd.grad(F.mse_loss(y, torch.zeros_like(y)), list(net.parameters())))


def off(found: Tensor, truth: Tensor) -> float:
    found, truth = found.detach().double(), truth.detach().double()
    return float((found - truth).square().mean().sqrt() / truth.square().mean().sqrt())


@pytest.mark.parametrize("config", [ADM, DDPM], ids=["adm", "ddpm"])
@pytest.mark.parametrize("size", [16, 28])
def test_the_fast_network_is_the_network(config: UNetConfig, size: int) -> None:
    """A whole network and its gradients against the same weights in float64."""
    torch.manual_seed(0)
    net = told(UNet(config, (3, size, size), Conditions(classes=3)))
    x = torch.randn(5, 3, size, size)
    exact = UNet(config, (3, size, size), Conditions(classes=3)).double()
    exact.load_state_dict(net.state_dict())
    truth, gradients = asked(exact, x.double(), "float32")
    for precision, most in (("float32", 5e-6), ("float32-fast", 2e-5)):
        y, found = asked(net, x, precision)
        assert off(y, truth) < most, precision
        whole = (torch.cat([g.flatten() for g in each]) for each in (found, gradients))
        assert off(*whole) < 2 * most, precision
        frozen = copy.deepcopy(net).requires_grad_(False)  # some of what is fast is made of weights that stay
        engine.prepare(frozen, precision)
        assert off(frozen(x, torch.linspace(1, 900, 5), {"label": torch.arange(5) % 3}), truth) < most, precision


def test_derivatives_along_a_direction_are_the_networks() -> None:
    """As MeanFlow asks: how the answer moves with x and t, while the weights' gradient of the answer is wanted too."""
    torch.manual_seed(0)
    net = told(UNet(ADM, (3, 16, 16), Conditions(classes=3)))
    x, v, t = torch.randn(5, 3, 16, 16), torch.randn(5, 3, 16, 16), torch.linspace(1, 9, 5)

    def moves() -> Tensor:
        """Of a network that does not learn, as in sampling."""
        frozen = copy.deepcopy(net).requires_grad_(False)
        with torch.no_grad():
            return torch.func.jvp(lambda x, t: frozen(x, t), (x, t), (v, torch.ones(5)))[1]

    def both() -> tuple[Tensor, Tensor]:
        y, moved = torch.func.jvp(lambda x, t: net(x, t, {"label": torch.arange(5) % 3}), (x, t), (v, torch.ones(5)))
        loss = (y * moved.detach()).sum()
        return moved, torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])

    with sdpa_kernel(SDPBackend.MATH):  # others know no such derivative
        engine.prepare(net, "float32")
        truth = (*both(), moves())
        engine.prepare(net, "float32-fast")
        for found, right in zip((*both(), moves()), truth, strict=True):
            assert off(found, right) < 1e-4


WIDE = replace(ADM, channels=64)
WIDE_DDPM = replace(DDPM, channels=64, attention=(0, 1))


@pytest.mark.parametrize("config", [ADM, WIDE, WIDE_DDPM], ids=["adm", "wide", "ddpm"])
def test_the_network_in_bfloat16_is_the_network(config: UNetConfig) -> None:
    """Forth and back as in a training, and as it is only asked; some convolutions are by tiles, others are not."""
    torch.manual_seed(0)
    net = told(UNet(config, (3, 15, 15), Conditions(classes=3)))
    x, t, cond = torch.randn(5, 3, 15, 15), torch.linspace(1, 900, 5), {"label": torch.arange(5) % 3}
    truth, gradients = asked(net, x, "float32")

    def errors(y: Tensor, found: list[Tensor]) -> tuple[float, float]:
        return off(y, truth), off(*(torch.cat([g.flatten() for g in each]) for each in (found, gradients)))

    with torch.autocast("cpu", torch.bfloat16):
        usual, usual_back = errors(*asked(net, x, "float32"))  # by PyTorch's own operations
        y, found = asked(net, x, "bfloat16")
    most = 1.6 * usual
    assert usual < 3e-2
    mine, mine_back = errors(y, found)
    assert mine < most
    assert mine_back < 1.6 * usual_back
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        learning = net(x, t, cond)
        frozen = copy.deepcopy(net).requires_grad_(False)  # some of what is fast is made of weights that stay
        engine.prepare(frozen, "bfloat16")
        assert off(frozen(x, t, cond), truth) < most
        if config.head_channels:
            assert torch.equal(frozen(x, t, cond), learning)
    assert off(learning, truth) < most


@pytest.mark.skipif(not engine.multiplies_bfloat16("cpu"), reason="auto is not bfloat16 on this processor")
@pytest.mark.parametrize("config", [WIDE, WIDE_DDPM], ids=["wide", "ddpm"])
def test_in_bfloat16_too_a_row_is_the_same_in_every_batch(config: UNetConfig) -> None:
    torch.manual_seed(0)
    net = told(UNet(config, (3, 16, 16))).requires_grad_(False)
    engine.prepare(net, "bfloat16")
    x, t = torch.randn(9, 3, 16, 16), torch.linspace(1, 900, 9)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        whole = net(x, t)
        assert all(torch.equal(net(x[:n], t[:n]), whole[:n]) for n in (1, 2, 5))


def processor(monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool, vendor: str) -> None:
    monkeypatch.setattr(torch.cpu, engine.AMX, lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, engine.AVX512, lambda: avx512, raising=False)
    monkeypatch.setattr(engine, "_vendor", lambda: vendor)


def test_auto_is_what_the_processor_does_best(monkeypatch: pytest.MonkeyPatch) -> None:
    here = torch.device("cpu")
    for amx, avx512, vendor, best in (
        (False, False, "GenuineIntel", None),
        (False, True, "GenuineIntel", None),
        (True, True, "GenuineIntel", torch.bfloat16),
        (False, True, "AuthenticAMD", torch.bfloat16),
        (False, False, "AuthenticAMD", None),
        (False, False, "", None),
    ):
        processor(monkeypatch, amx, avx512, vendor)
        assert PRECISIONS["auto"](here) == Engine(best, True)
        assert PRECISIONS["float32"](here) == Engine(None, False)
        assert PRECISIONS["float32-fast"](here) == Engine(None, True)


def test_what_this_machine_does_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, False, True, "GenuineIntel")
    monkeypatch.setattr(compiled, "why_not", lambda source: None)
    assert engine.here() == "precision auto is float32 by compiled operations on this cpu"
    monkeypatch.setattr(compiled, "why_not", lambda source: "no C compiler; install gcc")
    assert "PyTorch's operations alone (no C compiler; install gcc)" in engine.here()
    processor(monkeypatch, True, True, "GenuineIntel")
    assert "precision auto is bfloat16 by" in engine.here()


def test_only_the_exact_mode_knows_no_faster_way() -> None:
    net = UNet(ADM, (3, 16, 16))

    def fast() -> set[Any]:
        return {module.fast for module in net.modules() if hasattr(module, "fast")}

    assert fast() == {False}
    engine.prepare(net, "auto")
    assert fast() == {True}
    engine.prepare(net, "float32")
    assert fast() == {False}
    with pytest.raises(ValueError, match="precision"):
        engine.prepare(net, "float8")


NETS = {
    "unet": lambda: UNet(replace(ADM, channels=8, groups=4), (3, 8, 8), Conditions(classes=3)),
    "dit": lambda: DiT(DiTConfig(patch=2, width=16, depth=2, heads=2), (3, 8, 8), Conditions(classes=3)),
}


@pytest.mark.parametrize("name", NETS)
def test_a_network_is_one_graph(name: str) -> None:
    """What compilers and CUDA graphs ask of it: nothing in it leaves the graph."""
    net = told(NETS[name]())
    x, t, cond = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 500.0]), {"label": torch.tensor([0, 2])}
    whole = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(whole(x, t, cond), net(x, t, cond))


@pytest.mark.slow
def test_a_compiled_network_is_the_network() -> None:
    net = told(MLP(MLPConfig(width=16, depth=1), (3,)))
    x, t = torch.randn(5, 3), torch.rand(5)
    plain = net(x, t)
    assert engine.prepare(net, "compiled") == PRECISIONS["auto"](torch.device("cpu")).autocast
    torch.testing.assert_close(net(x, t), plain)


def test_in_and_out_of_inference_mode() -> None:
    """What is kept in one mode serves in the other, and derivatives are there after it."""
    with torch.inference_mode():
        inside = sfumato.load("digits")
        first = inside.sample(3, steps=3)
    model = sfumato.load("digits")
    with torch.inference_mode():
        assert torch.equal(model.sample(3, steps=3), first)
    assert torch.equal(model.sample(3, steps=3), first)
    assert torch.equal(inside.sample(3, steps=3), first)
    x = torch.randn(2, *model.config.shape, requires_grad=True)
    y = model.denoiser(x, torch.tensor([0.5, 0.5], dtype=torch.float64), {"label": torch.tensor([1, 2])}).x0
    (found,) = torch.autograd.grad(y.sum(), x)
    assert found.isfinite().all()


def test_weights_written_to_behind_pytorchs_back_want_a_new_preparation() -> None:
    torch.manual_seed(0)
    net = told(UNet(DDPM, (3, 16, 16), Conditions(classes=3))).requires_grad_(False)
    engine.prepare(net, "auto")
    x, t = torch.randn(5, 3, 16, 16), torch.full((5,), 500.0)
    net(x, t)
    for p in net.parameters():
        p.data.mul_(1.1)
    engine.prepare(net, "auto")
    again = net(x, t)
    engine.prepare(net, "float32")
    assert off(again, net(x, t)) < 2e-5
    copied = pickle.loads(pickle.dumps(net))  # a pickle has the weights, and nothing that was made of them
    assert len(pickle.dumps(net)) < 1.2 * sum(p.numel() * 4 for p in net.parameters()) + 10**5
    assert torch.equal(copied(x, t), net(x, t))


def test_samples_are_the_same_to_a_level() -> None:
    exact = sfumato.load("digits", precision="float32").sample(10, seed=3)
    fast = sfumato.load("digits").sample(10, seed=3)
    assert (exact.int() - fast.int()).abs().max() <= 1
