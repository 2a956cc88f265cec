"""Bridges between two data sets, and what of schedule, codec, target, loss and source does not go together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sfumato
from sfumato.data import Data
from sfumato.model import Model, Sampling
from sfumato.nn import MLPConfig
from sfumato.samplers import SAMPLERS
from sfumato.train import Loss, Optimiser, Run, Training, held_out_loss, trainer
from sfumato.train.feed import OTHER_SEED
from sfumato.train.run import is_bridge
from sfumato.train.trainer import train

from ..tiny import checkpoint, different, silent, tiny

SHIFT = np.array([3.0, -2.0])


def bridge(folder: Path, **changes: Any) -> Run:
    """From a cloud of 400 points to the same cloud, in another order, moved by -SHIFT."""
    x = np.random.default_rng(0).standard_normal((400, 2)) @ np.array([[1.0, 0.3], [0.0, 0.5]])
    np.save(folder / "data.npy", x.astype(np.float32))
    np.save(folder / "source.npy", (x + SHIFT)[np.random.default_rng(1).permutation(400)].astype(np.float32))
    usual: dict[str, Any] = {
        "data": Data("file", path=str(folder / "data.npy")),
        "source": Data("file", path=str(folder / "source.npy")),
        "network": MLPConfig(width=32, depth=1, time_scale=10.0),
        "schedule": "rectified",
        "target": "flow",
        "time": "unit",
        "loss": Loss(weighting="velocity", coupling="auto"),
        "optimiser": Optimiser(learning_rate=1e-2, warmup=10),
        "sampling": Sampling(sampler="heun", steps=4),
        "steps": 6,
        "batch": 64,
    }
    return tiny(**{**usual, **changes})


def begun(run: Run, out: Path) -> Training:
    return Training(run, out, say=silent, resume=False)


Seen = tuple[Tensor, Tensor, Tensor, Tensor]


def watched(monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    """(x_0, eps, t, x_t) of every call of the objective."""
    seen: list[Seen] = []
    real = trainer.row_losses

    def watch(
        training: Training, denoiser: Any, x_0: Tensor, t: Tensor, eps: Tensor, cond: Any, measured: Any = None
    ) -> Tensor:
        assert measured is None  # nothing but the objective is measured here
        objective = training.objective

        def look(at: Any, *rest: Any) -> Tensor:
            seen.append((at.x_0, at.eps, at.t, at.x_t))
            return objective(at, *rest)

        training.objective = look
        try:
            return real(training, denoiser, x_0, t, eps, cond)
        finally:
            training.objective = objective

    monkeypatch.setattr(trainer, "row_losses", watch)
    return seen


@pytest.mark.parametrize("coupling", ["independent", "auto"])
def test_at_t_1_lie_rows_of_the_other_data(coupling: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """x_t = (1 - t) x_0 + t y with y rows of the source's training part in the data's own units; at t = 1 y itself."""
    seen = watched(monkeypatch)
    training = begun(bridge(tmp_path, loss=Loss(weighting="velocity", coupling=coupling)), tmp_path / "out")
    monkeypatch.setattr(
        training,
        "times",
        lambda u, schedule, p: (torch.ones_like(u).index_fill(0, torch.arange(32), 0.25), torch.ones_like(u)),
    )
    next(train(training))
    (x_0, y, _, x_t), *_ = seen
    assert torch.equal(x_t[32:], y[32:])
    torch.testing.assert_close(x_t[:32], 0.75 * x_0[:32] + 0.25 * y[:32])
    source = np.load(tmp_path / "source.npy")
    allowed = {tuple(row) for row in source[np.arange(400) % 10 != 9].round(3).tolist()}
    mean, std = (np.array(training.codec.spec[key]) for key in ("mean", "std"))
    np.testing.assert_allclose(
        mean, np.load(tmp_path / "data.npy")[np.arange(400) % 10 != 9].mean(0), rtol=1e-5, atol=1e-6
    )
    back = {tuple(row) for row in (y.double().numpy() * std + mean).astype(np.float32).round(3).tolist()}
    assert len(back) == 64
    assert len(back & allowed) > 60  # but for rounding at the third digit
    assert training.source is not None
    drawn = training.encode(next(training.source.train.batches(training.run.seed + OTHER_SEED, 64)))[0]
    before, after = ((x_0 - a).square().sum() for a in (drawn, y))
    assert torch.equal(drawn, y) if coupling == "independent" else bool(after < 0.9 * before)
    assert torch.equal(drawn[drawn[:, 0].argsort()], y[y[:, 0].argsort()])


def test_the_held_out_loss_is_on_held_out_rows_of_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = begun(bridge(tmp_path), tmp_path / "out")
    assert training.source is not None
    seen = watched(monkeypatch)
    held_out_loss(training)
    ((x_0, y, _, _),) = seen
    for part, got in ((training.splits, x_0), (training.source, y)):
        assert torch.equal(got, training.encode(part.held_out.take(np.arange(40)))[0])


@pytest.mark.slow
def test_it_learns_the_way_from_one_to_the_other(tmp_path: Path) -> None:
    """Coupled by transport, a shift is a straight walk: each point ends near itself minus SHIFT, in one step too."""
    training = begun(bridge(tmp_path, steps=400), tmp_path / "out")
    for _ in train(training):
        pass
    model = training.model()
    start = np.load(tmp_path / "source.npy")[np.arange(400) % 10 == 9]
    for steps in (1, 4):
        end = model.sample(40, steps=steps).numpy()
        moved = end - start
        np.testing.assert_allclose(moved.mean(0), -SHIFT, atol=0.2)
        assert float(moved.std(0).max()) < 0.4  # where an independent pairing would forget the start
        assert float(np.corrcoef(end[:, 0], start[:, 0])[0, 1]) > 0.95


def test_a_walk_starts_from_held_out_rows_of_the_other_data(tmp_path: Path) -> None:
    """Row i from seed + i, round and round, in a saved and loaded model too, whatever the batch."""
    training = begun(bridge(tmp_path), tmp_path / "out")
    next(train(training))
    training.model().save(tmp_path / "model")
    model = sfumato.load(tmp_path / "model")
    assert Data(**model.config.source) == training.run.source
    assert not model.config.gaussian
    held_out = torch.from_numpy(np.load(tmp_path / "source.npy")[np.arange(400) % 10 == 9])
    torch.testing.assert_close(model.codec.decode(model.start([0, 7, 39, 40, 85], None)), held_out[[0, 7, 39, 0, 5]])
    whole = model.sample(50, seed=3)
    torch.testing.assert_close(model.sample(50, seed=3, batch=7), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.sample(1, seed=20), whole[17:18], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole[40:], whole[:10], rtol=1e-4, atol=1e-4)  # there are 40 rows
    *_, (t, x_0, _) = model.trajectory(range(3), None, x_T=torch.zeros(3, 2))
    assert float(t) == 0
    assert not torch.allclose(model.codec.decode(x_0), whole[:3])


@pytest.fixture(scope="module")
def crossing(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("crossing")
    return begun(bridge(folder), folder / "out").model()


@pytest.mark.parametrize("name", sorted(name for name, row in SAMPLERS.items() if row.stochastic))
def test_samplers_that_add_noise_are_refused(name: str, crossing: Model) -> None:
    wanted = rf"sampler '{name}' adds noise, and this model is a bridge, .*; take a deterministic one such as ddim"
    with pytest.raises(ValueError, match=wanted) as told:
        crossing.sample(2, sampler=name)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("option", ["ddim:eta=1", "heun:churn=40"])
def test_so_are_options_that_add_noise(option: str, crossing: Model) -> None:
    with pytest.raises(ValueError, match="adds noise, and this model is a bridge"):
        crossing.sample(2, sampler=option)


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpmpp-2m", "unipc-2"])
def test_deterministic_ones_walk(name: str, crossing: Model) -> None:
    assert bool(torch.isfinite(crossing.sample(3, sampler=name, steps=3)).all())


def test_a_bridge_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Six steps are three and three: rows of both data, their pairing, weights and averages."""
    run = bridge(tmp_path)
    whole = Training(run, tmp_path / "whole", say=silent)
    losses = [step.loss for step in train(whole)]
    whole.save()
    first = Training(run, tmp_path / "parts", say=silent)
    steps = train(first)
    for _ in range(3):
        next(steps)
    first.save()
    again = Training(run, tmp_path / "parts", say=silent)
    assert again.step == 3
    assert [step.loss for step in train(again)] == losses[3:]
    again.save()
    assert not different(checkpoint(tmp_path / "whole", 6), checkpoint(tmp_path / "parts", 6))
    with pytest.raises(ValueError, match=r"began with other settings \(source.name: 'file' then, 'noise' now"):
        Training(replace(run, source=Data("noise")), tmp_path / "parts", say=silent)


def test_other_rows_in_the_sources_file_are_noticed(tmp_path: Path) -> None:
    run = bridge(tmp_path)
    training = Training(run, tmp_path / "out", say=silent)
    next(train(training))
    training.save()
    np.save(tmp_path / "source.npy", np.load(tmp_path / "source.npy")[:300])
    with pytest.raises(ValueError, match="was trained on other data"):
        Training(run, tmp_path / "out", say=silent)


def test_labelled_data_and_a_source_without_labels(tmp_path: Path) -> None:
    """Pictures from pictures: labels are the data's, guidance works, and the source's labels are not looked at."""
    pictures = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=pictures, labels=np.arange(30) % 3)
    np.savez(tmp_path / "b.npz", images=255 - pictures)
    run = bridge(
        tmp_path,
        data=Data("file", path=str(tmp_path / "a.npz")),
        source=Data("file", path=str(tmp_path / "b.npz")),
        network=tiny().network,
        batch=16,
        steps=2,
    )
    for one in (run, replace(run, data=run.source, source=run.data)):
        training = begun(one, tmp_path / "out")
        assert all(np.isfinite(step.loss) for step in train(training))
        classes = training.config.conditions.classes
        assert classes == (3 if one is run else 0)
        assert training.model().sample(4, guidance=2.0 if classes else None).shape == (4, 1, 8, 8)


# ---- what does not go together: what came, what is allowed, how to mend it

FLOW = {"schedule": "rectified", "target": "flow", "time": "unit"}
BLUR = {"schedule": "blurring:height=8,width=8", "time": "unit", "codec": "dct"}
COLD = {"schedule": "cold", "target": "x0", "time": "unit", "loss": Loss(weighting="x0")}
VECTORS = {"network": MLPConfig(width=8, depth=1)}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "blurring without its codec": (
        {**BLUR, "codec": "auto"},
        r"schedule 'blurring:height=8,width=8' with codec 'auto': .* --schedule blurring goes with --codec dct",
    ),
    "the codec without blurring": (
        {"codec": "dct"},
        r"schedule 'cosine:steps=20' with codec 'dct': .* --codec dct, and no other schedule does",
    ),
    "blurring of another size": (
        {**BLUR, "schedule": "blurring"},
        r"has 32x32 frequencies and the pictures are \(1, 8, 8\); write blurring:height=8,width=8",
    ),
    "cold with noise's target": (
        {**COLD, "target": "v"},
        r"without noise; it takes --target x0.* got 'v', 'x0'.* and pictures",
    ),
    "cold with noise's weighting": (
        {**COLD, "loss": Loss(weighting="simple")},
        r"it takes --target x0.* got 'x0', 'simple'.* and pictures",
    ),
    "cold with the bound": (
        {**COLD, "loss": Loss(kind="vlb", weighting="x0")},
        r"schedule cold .*--loss.kind simple",
    ),
    "meanflow on a bent path": (
        {"loss": Loss(kind="meanflow")},
        r"straight path: take --schedule rectified --target flow; got 'cosine:steps=20' and 'v'",
    ),
    "meanflow computed again": (
        {**FLOW, "loss": Loss(kind="meanflow"), "gradient_checkpointing": True},
        r"loss meanflow takes a derivative along the path, which gradient_checkpointing cannot",
    ),
    "meanflow of another target": (
        {**FLOW, "target": "v", "loss": Loss(kind="meanflow")},
        r"take --schedule rectified --target flow; got 'rectified' and 'v'",
    ),
    "meanflow with options on a bent path": (
        {"loss": Loss(kind="meanflow:power=0.5")},
        r"take --schedule rectified --target flow",
    ),
    "a bridge along a bent path": (
        {"source": Data("digits")},
        r"a bridge from 'digits' is walked along the straight path: take --schedule rectified .* got 'cosine:steps=20'",
    ),
    "a bridge of average velocities": (
        {**FLOW, "source": Data("digits"), "loss": Loss(kind="meanflow")},
        r"take --schedule rectified --loss.kind simple; got 'rectified' and 'meanflow'",
    ),
    "a stochastic sampler of cold": (
        {**COLD, "sampling": Sampling(sampler="ancestral", steps=4)},
        r"sampler 'ancestral' with schedule 'cold' is refused: .* take sampler 'cold' with schedule 'cold'",
    ),
    "the sampler cold of noise": (
        {"sampling": Sampling(sampler="cold", steps=4)},
        r"sampler 'cold' with schedule 'cosine' is refused: .* and with others 'ddim'",
    ),
    "the sampler meanflow on a bent path": (
        {"sampling": Sampling(sampler="meanflow", steps=2)},
        r"an average velocity is that of the straight path; take schedule rectified",
    ),
    "blurring's velocity": (
        {**BLUR, "target": "flow"},
        r"target 'flow' with schedule 'blurring' is refused: .* take target 'v' or 'x0'",
    ),
    "blurring's eps": ({**BLUR, "target": "eps"}, r"target 'eps' with schedule 'blurring' is refused"),
    "an unknown degradation": ({**COLD, "schedule": "cold:degradation=blurr"}, r"did you mean 'blur'"),
    "grey of grey pictures": ({**COLD, "schedule": "cold:degradation=grey"}, r"grey takes pictures of 3 channels"),
    "an unknown codec": ({"codec": "pixel"}, r"unknown codec 'pixel'"),
    "an unknown coupling": ({"loss": Loss(coupling="best")}, r"unknown coupling 'best'"),  # type: ignore[arg-type]
    "time's index without steps": ({**FLOW, "time": "index"}, r"time 'index' needs a T-step schedule"),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_does_not_go_together_is_refused_before_anything_is_written(case: str, tmp_path: Path) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as told:
        Training(tiny(**changes), tmp_path / "out", say=silent)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_numbers_are_no_pictures(tmp_path: Path) -> None:
    """The codec of frequencies, cold diffusion and blurring are for pictures."""
    np.save(tmp_path / "x.npy", np.zeros((40, 3)))
    vectors = {**VECTORS, "data": Data("file", path=str(tmp_path / "x.npy"))}
    for changes, message in (
        (BLUR, "codec 'dct' is for pictures with levels, these data are vectors of floats; take auto"),
        (COLD, "it takes --target x0.* got 'x0', 'x0'.* and vectors"),
    ):
        with pytest.raises(ValueError, match=message):
            begun(tiny(**{**changes, **vectors}), tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "came"),
    [
        (np.zeros((40, 3), np.float32), r"'file' has \(3,\) of None levels, 'file' \(2,\) of None"),
        (np.zeros((40, 8, 8), np.uint8), r"'file' has \(1, 8, 8\) of 256 levels"),
    ],
)
def test_a_bridge_needs_rows_of_one_shape(source: np.ndarray, came: str, tmp_path: Path) -> None:
    run = bridge(tmp_path)
    np.save(tmp_path / "source.npy", source)
    with pytest.raises(ValueError, match=rf"a bridge needs two sets of like rows: {came}.*; set both sizes") as told:
        begun(run, tmp_path / "out")
    assert "\n" not in str(told.value)


def test_noise_is_no_bridge(tmp_path: Path) -> None:
    assert not is_bridge(tiny())
    training = begun(tiny(), tmp_path)
    assert training.source is None
    assert training.model().config.source == {}


@pytest.mark.parametrize("changes", [{"loss": Loss(average_share=0.0)}, {"loss": Loss(average_share=1.5)}])
def test_shares_are_shares(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"loss.average_share is a share in \(0, 1\]; got"):
        tiny(**changes)


def test_spans_are_between_two_times_drawn_alike(tmp_path: Path) -> None:
    """A share of rows has s < t, t the later of two; the others have s = t; the share is what was asked for."""
    run = tiny(**FLOW, loss=Loss(kind="meanflow", average_share=0.6), batch=4000, sampling=Sampling(steps=2))
    training = begun(run, tmp_path)
    u = torch.rand(4000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t, span = trainer._spans(training, u, 1)
    averaged = span > 0
    assert float(averaged.double().mean()) == pytest.approx(0.6, abs=0.03)
    assert torch.equal(t[~averaged], u[~averaged])
    assert bool((t >= u).all())
    assert bool(((t - span)[averaged] > 0).all())
    lower, upper = (t - span)[averaged], t[averaged]
    assert bool(((lower - u[averaged]).abs().minimum((upper - u[averaged]).abs()) < 1e-12).all())
    # the later of two uniform draws has distribution t^2, the earlier 1 - (1 - s)^2
    assert float(upper.mean()) == pytest.approx(2 / 3, abs=0.02)
    assert float(lower.mean()) == pytest.approx(1 / 3, abs=0.02)
    plain = begun(tiny(**FLOW, loss=Loss(weighting="velocity"), sampling=Sampling(steps=2)), tmp_path)
    t, span = trainer._spans(plain, u, 1)
    assert torch.equal(t, u)
    assert not span.any()
