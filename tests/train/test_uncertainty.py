"""The learned weight of each noise level: where it rests, that it is trained, saved and left out of the model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sfumato
from sfumato.checkpoints import native
from sfumato.train import Loss, Optimiser, Training, held_out_loss, trainer
from sfumato.train.feed import feed
from sfumato.train.trainer import train
from sfumato.train.uncertainty import Uncertainty

from ..tiny import checkpoint, different, silent, tiny

RUN = tiny(
    steps=4,
    loss=Loss(learned_weight=True, times="uniform"),
    optimiser=Optimiser(warmup=2, accumulate=2),
)


def minimised(uncertainty: Uncertainty, training: Training, t: Tensor, values: Tensor) -> Tensor:
    """exp(-u) l + u, as the trainer minimises it, with this u."""
    training.uncertainty = uncertainty
    return trainer._weighed(training, t, values)


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    return Training(RUN, tmp_path_factory.mktemp("weight"), say=silent, resume=False)


def test_at_the_start_the_loss_is_the_loss(training: Training) -> None:
    values, t = torch.tensor([0.3, 2.0, 17.0]), torch.tensor([0.05, 0.5, 1.0], dtype=torch.float64)
    fresh = Uncertainty()
    assert torch.equal(fresh(torch.tensor([-40.0, 0.0, 3.0, math.inf, -math.inf])), torch.zeros(5))
    assert torch.equal(minimised(fresh, training, t, values), values)


def test_it_is_least_at_the_log_of_the_loss(training: Training) -> None:
    """exp(-u) l + u: 1 + log l at u = log l, and more beside it, by its definition in 64 bits."""
    t = torch.full((101,), 0.5, dtype=torch.float64)
    for loss in (0.01, 1.0, 30.0):
        constant = Uncertainty()
        u = torch.linspace(-3, 3, 101) + math.log(loss)
        found = []
        for value in u.tolist():
            torch.nn.init.constant_(constant.out.bias, value)
            found.append(minimised(constant, training, t[:1], torch.tensor([loss])))
        curve = torch.cat(found).detach()
        wanted = torch.exp(-u.double()) * loss + u.double()
        torch.testing.assert_close(curve.double(), wanted, rtol=1e-5, atol=1e-5)
        assert int(curve.argmin()) == 50
        assert float(curve.min()) == pytest.approx(1 + math.log(loss), abs=1e-5)


def test_fitted_it_is_the_log_of_the_mean_loss_at_each_level(training: Training) -> None:
    """Losses that scatter: log E[l], not E[log l], which lies 0.5 lower here; for levels over the whole schedule."""
    generator = torch.Generator().manual_seed(0)
    t = torch.linspace(0.05, 1, 20, dtype=torch.float64).repeat(64)
    level = torch.exp(2 * torch.cos(3 * t) - 1).float()
    scatter = torch.exp(torch.randn(len(t), generator=generator) - 0.5).reshape(64, 20)
    values = level * (scatter / scatter.mean(0)).flatten()
    uncertainty = Uncertainty()
    optimiser = torch.optim.LBFGS(uncertainty.parameters(), max_iter=150, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = minimised(uncertainty, training, t, values).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    logsnr = training.denoiser.schedule.logsnr(t[:20])
    torch.testing.assert_close(uncertainty(logsnr).detach(), level[:20].log(), rtol=0, atol=0.1)


def test_both_are_trained_and_the_network_by_the_loss_over_its_mean(tmp_path: Path) -> None:
    """The gradient in the network is exp(-u) times that of the loss; u moves; the held-out loss does not look at u."""
    gradients = []
    for u in (0.0, 2.0):
        training = Training(RUN, tmp_path, say=silent, resume=False)
        assert training.uncertainty is not None
        with torch.no_grad():
            training.uncertainty.out.bias.fill_(u)
        before = held_out_loss(training)
        rows, _ = next(feed(training))
        _, norm = trainer._one_step(training, rows, None, 1)
        gradients.append(norm)
        assert float(training.uncertainty.out.bias.grad.abs()) > 0  # type: ignore[union-attr]
        if u == 0:
            plain = before
        assert before == plain
    assert gradients[1] == pytest.approx(gradients[0] * math.exp(-2), rel=1e-4)
    for _ in train(training):
        pass
    assert training.uncertainty is not None
    assert training.uncertainty.out.bias.item() != 2.0
    assert bool(training.uncertainty.out.weight.any())


def test_a_training_that_goes_on_is_the_training_that_was_not_stopped(tmp_path: Path) -> None:
    """Steps 1 and 2, a new set of objects, steps 3 and 4: weights, averages, moments and u to the bit."""
    unstopped = Training(RUN, tmp_path / "whole", say=silent)
    for _ in train(unstopped):
        pass
    unstopped.save()
    stopped = Training(RUN, tmp_path / "parts", say=silent)
    steps = train(stopped)
    for _ in range(2):
        next(steps)
    stopped.save()
    next(steps)  # a third step that is lost
    again = Training(RUN, tmp_path / "parts", say=silent)
    assert again.step == 2
    assert again.uncertainty is not None
    at_two = checkpoint(tmp_path / "parts", 2)
    assert torch.equal(again.uncertainty.out.weight, at_two["uncertainty/out.weight"])
    for _ in train(again):
        pass
    again.save()
    whole, parts = (checkpoint(tmp_path / name, 4) for name in ("whole", "parts"))
    assert not different(whole, parts)
    assert different(whole, at_two)
    kinds = {name.rsplit("/", 1)[0] for name in whole if "uncertainty" in name}
    assert kinds == {"uncertainty", "adam/step", "adam/exp_avg", "adam/exp_avg_sq"}
    assert float(whole["uncertainty/out.weight"].abs().max()) > 0

    unstopped.model().save(tmp_path / "model")
    exported = native.read_tensors(tmp_path / "model" / "model.safetensors")
    assert exported.keys() == unstopped.bare.state_dict().keys()
    assert not any("uncertainty" in name for name in exported)
    assert sfumato.load(tmp_path / "model").sample(2, steps=2).shape == (2, 1, 8, 8)


def test_without_it_nothing_is_kept_of_it(tmp_path: Path) -> None:
    training = Training(tiny(steps=1), tmp_path, say=silent)
    next(train(training))
    training.save()
    assert training.uncertainty is None
    assert not any("uncertainty" in name for name in checkpoint(tmp_path, 1))
