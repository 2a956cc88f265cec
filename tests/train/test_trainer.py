"""The trainer: parts of a batch, several processes, rates, precisions, losses and data, and when it stops."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sfumato
from sfumato import data
from sfumato.checkpoints import native
from sfumato.codecs import StandardCodec
from sfumato.model import Sampling
from sfumato.nn import MLPConfig
from sfumato.train import DECAYS, Loss, Optimiser, Run, Training, held_out_loss, train
from sfumato.train.log import read
from sfumato.train.trainer import learning_rate

from ..tiny import NETWORK, checkpoint, random_model, silent, steps_of, tiny, train_tiny, trained


def weights(training: Training) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in training.bare.parameters()])


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_is_the_whole_batch(parts: int, tmp_path: Path) -> None:
    """Plain gradient descent in the limit: AdamW's first steps amplify rounding, so gradients are compared too."""
    norms = []
    trainings = []
    for accumulate in (1, parts):
        run = tiny(steps=3, optimiser=Optimiser(warmup=0, accumulate=accumulate, decay="constant", learning_rate=1e-4))
        training = Training(run, tmp_path, say=silent, resume=False)
        norms.append([(step.loss, step.grad_norm) for step in train(training)])
        trainings.append(training)
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-5)
    torch.testing.assert_close(weights(trainings[0]), weights(trainings[1]), rtol=0, atol=1e-5)
    gradients = [torch.cat([p.grad.flatten() for p in t.bare.parameters()]) for t in trainings]  # type: ignore[union-attr]
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 1e-5 * 30


@pytest.mark.parametrize("decay", sorted(DECAYS))
def test_learning_rates(decay: str) -> None:
    run = tiny(steps=100, optimiser=Optimiser(learning_rate=2.0, warmup=10, decay=decay))
    rates = [learning_rate(run.optimiser, run.steps, k) for k in range(1, 101)]
    np.testing.assert_allclose(rates[:10], 2.0 * np.arange(1, 11) / 10, rtol=1e-12)
    done = (np.arange(11, 101) - 10) / 90
    expected = {
        "constant": np.ones(90),
        "linear": 1 - done,
        "cosine": np.cos(np.pi * done / 2) ** 2,
        "inverse_sqrt": np.sqrt(10 / np.arange(11, 101)),
    }[decay]
    np.testing.assert_allclose(rates[10:], 2.0 * expected, rtol=1e-9, atol=1e-12)
    assert learning_rate(Optimiser(learning_rate=2.0, warmup=0, decay=decay), run.steps, 1) <= 2.0


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sfumato.train import trainer

    real = trainer.row_losses

    def spoiled(training: Training, *args: Any) -> torch.Tensor:
        values = real(training, *args)
        return values * float("nan") if training.step == 5 else values

    monkeypatch.setattr(trainer, "row_losses", spoiled)
    with pytest.raises(ValueError, match=r"the loss is nan .* at step 6, so the training stops") as told:
        train_tiny(tiny(save_every=4), tmp_path)
    assert "--optimiser.learning-rate" in str(told.value)
    assert "\n" not in str(told.value)
    assert not any(x.isnan().any() for name, x in checkpoint(tmp_path, 4).items() if name != "history")


LOSSES: dict[str, dict[str, Any]] = {
    "bfloat16": {"precision": "bfloat16"},
    "learned variance": {"learned_variance": True, "loss": Loss("hybrid", times="importance")},
    "vlb": {"learned_variance": True, "loss": Loss("vlb")},
    "rectified flow": {"schedule": "rectified", "target": "flow", "time": "unit", "loss": Loss(weighting="velocity")},
    "logit-normal": {
        "schedule": "rectified",
        "target": "v",
        "time": "unit",
        "loss": Loss(weighting="v", times="logit_normal:mean=0.5,std=2"),
    },
    "edm": {"schedule": "edm", "target": "edm", "time": "logsnr", "loss": Loss(weighting="edm", times="logit_normal")},
    "x0 on eps": {"schedule": "linear:steps=50", "target": "eps", "loss": Loss(weighting="min_snr:gamma=5")},
}


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_kind_of_run_learns(name: str, tmp_path: Path) -> None:
    """Thirty steps lower the held-out loss of the averaged weights, and the model samples."""
    run = tiny(steps=30, **LOSSES[name], optimiser=Optimiser(warmup=5, learning_rate=3e-3))
    training = Training(run, tmp_path, say=silent, resume=False)
    before = held_out_loss(training)
    losses = [step.loss for step in train(training)]
    after = held_out_loss(training)
    assert np.isfinite(losses).all()
    assert after < before
    assert held_out_loss(training) == after  # times and noise are always the same
    x = training.model().sample(4)
    assert x.shape == (4, 1, 8, 8)
    assert len(x.unique()) > 1


def test_held_out_loss_does_not_touch_the_training(tmp_path: Path) -> None:
    run = tiny(steps=4)
    plain, _ = steps_of(run, tmp_path)
    watched = Training(run, tmp_path, say=silent, resume=False)
    for _ in train(watched):
        held_out_loss(watched)
        watched.model().sample(2)
    assert torch.equal(weights(plain), weights(watched))


@pytest.mark.slow
def test_vectors_of_an_npy_train_and_come_back_in_their_own_units(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = (np.array([1000.0, -0.5]) + np.array([50.0, 0.01]) * rng.standard_normal((300, 2))).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    run = tiny(
        data=data.Data("file", path=str(tmp_path / "x.npy")),
        network=MLPConfig(width=32, depth=2),
        schedule="cosine:steps=50",
        steps=200,
        batch=64,
        sampling=Sampling(steps=25),
        optimiser=Optimiser(learning_rate=5e-3, warmup=20),
        evaluate_every=200,
        save_every=200,
    )
    training = train_tiny(run, tmp_path / "out")
    assert isinstance(training.codec, StandardCodec)
    np.testing.assert_allclose(training.codec.mean, x[np.arange(300) % 10 != 9].mean(0, dtype=np.float64), rtol=1e-6)
    samples = sfumato.load(tmp_path / "out").sample(400).numpy()
    np.testing.assert_allclose(samples.mean(0), [1000, -0.5], atol=3 * 5, rtol=0.02)
    np.testing.assert_allclose(samples.std(0), [50, 0.01], rtol=0.25)
    again = Training(run, tmp_path / "out", say=silent)  # unlabelled: every weight has its moments
    assert again.step == 200


def test_a_folder_of_pictures_trains(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path / "pictures" / ("day" if i % 2 else "night") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (9 + i % 5, 11, 3 if i % 3 else 4), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    run = tiny(
        data=data.Data("folder", path=str(tmp_path / "pictures"), size=8, crop="random", flip=True),
        steps=4,
        save_every=2,
    )
    train_tiny(run, tmp_path / "out")
    model = sfumato.load(tmp_path / "out")
    assert model.config.label_names == ("day", "night")
    assert model.sample(3, label="night").shape == (3, 3, 8, 8)


def test_best_is_the_lowest_held_out_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sfumato.recipes import fit

    told = iter([3.0, 1.0, 2.0, 1.5])
    monkeypatch.setitem(fit.__globals__, "held_out_loss", lambda training: next(told))
    training = train_tiny(tiny(steps=8, evaluate_every=2, save_every=8), tmp_path)
    best = native.read_json(tmp_path / "best" / "config.json")["training"]
    assert (best["step"], best["held_out_loss"]) == (4, 1.0)
    assert training.best == 1.0
    assert native.read_json(tmp_path / "model" / "config.json")["training"]["step"] == 8
    assert [line["held_out_loss"] for line in read(tmp_path / "log.jsonl") if "held_out_loss" in line] == [3, 1, 2, 1.5]


def test_dropped_labels_are_the_share_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sfumato.train import trainer

    seen: list[torch.Tensor] = []

    def watch(training: Training, denoiser: Any, x_0: torch.Tensor, t: Any, eps: Any, cond: Any) -> torch.Tensor:
        seen.append(cond["label"])
        return real(training, denoiser, x_0, t, eps, cond)

    real = trainer.row_losses
    monkeypatch.setattr(trainer, "row_losses", watch)
    steps_of(tiny(steps=5, batch=256, drop_label=0.3), tmp_path)
    labels = torch.cat(seen)
    assert float((labels == 10).double().mean()) == pytest.approx(0.3, abs=0.04)
    assert set(labels.tolist()) == set(range(11))


def test_init_starts_from_other_weights(tmp_path: Path) -> None:
    start = sfumato.load(trained())
    training = Training(tiny(), tmp_path / "a", start, silent)
    assert all(torch.equal(x, start.net.state_dict()[name]) for name, x in training.bare.state_dict().items())
    with pytest.raises(ValueError, match=r"--init has options .* they must be alike"):
        Training(tiny(network=replace(NETWORK, channels=16)), tmp_path / "b", start, silent)
    with pytest.raises(ValueError, match=r"--init has target 'v', the run 'x0'"):
        Training(tiny(target="x0"), tmp_path / "b", start, silent)
    other = random_model(info=data.Info((1, 8, 8), "picture", 17, ("a", "b", "c")))
    training = Training(tiny(), tmp_path / "c", other, silent)  # another number of classes: that table is new
    taken = [
        name
        for name, x in training.bare.state_dict().items()
        if torch.equal(x, other.net.state_dict().get(name, x + 1))
    ]
    assert len(taken) == len(training.bare.state_dict()) - 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch must be at least 1; got 0"),
        ({"batch": 15, "optimiser": Optimiser(accumulate=2)}, "batch 15 cannot be cut into optimiser.accumulate = 2"),
        ({"drop_label": -0.1}, "drop_label is a share"),
        ({"ema": ()}, "ema must name at least one length"),
        ({"optimiser": Optimiser(clip=0)}, "clip must be above 0"),
        ({"optimiser": Optimiser(warmup=-1)}, "warmup at least 0"),
    ],
)
def test_runs_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": Loss(kind="simpl")}, "unknown loss 'simpl'; did you mean 'simple'"),
        ({"loss": Loss(weighting="snr")}, "unknown weighting 'snr'"),
        (
            {"loss": Loss(weighting="min_snr:gama=1")},
            "unknown option of weighting min_snr 'gama'; did you mean 'gamma'",
        ),
        ({"loss": Loss(times="importances")}, "unknown times 'importances'; did you mean 'importance'"),
        ({"optimiser": Optimiser(decay="cos")}, "unknown decay 'cos'"),
        ({"sampling": Sampling(sampler="dim")}, "unknown sampler 'dim'"),
        ({"sampling": Sampling(grid="uni")}, "unknown grid 'uni'"),
        ({"schedule": "rectified", "target": "eps", "time": "unit"}, "is refused: alpha"),
        ({"network": MLPConfig()}, r"mlp: shape \(1, 8, 8\) is not \(D,\)"),
        ({"ema": (0.05, 0.5)}, "an EMA length is a share"),
    ],
)
def test_runs_that_are_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        Training(tiny(**changes), tmp_path / "out", say=silent)
    assert not (tmp_path / "out").exists()


def test_guidance_without_labels_is_refused_before_the_training(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((30, 2)))
    run = tiny(data=data.Data("file", path=str(tmp_path / "x.npy")), network=MLPConfig(), sampling=Sampling(guidance=2))
    with pytest.raises(ValueError, match="guidance is 2 and the data have no labels"):
        Training(run, tmp_path / "out", say=silent)


def test_a_run_is_json(tmp_path: Path) -> None:
    run = tiny()
    assert json.loads(json.dumps(run.document()))["network"]["name"] == "unet"
    assert isinstance(run, Run)


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_what_is_sampled_and_measured_runs_as_the_training_does(precision: str, tmp_path: Path) -> None:
    training, _ = steps_of(tiny(steps=1, precision=precision), tmp_path)
    model = training.model()
    assert model.precision == precision
    fast = [{m.fast for m in net.modules() if hasattr(m, "fast")} for net in (model.net, training.bare)]
    assert fast[0] == fast[1]
    if precision == "float32":
        assert fast[0] == {False}
