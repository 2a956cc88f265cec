"""Where a walk starts, and walking up: the prior, held-out rows of a bridge or of cold diffusion, encode and decode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sfumato
from sfumato import data, schedules
from sfumato.codecs import PixelCodec
from sfumato.degradations import blur
from sfumato.model import Model
from sfumato.noise import PRIOR, normal
from sfumato.train import Loss

from .tiny import random_model, tiny

COLD: dict[str, Any] = {
    "schedule": "cold:degradation=blur",
    "target": "x0",
    "time": "unit",
    "loss": Loss(weighting="x0"),
}


@pytest.fixture(scope="module")
def cold() -> Model:
    return random_model(tiny(**COLD))


@pytest.fixture(scope="module")
def noisy() -> Model:
    return random_model()


def test_the_usual_start_is_the_prior(noisy: Model) -> None:
    """N(0, I) of the row's own seed; with another schedule its own size."""
    x = noisy.start([3, 5], None)
    assert torch.equal(x, normal([3, 5], (1, 8, 8), PRIOR))
    assert torch.equal(noisy.start([5], torch.tensor([1])), x[1:])
    assert torch.equal(noisy.start([3, 5], None, schedules.edm(30.0)), 30 * x)
    edm = random_model(tiny(schedule="edm", target="edm", time="c_noise"))
    assert torch.equal(edm.start([3, 5], None), 80 * x)


def test_cold_starts_from_degraded_held_out_rows_of_the_label(cold: Model) -> None:
    """D(x_0, 1) of digits that were never trained on, each of the class it was asked for."""
    splits = data.load(cold.config.trained_on)
    every = splits.held_out.take(np.arange(len(splits.held_out)))
    x, label = every["x"], every["label"]
    assert isinstance(x, Tensor)
    assert isinstance(label, Tensor)
    degraded = blur(PixelCodec(17).encode(x), 4.0)
    labels = torch.tensor([7, 7, 0, 3, 3, 9])
    for found, wanted in zip(cold.start(range(6), labels), labels.tolist(), strict=True):
        distance = (degraded - found).abs().flatten(1).amax(1)
        assert float(distance.min()) < 1e-5
        assert int(label[distance.argmin()]) == wanted
    unlabelled = cold.start([0, 4, len(x), len(x) + 4], None)
    torch.testing.assert_close(unlabelled, degraded[[0, 4, 0, 4]], rtol=0, atol=1e-5)


def test_a_start_is_its_seeds_own_whatever_the_batch(cold: Model) -> None:
    labels = cold.labels(40)
    assert labels is not None
    whole = cold.start(range(40), labels)
    for rows in (range(7), range(7, 8), range(20, 40)):
        assert torch.equal(cold.start(rows, labels[rows]), whole[rows.start : rows.stop])


def test_seeds_of_one_label_are_different_rows(cold: Model) -> None:
    """Of the three dozen rows of a class, ten seeds find more than a few; so do forty in which classes take turns."""
    assert len(cold.start(range(10), torch.full((10,), 3)).flatten(1).unique(dim=0)) >= 7
    labels = cold.labels(100)
    assert len(cold.start(range(100), labels).flatten(1).unique(dim=0)) >= 60


def test_a_perfect_cold_network_restores_the_held_out_rows(cold: Model) -> None:
    """The walk from `start` ends where the network says; one that says a picture gives that picture."""
    picture = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    model = random_model(tiny(**COLD))
    model.denoiser.net = lambda x, t, cond: picture.expand_as(x)
    *_, (t, x_0, _) = model.trajectory(range(3), model.labels(3), sampler="cold", steps=4)
    start = model.start(range(3), model.labels(3))
    torch.testing.assert_close(x_0, start - blur(picture, 4.0) + picture, rtol=0, atol=1e-5)
    assert float(t) == 0


def test_a_model_without_its_data_says_so() -> None:
    from dataclasses import replace

    model = random_model(tiny(**COLD))
    lost = Model(replace(model.config, data={}), model.net)
    with pytest.raises(ValueError, match="the model does not say what data it was trained on"):
        lost.start([0], None)


@pytest.mark.parametrize("sampler", ["ancestral", "cold"])
def test_nothing_but_the_ode_leads_upwards(sampler: str, noisy: Model) -> None:
    x = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="is refused: ") as told:
        noisy.encode(x, sampler=sampler)
    assert "\n" not in str(told.value)


def test_noise_by_an_option_does_not_lead_upwards_either(noisy: Model) -> None:
    with pytest.raises(ValueError, match="from data to noise leads the ODE alone"):
        noisy.encode(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), sampler="ddim:eta=1")


def test_decode_is_sample_from_the_same_state(noisy: Model) -> None:
    x_T = noisy.start(range(4), None)
    labels = noisy.labels(4)
    assert torch.equal(noisy.decode(x_T, label=[0, 1, 2, 3]), noisy.sample(4))
    *_, (_, x_0, _) = noisy.trajectory(range(4), labels, x_T=x_T.flip(0))
    assert torch.equal(noisy.codec.decode(x_0), noisy.decode(x_T.flip(0), label=[0, 1, 2, 3]))


def error(model: Model, x: Tensor, labels: list[int], steps: int, sampler: str = "ddim") -> float:
    """Mean absolute error of decode(encode(x)), grey levels."""
    x_T = model.encode(x, label=labels, steps=steps, sampler=sampler)
    again = model.decode(x_T, label=labels, steps=steps, sampler=sampler)
    return float((again.float() - x.float()).abs().mean())


@pytest.mark.slow
def test_the_zoos_digits_come_back_the_better_the_more_steps() -> None:
    """Held-out digits through their latents: DDIM in 10, 50 and 200 steps (arXiv:2010.02502, table 2)."""
    model = sfumato.load("digits")
    rows = data.load(model.config.trained_on).held_out.take(np.arange(20))
    x, labels = rows["x"], rows["label"]
    assert isinstance(x, Tensor)
    assert isinstance(labels, Tensor)
    found = {steps: error(model, x, labels.tolist(), steps) for steps in (5, 20, 80)}
    assert found[5] > 1.5 * found[20] > 2.25 * found[80]
    assert found[80] < 0.5
    wrong = [(int(k) + 1) % 10 for k in labels]
    x_T = model.encode(x, label=labels.tolist(), steps=20)
    told_wrong = float((model.decode(x_T, label=wrong, steps=20).float() - x.float()).abs().mean())
    assert told_wrong > 3 * found[20]
    assert float(x_T.std()) == pytest.approx(1, abs=0.25)  # latents look like the prior
    second = error(model, x, labels.tolist(), 20, "heun")
    assert second < found[20]


def test_a_models_file_of_starts_needs_its_path(tmp_path: Path) -> None:
    """A bridge whose source is gone says which file, in one line."""
    np.save(tmp_path / "gone.npy", np.zeros((20, 8, 8), np.uint8))
    source = data.Data("file", path=str(tmp_path / "gone.npy"))
    model = random_model(tiny(source=source, schedule="rectified", target="flow", time="unit"))
    (tmp_path / "gone.npy").unlink()
    with pytest.raises(ValueError, match=r"gone.npy: no such file") as told:
        model.start([0], None)
    assert "\n" not in str(told.value)
