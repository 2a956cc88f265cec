"""The comparison with a fitted Gaussian, on models whose right answer is known."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfumato.codecs import StandardCodec
from sfumato.model import Model, ModelConfig
from sfumato.nn import Conditions
from sfumato.schedules import cosine
from sfumato.tasks import generate
from sfumato.tasks.gaussian import RIDGE, beside_gaussian, fit, gaussian_table
from sfumato.testbed import GaussianMixture


def rows(x: Tensor, label: Tensor | None = None) -> dict[str, Any]:
    return {"x": x, "index": torch.arange(len(x)), **({} if label is None else {"label": label})}


def model(x: Tensor, classes: int = 0) -> Model:
    """An untrained MLP model for the vectors x."""
    from sfumato.model import build_network

    config = ModelConfig(
        shape=tuple(x.shape[1:]),
        kind="vector",
        network="mlp",
        options={"width": 16, "depth": 1},
        conditions=Conditions(classes=classes),
        schedule=cosine().spec,
        target="v",
        time="index",
        learned_variance=False,
        codec=StandardCodec.fit(x).spec,
        label_names=tuple(map(str, range(classes))),
    )
    return Model(config, build_network(config))


class Exact(nn.Module):
    """A network that answers v of a given denoiser."""

    def __init__(self, denoiser: Any):
        super().__init__()
        self.denoiser, self.unused = denoiser, nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        steps = self.denoiser.schedule.steps
        time = (t.double() + 1) / steps
        p = self.denoiser(x, time)
        alpha, sigma = (a[:, None].float() for a in (cosine().alpha(time), cosine().sigma(time)))
        return alpha * p.eps - sigma * p.x0


def with_exact(made: Model, mixture: GaussianMixture) -> Model:
    return Model(made.config, Exact(mixture.denoiser(cosine())))


def gaussian_rows(n: int, seed: int) -> Tensor:
    mix = torch.tensor([[2.0, 0.0, 0.0], [1.5, 0.5, 0.0], [0.0, 0.3, 1.0]])
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)) @ mix.T + torch.tensor([1.0, -2.0, 30.0])


def two_bumps(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 2
    return 0.1 * torch.randn(n, 2, generator=generator) + torch.where(label == 0, -1.0, 2.0)[:, None], label


def test_the_fit_is_the_mean_and_covariance_of_its_class() -> None:
    x, label = two_bumps(400, 0)
    mixture = fit(x, label == 1)
    assert np.allclose(mixture.means[0], x[label == 1].double().mean(0))
    expected = np.cov(x[label == 1].double().numpy().T, bias=True) + RIDGE * np.eye(2)
    assert np.allclose(mixture.covariances[0], expected, atol=1e-12)
    pooled = fit(x, label == 7)
    assert np.allclose(pooled.means[0], x.double().mean(0))


def test_the_fitted_gaussian_itself_draws_even() -> None:
    """A network that answers what the Gaussian's denoiser answers has its loss, to float32."""
    train, held_out = gaussian_rows(800, 0), gaussian_rows(300, 1)
    made = model(train)
    encoded = made.codec.encode(train)
    same = with_exact(made, fit(encoded, torch.ones(len(encoded)).bool()))
    loss = beside_gaussian(same, rows(train), rows(held_out), generate(same, 50))["loss"]
    assert loss["model"] == pytest.approx(loss["gaussian"], rel=1e-4)
    assert loss["by_t"]["model"] == pytest.approx(loss["by_t"]["gaussian"], rel=1e-3)


def test_its_loss_is_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """E|eps - E[eps|x_t]|^2 / D = mean over eigenvalues l of alpha^2 l / (alpha^2 l + sigma^2), over uniform t."""
    monkeypatch.setattr("sfumato.tasks.gaussian.PAIRS", 16_384)
    train = gaussian_rows(20_000, 0)
    made = model(train)
    loss = beside_gaussian(made, rows(train), rows(gaussian_rows(2048, 1)), generate(made, 10))["loss"]
    l = torch.linalg.eigvalsh(torch.cov(made.codec.encode(train).double().T))
    t = torch.arange(1, 1001).double() / 1000
    signal = cosine().alpha(t).square()[:, None] * l
    exact = (signal / (signal + cosine().sigma(t).square()[:, None])).mean().item()
    assert loss["gaussian"] == pytest.approx(exact, rel=0.03)
    # the untrained network answers v = 0, so eps = sigma x_t and its error is alpha (alpha eps - sigma x_0)
    untrained = (cosine().alpha(t).square() * (cosine().alpha(t).square() + cosine().sigma(t).square())).mean().item()
    assert loss["model"] == pytest.approx(untrained, rel=0.03)


def test_who_knows_more_than_a_gaussian_wins() -> None:
    (train, _), (held_out, _) = two_bumps(1000, 0), two_bumps(500, 1)
    made = model(train)
    x = made.codec.encode(train).double()
    parts = [fit(x, x[:, 0] < 0), fit(x, x[:, 0] >= 0)]
    truth = GaussianMixture(
        torch.ones(2), torch.cat([p.means for p in parts]), torch.cat([p.covariances for p in parts])
    )
    knowing = with_exact(made, truth)
    scores = beside_gaussian(knowing, rows(train), rows(held_out), generate(knowing, 400))
    assert scores["loss"]["model"] < 0.8 * scores["loss"]["gaussian"]
    assert scores["energy"]["model"] < 0.2 * scores["energy"]["gaussian"]
    assert scores["energy"]["training_rows"] < 0.02


def test_told_classes_there_is_a_gaussian_for_each() -> None:
    """Of two bumps a Gaussian each knows everything: told the class it has nothing more to learn."""
    train, label = two_bumps(1000, 0)
    held_out, held_out_label = two_bumps(500, 1)
    made = model(train, classes=2)
    scores = beside_gaussian(made, rows(train, label), rows(held_out, held_out_label), generate(made, 300))
    alone = model(train)
    one = beside_gaussian(alone, rows(train), rows(held_out), generate(alone, 300))
    assert (scores["gaussians"], one["gaussians"]) == ("one a class", "one")
    assert scores["loss"]["gaussian"] < 0.8 * one["loss"]["gaussian"]
    assert scores["energy"]["gaussian"] < 0.02 < one["energy"]["gaussian"]


def test_too_many_values_are_skipped_and_said() -> None:
    made = model(torch.randn(20, 1025))
    scores = beside_gaussian(made, rows(torch.randn(20, 1025)), rows(torch.randn(5, 1025)), generate(made, 2))
    assert gaussian_table(scores) == [("beside a fitted Gaussian", "skipped: a row has 1,025 values, more than 1,024")]


def test_the_table_shows_both() -> None:
    train, held_out = gaussian_rows(100, 0), gaussian_rows(50, 1)
    made = model(train)
    scores = beside_gaussian(made, rows(train), rows(held_out), generate(made, 20))
    shown = dict(gaussian_table(scores))
    assert shown["energy distance to held-out rows, n = 20"] == f"{scores['energy']['model']:.4f}"
    assert shown["denoising loss, held-out (eps, mean over t)"] == f"{scores['loss']['model']:.4f}"
    assert not any(math.isnan(mean) for means in scores["loss"]["by_t"].values() for mean in means)


def test_the_same_again() -> None:
    train, held_out = gaussian_rows(100, 0), gaussian_rows(50, 1)
    made = model(train)
    samples = generate(made, 20)
    first, second = (beside_gaussian(made, rows(train), rows(held_out), samples) for _ in range(2))
    assert first == second
    other = dataclasses.replace(samples, x=samples.x + 1)
    assert beside_gaussian(made, rows(train), rows(held_out), other)["energy"]["model"] != first["energy"]["model"]
