"""The recipes of `assumptions`, cut to a few steps: each trains, samples, and is what its paper says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sfumato
from sfumato import corruptions, losses
from sfumato.data import Data
from sfumato.degradations import dct
from sfumato.denoiser import NetworkDenoiser
from sfumato.model import Model
from sfumato.nn import DiTConfig, UNetConfig
from sfumato.recipes import RECIPES, assumptions
from sfumato.train import Run, Training, held_out_loss, trainer
from sfumato.train.run import model_config
from sfumato.train.trainer import train

from ..tiny import random_model, silent

DIGITS: dict[str, Callable[[], Run]] = {name: RECIPES[name] for name in RECIPES if name.startswith("digits-")}
PROCESSES = {"digits-blur": "blurring", "digits-cold": "cold"}


@cache
def trained(name: str) -> tuple[Training, list[float]]:
    with TemporaryDirectory() as folder:
        training = Training(replace(RECIPES[name](), steps=3, batch=8), folder, say=silent, resume=False)
    found = [step.loss for step in train(training)]
    training.net.eval()
    return training, found


@pytest.mark.parametrize("name", sorted(DIGITS))
def test_it_trains_and_samples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "HELD_OUT_ROWS", 32)
    training, found = trained(name)
    assert len(found) == 3
    assert np.isfinite(found).all()
    assert all(bool(torch.isfinite(p).all()) for p in training.bare.parameters())
    assert any(p.grad is not None and bool(p.grad.any()) for p in training.bare.parameters())
    assert math.isfinite(held_out_loss(training))
    model = training.model()
    x = model.sample(6, steps=2)
    assert x.dtype == torch.uint8
    assert x.shape == (6, 1, 8, 8)
    assert int(x.max()) <= 16
    model.save(tmp_path / "model")
    again = sfumato.load(tmp_path / "model")
    assert json.dumps(again.config.document()) == json.dumps(model.config.document())
    assert torch.equal(again.sample(6, steps=2), x)
    assert model.config.gaussian == (name not in PROCESSES)


def random_of(name: str) -> Model:
    """The recipe's own network, small and of random weights."""
    network = RECIPES[name]().network
    if isinstance(network, UNetConfig):
        network = replace(network, channels=8)
    return random_model(replace(RECIPES[name](), network=network))


@pytest.mark.parametrize("name", sorted(DIGITS))
def test_a_sample_does_not_change_with_its_batch(name: str) -> None:
    """But for a level of 17 here and there, in float32; and four seeds of one class are four pictures."""
    model = random_of(name)
    whole, parts = model.sample(23, seed=2, steps=2), model.sample(23, seed=2, steps=2, batch=9)
    assert int((whole.int() - parts.int()).abs().max()) <= 1
    assert float((whole != parts).float().mean()) < 0.01
    assert len(model.sample(4, seed=2, steps=2, label=3).flatten(1).unique(dim=0)) == 4


# ---- EDM


def test_edm_is_preconditioned_as_karras() -> None:
    """D = c_skip x + c_out F(c_in x; ln(sigma)/4), table 1 of arXiv:2206.00364 with sigma_data = 0.5, sigma = 80 t."""
    shown: list[tuple[Tensor, Tensor]] = []
    answer = torch.randn(6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def net(x: Tensor, t: Tensor, cond: object) -> Tensor:
        shown.append((x, t))
        return answer

    own = random_of("digits-edm").denoiser
    assert (own.target, own.time, own.schedule.spec) == ("edm", "c_noise", {"name": "edm", "sigma_max": 80.0})
    sigma = torch.tensor([0.002, 0.05, 0.5, 2.0, 14.0, 80.0], dtype=torch.float64)
    x = answer.flip(0) * (1 + sigma.reshape(-1, 1, 1, 1))
    p = NetworkDenoiser(net, own.schedule, target=own.target, time=own.time)(x, sigma / 80)
    s = sigma.reshape(-1, 1, 1, 1)
    c_skip, c_out = 0.5**2 / (s**2 + 0.5**2), s * 0.5 / (s**2 + 0.5**2).sqrt()
    ((given, told),) = shown
    torch.testing.assert_close(given, x / (s**2 + 0.5**2).sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(told, sigma.log() / 4, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(p.x0, c_skip * x + c_out * answer, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(p.eps, (x - p.x0) / s, rtol=1e-9, atol=1e-9)


def test_edm_minimises_lambda_times_the_error_of_d() -> None:
    """lambda = (sigma^2 + sd^2)/(sigma sd)^2 = 1/c_out^2: the network's own squared error has weight 1."""
    training, _ = trained("digits-edm")
    schedule = training.denoiser.schedule
    sigma = torch.tensor([0.01, 0.3, 5.0, 60.0], dtype=torch.float64)
    weight = training.weighting(schedule, sigma / 80)
    torch.testing.assert_close(weight, (sigma**2 + 0.25) / (0.5 * sigma) ** 2, rtol=1e-12, atol=0)
    x_0, eps, error = torch.randn(3, 4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    s = sigma.reshape(-1, 1, 1, 1)
    x_t = x_0 + s * eps
    wanted = (x_0 - 0.25 / (s**2 + 0.25) * x_t) * (s**2 + 0.25).sqrt() / (0.5 * s)  # the effective target of eq. (8)
    denoiser = NetworkDenoiser(lambda x, t, c: wanted + error, schedule, target="edm", time="c_noise")
    at = losses.Noised(schedule, x_0, x_t, sigma / 80, None, eps)
    value = training.objective(at, denoiser, {}, training.weighting)
    torch.testing.assert_close(value, error.square().flatten(1).mean(1), rtol=1e-8, atol=0)
    assert training.uncertainty is not None


# ---- the straight path, v, and networks that are not told t


def test_flow_minimises_the_error_of_the_velocity() -> None:
    """|y - (eps - x_0)|^2, y what the network says."""
    training, _ = trained("digits-flow")
    x_0, eps, error = torch.randn(3, 4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([0.01, 0.4, 0.8, 0.99], dtype=torch.float64)
    rows = t.reshape(-1, 1, 1, 1)
    x_t = (1 - rows) * x_0 + rows * eps
    schedule = training.denoiser.schedule
    net = NetworkDenoiser(lambda x, t, c: eps - x_0 + error, schedule, target=training.run.target, time="unit")
    at = losses.Noised(schedule, x_0, x_t, t, None, eps)
    value = training.objective(at, net, {}, training.weighting)
    torch.testing.assert_close(value, error.square().flatten(1).mean(1), rtol=1e-9, atol=0)


def test_x0_is_weighed_as_the_error_of_v() -> None:
    training, _ = trained("digits-x0")
    schedule, t = training.denoiser.schedule, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert training.denoiser.target == "x0"
    x_0, eps, wrong = torch.randn(3, 3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    alpha, sigma = (a.reshape(-1, 1, 1, 1) for a in (schedule.alpha(t), schedule.sigma(t)))
    x_t, x0 = alpha * x_0 + sigma * eps, x_0 + wrong
    v = alpha * eps - sigma * x_0
    said = alpha * (x_t - alpha * x0) / sigma - sigma * x0
    net = NetworkDenoiser(lambda x, t, c: x0, schedule, target="x0", time="unit")
    value = training.objective(losses.Noised(schedule, x_0, x_t, t, None, eps), net, {}, training.weighting)
    torch.testing.assert_close(value, (said - v).square().flatten(1).mean(1), rtol=1e-8, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["digits-blind", "digits-flow"])
def test_a_blind_network_says_the_same_at_every_t(name: str) -> None:
    """Its y; x0 = x_t - t y moves with t all the same.  The recipe beside it is told."""
    model = random_of(name)
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(5, 1, 8, 8)
    t = torch.tensor([0.01, 0.3, 0.6, 0.9, 1.0], dtype=torch.float64)
    p = model.denoiser(x, t, {"label": torch.full((5,), 3)})
    y = p.eps - p.x0
    spread = float((y - y[:1]).abs().max() / y.abs().mean())
    assert spread < 1e-5 if name == "digits-blind" else spread > 0.05
    assert float((p.x0 - p.x0[:1]).abs().max()) > 0.01


# ---- processes that are not plain noise


def test_blurring_is_trained_in_frequencies_by_a_network_of_pixels() -> None:
    training, _ = trained("digits-blur")
    rows = training.splits.held_out.take(np.arange(4))
    x_0, cond = training.encode(rows)
    pixels = rows["x"]
    assert isinstance(pixels, Tensor)
    torch.testing.assert_close(x_0, dct(pixels.float() / 8 - 1))
    shown: list[Tensor] = []
    net = training.bare.register_forward_pre_hook(lambda module, given: shown.append(given[0].detach()))
    zero = torch.full((4,), 1e-6, dtype=torch.float64)
    schedule = training.denoiser.schedule
    training.denoiser(corruptions.perturb(schedule, x_0, zero, torch.zeros_like(x_0)), zero, cond)
    net.remove()
    torch.testing.assert_close(shown[0], pixels.float() / 8 - 1, rtol=1e-3, atol=1e-3)
    assert training.model().codec.spec == {"name": "dct", "levels": 17}


def test_cold_learns_x0_of_degraded_rows_without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """x_t is the blurred x_0, whatever eps is, and the loss is |x0 - x_0|^2."""
    from scipy.ndimage import gaussian_filter

    training, _ = trained("digits-cold")
    x_0, cond = training.encode(training.splits.held_out.take(np.arange(3)))
    t = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)
    seen: list[losses.Noised] = []
    objective = training.objective

    def watch(at: losses.Noised, *rest: Any) -> Tensor:
        seen.append(at)
        return objective(at, *rest)

    monkeypatch.setattr(training, "objective", watch)
    found = [
        trainer.row_losses(training, training.denoiser, x_0, t, torch.full_like(x_0, eps), cond) for eps in (0.0, 5.0)
    ]
    assert torch.equal(found[0], found[1])
    x_t = seen[0].x_t
    said = training.denoiser(x_t, t, cond).x0
    torch.testing.assert_close(found[0], (said - x_0).square().flatten(1).mean(1))
    for row, original, time in zip(x_t, x_0, t.tolist(), strict=True):
        sigma = training.config.schedule["strength"] * time
        truth = gaussian_filter(original[0].double().numpy(), sigma, mode="reflect", truncate=8)
        np.testing.assert_allclose(row[0].numpy(), truth, atol=0.03)


def test_meanflow_is_told_how_far_and_samples_in_one_step() -> None:
    training, _ = trained("digits-meanflow")
    assert training.config.conditions.span == 1
    model = random_of("digits-meanflow")
    seen: list[Tensor] = []
    hook = model.net.register_forward_pre_hook(lambda net, given: seen.append(given[2]["span"]))
    model.sample(3, steps=1)
    model.sample(3, steps=2)
    hook.remove()
    assert [span.tolist() for span in seen] == [[1.0] * 3, [0.5] * 3, [0.5] * 3]


def test_the_bridge_needs_like_rows_and_goes_along_the_straight_path(tmp_path: Path) -> None:
    """Its recipe on data that come with the package: the digits and their negatives."""
    x = np.random.default_rng(0).integers(0, 256, (40, 16, 16), dtype=np.uint8)
    for name, pictures in (("one", x), ("two", 255 - x)):
        np.save(tmp_path / f"{name}.npy", pictures)
    recipe = assumptions.bridge()
    assert (recipe.data.size, recipe.source.size, recipe.source.channels) == (16, 16, 1)
    one, two = (Data("file", path=str(tmp_path / f"{name}.npy")) for name in ("one", "two"))
    training = Training(replace(recipe, data=one, source=two, steps=2, batch=8), tmp_path / "out", say=silent)
    assert all(np.isfinite(step.loss) for step in train(training))
    assert training.model().sample(2, steps=2).shape == (2, 1, 16, 16)


def test_what_a_recipe_says_is_what_its_model_is() -> None:
    """One assumption changed at a time: schedule, target and time of each."""
    wanted = {
        "digits-flow": ("rectified", "flow", "unit"),
        "digits-edm": ("edm", "edm", "c_noise"),
        "digits-meanflow": ("rectified", "flow", "unit"),
        "digits-x0": ("cosine", "x0", "index"),
        "digits-blind": ("rectified", "flow", "none"),
        "digits-blur": ("blurring", "v", "unit"),
        "digits-cold": ("cold", "x0", "unit"),
        "digits-dit": ("cosine", "v", "index"),
    }
    assert wanted.keys() == DIGITS.keys()
    for name in wanted:
        training, _ = trained(name)
        config = training.config
        assert (config.schedule["name"], config.target, config.time) == wanted[name], name
        assert training.run.data == RECIPES["digits"]().data
        assert model_config(training.run, training.splits.info, training.codec) == config
        assert isinstance(training.run.network, DiTConfig if name == "digits-dit" else UNetConfig)
