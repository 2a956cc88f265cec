"""The cost model against hand-counted networks, and against what a training really holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sfumato import engine
from sfumato.nn import Conditions, DiT, DiTConfig, UNetConfig
from sfumato.tasks import cost
from sfumato.tasks.cost import FLOAT, Cost, Machine, count, memory, of_config, seconds, table

from ..tiny import random_model, steps_of, tiny


def on_meta(net: nn.Module, *shape: int) -> Cost:
    return count(net.to("meta"), torch.empty(*shape, device="meta"))


def test_a_linear_map() -> None:
    """2 x 5 x 7 forwards and as many for the weights' gradient; its input is kept."""
    assert on_meta(nn.Linear(5, 7), 3, 5) == Cost(5 * 7 + 7, 70, 140, 5 * FLOAT)


def test_two_linear_maps() -> None:
    """Backwards the second also passes a gradient on; relu's result, 7 numbers, serves both as what is kept."""
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    forward = 2 * (5 * 7 + 7 * 3)
    assert on_meta(net, 4, 5) == Cost(42 + 24, forward, 2 * forward + 2 * 7 * 3, (5 + 7) * FLOAT)


def test_a_convolution() -> None:
    """Each of 6 x 5 places of 8 channels is 9 products with each of 4 input channels."""
    products = 2 * 8 * 4 * 9 * 30
    found = on_meta(nn.Conv2d(4, 8, 3, padding=1), 2, 4, 6, 5)
    assert found == Cost(8 * 4 * 9 + 8, products, 2 * products, 4 * 30 * FLOAT)


def test_attention_is_two_products_of_matrices() -> None:
    class Attend(nn.Module):
        def forward(self, q: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(q, q, q)

    q = torch.empty(3, 2, 10, 4, device="meta", requires_grad=True)  # 2 heads, 10 tokens, 4 channels
    found = count(Attend(), q)
    assert found.parameters == 0
    assert found.forward == 2 * (2 * 2 * 10 * 10 * 4)


def test_a_models_network_costs_without_values_what_it_costs_with_them() -> None:
    model = random_model(tiny(learned_variance=False))
    net, config = model.net.requires_grad_(True), model.config
    engine.prepare(net, "float32")  # whose operations the counter knows
    with sdpa_kernel(SDPBackend.MATH):
        real = count(net, torch.randn(3, *config.shape), torch.rand(3))
    found = of_config(config)
    assert found.parameters == sum(p.numel() for p in net.parameters())
    assert (found.forward, found.step) == (real.forward, real.step)
    assert 2.5 * found.forward < found.step < 3 * found.forward
    assert found.activations == pytest.approx(real.activations, rel=0.02)


def test_memory_is_what_a_training_holds(tmp_path: Path) -> None:
    """Weights, gradients, moments, two averages and the averaged network, to the byte."""
    training, _ = steps_of(tiny(steps=1), tmp_path)
    parameters = list(training.bare.parameters())
    held = [*parameters, *training.averaged.parameters(), *(p.grad for p in parameters)]
    held += [training.optimiser.state[p][key] for p in parameters for key in ("exp_avg", "exp_avg_sq")]
    held += training.ema.tensors().values()
    total = sum(x.numel() * x.element_size() for x in held)  # type: ignore[union-attr]
    found = of_config(training.config)
    assert memory(found, 0, averages=2) == total
    assert memory(found, 10) - memory(found, 0) == 10 * found.activations
    assert memory(found, 0, processes=2) - total == FLOAT * found.parameters


def test_a_published_network() -> None:
    """DiT-XL/2 on 32x32 latents: 675M parameters and 118.64 G multiply-adds (W. Peebles, S. Xie, table 4)."""
    config = DiTConfig(patch=2, width=1152, depth=28, heads=16)
    with torch.device("meta"):
        net = DiT(config, (4, 32, 32), Conditions(classes=1000), out_channels=8)
        found = count(net, torch.empty(1, 4, 32, 32), torch.empty(1))
    assert found.parameters == pytest.approx(675e6, rel=1e-3)
    assert found.forward == pytest.approx(2 * 118.64e9, rel=5e-3)


SMALL = Cost(parameters=10**6, forward=10**9, step=3 * 10**9, activations=10**5)
SLOW = Machine(rate=1e12, memory=1e9, reading=8e8, inside=4e9, network=1e9, gpus=4)


def test_sharded_memory_falls_towards_the_averaged_copy() -> None:
    one = memory(SMALL, 0, sharded=True)
    assert one == memory(SMALL, 0) == 4e6 * 7
    assert memory(SMALL, 0, processes=6, sharded=True) == 4e6 * 2
    assert memory(SMALL, 0, processes=10**9, sharded=True) == pytest.approx(4e6)


def test_time_is_computing_and_what_does_not_hide_behind_it() -> None:
    def step(gpus: int, parameters: int = 10**6, sharded: bool = False) -> float:
        cost = replace(SMALL, parameters=parameters)
        return seconds(cost, 1000, SLOW, gpus, averages=0, efficiency=0.5, sharded=sharded)

    weights = 10 * 4e6 / 8e8  # ten passes over 1e6 numbers
    assert step(1) == pytest.approx(6.0 + weights)  # 3e12 operations at 5e11 a second
    assert step(4) == pytest.approx(1.5 + weights)  # 1.5 ms of sending hide
    assert step(4, 10**9) == pytest.approx(1.5 / 3 + 2 * 3 / 4 * 4e9 / 4e9 + 1000 * weights)
    assert step(4, 10**9, sharded=True) == pytest.approx(1.5 / 3 + 3 * 3 / 4 * 4e9 / 4e9 + 250 * weights)
    tracked = seconds(SMALL, 1000, SLOW, 1, averages=2, efficiency=0.5)
    assert tracked - step(1) == pytest.approx(6 * 4e6 / 8e8)
    assert [SLOW.bandwidth(n) for n in (1, 4, 5, 64)] == [4e9, 4e9, 1e9, 1e9]


def test_the_table_leaves_out_what_cannot_be_dealt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "MACHINES", {"slow": SLOW})
    lines = table(SMALL, 20_000, 3600, gpus=(1, 3, 4))
    assert all(len(line) == len(cost.HEADS) for line in lines)
    assert [line[:2] for line in lines] == [("1 x slow", "20000"), ("4 x slow", "5000")]
    assert lines[0][2].endswith(", too much")  # 2 GB are kept for the backward pass
    assert not lines[1][2].endswith(", too much")
    assert lines[0][3:] == ("2e+05 ms", "100", "2e+02 h")
    halves = table(SMALL, 20_000, 3600, gpus=(4,), efficiency=0.6, sharded=True)
    assert float(halves[0][3].split()[0]) == pytest.approx(float(lines[1][3].split()[0]) / 2, rel=0.01)
    assert float(halves[0][2].split()[0]) < float(lines[1][2].split()[0])


def test_checkpointing_keeps_less_and_computes_more() -> None:
    config = random_model(tiny(network=UNetConfig(channels=8, multipliers=(1, 2), blocks=2, groups=4))).config
    plain, again = of_config(config), of_config(config, gradient_checkpointing=True)
    assert again.parameters == plain.parameters
    assert again.activations < 0.6 * plain.activations
    assert plain.step + plain.forward / 3 < again.step <= plain.step + plain.forward
