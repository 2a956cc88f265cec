"""Model: the same picture whatever its company, labels by name and number, and folders that are read with doubt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sfumato
from sfumato import data
from sfumato.checkpoints import native
from sfumato.data import Info
from sfumato.model import Model, Sampling, find
from sfumato.nn import MLPConfig
from sfumato.tasks import generate
from sfumato.tasks.evaluate import bound_of, flow_bits_of

from .tiny import random_model, tiny, trained

STOCHASTIC: dict[str, Any] = {"sampler": "ancestral:variance=large", "steps": 10, "guidance": 2.5}


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model()


def codec_units(model: Model, rows: range, labels: torch.Tensor, seed: int) -> torch.Tensor:
    *_, (_, x_0, _) = model.trajectory(rows, labels, seed, **STOCHASTIC)
    return x_0


def test_a_picture_is_the_same_alone_in_seven_in_64_and_in_any_order(model: Model) -> None:
    """In float32 to 1e-4 in [-1, 1]: a random UNet, a stochastic sampler, guided."""
    labels = torch.arange(64) * 7 % 10
    together = codec_units(model, range(64), labels, seed=5)
    assert float(together.std()) > 0.1
    assert float((together[0] - together[1]).abs().max()) > 0.1
    for i in (0, 3, 63):
        alone = codec_units(model, range(i, i + 1), labels, seed=5)
        assert float((alone[0] - together[i]).abs().max()) < 1e-4
    seven = codec_units(model, range(20, 27), labels, seed=5)
    assert float((seven - together[20:27]).abs().max()) < 1e-4
    backwards = torch.cat([codec_units(model, range(i, i + 1), labels, seed=5) for i in (9, 4, 11)])
    assert float((backwards - together[[9, 4, 11]]).abs().max()) < 1e-4


def test_rows_in_another_order_are_the_same_rows(model: Model) -> None:
    from sfumato import samplers
    from sfumato.noise import PRIOR, normal

    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))

    def walk(seeds: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        cond = {"label": labels, "guidance": torch.full((16,), 2.5)}
        x_T = normal(seeds, (1, 8, 8), PRIOR)
        return samplers.sample(model.guided(), x_T, "ancestral", 10, seeds=seeds, cond=cond)

    seeds, labels = torch.arange(100, 116), torch.arange(16) % 10
    assert float((walk(seeds, labels)[order] - walk(seeds[order], labels[order])).abs().max()) < 1e-4


@pytest.mark.slow
def test_the_batch_of_sample_and_generate_changes_no_picture(model: Model) -> None:
    whole = model.sample(64, seed=3, **STOCHASTIC)
    assert whole.dtype == torch.uint8
    assert whole.shape == (64, 1, 8, 8)
    for n, batch in ((6, 1), (64, 7)):
        parts = torch.from_numpy(generate(model, n, seed=3, batch=batch, **STOCHASTIC).x)
        assert (parts.int() - whole[:n].int()).abs().max() <= 1  # a value on the edge of two levels
        assert (parts != whole[:n]).float().mean() < 3e-3
    assert torch.equal(model.sample(3, seed=8, label=[5, 6, 7], **STOCHASTIC), whole[5:8])  # row i is seed + i
    assert not torch.equal(model.sample(64, seed=4, **STOCHASTIC), whole)


def test_labels_guidance_and_seed_change_the_picture(model: Model) -> None:
    one = model.sample(4, label=1, seed=0)
    assert torch.equal(one, model.sample(4, label="1", seed=0))
    assert not torch.equal(one, model.sample(4, label=2, seed=0))
    assert not torch.equal(one, model.sample(4, label=1, seed=0, guidance=3.0))
    assert torch.equal(one, model.sample(4, label=1, seed=0, guidance=1.0))


def test_classes_come_in_turn_or_by_name_or_number(model: Model) -> None:
    assert model.labels(12).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]  # type: ignore[union-attr]
    named = random_model(info=Info((1, 8, 8), "picture", 17, ("cat", "2", "1")))
    assert named.labels(2, "cat").tolist() == [0, 0]  # type: ignore[union-attr]
    assert named.labels(1, "1").tolist() == [2]  # type: ignore[union-attr]  # a name before a number
    assert named.labels(1, "0").tolist() == [0]  # type: ignore[union-attr]
    assert named.labels(1, 1).tolist() == [1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"n": 0}, r"n must be a whole number >= 1; got 0"),
        ({"n": -1}, r"n must be a whole number >= 1; got -1"),
        ({"n": 2, "batch": 0}, r"batch must be a whole number >= 1; got 0"),
        ({"n": 2, "seed": 0.5}, r"seed must be a whole number; got 0\.5"),
        ({"n": 2, "steps": 0}, r"steps must be a whole number from 1 to 20; got 0"),
        ({"n": 2, "steps": 21}, r"steps must be a whole number from 1 to 20; got 21"),
        ({"n": 2, "label": 10}, r"unknown label 10 \(allowed: 0\.\.9\)"),
        ({"n": 2, "label": "-1"}, r"unknown label -1 \(allowed: 0\.\.9\)"),
        ({"n": 2, "label": [1]}, r"must be 2 numbers in 0\.\.9; got 1 from 1 to 1"),
        ({"n": 2, "label": []}, r"got none"),
        ({"n": 2, "label": "seven"}, r"unknown label 'seven'.*allowed: 0, 1"),
        ({"n": 2, "sampler": "dddim"}, r"unknown sampler 'dddim'; did you mean 'ddim'"),
        ({"n": 2, "sampler": "ddim:etta=1"}, r"unknown option of sampler ddim 'etta'; did you mean 'eta'"),
        ({"n": 2, "grid": "trail"}, r"unknown grid 'trail'; did you mean 'trailing'"),
        ({"n": 2, "guidance": float("nan")}, r"guidance: scale is a finite number; got nan"),
    ],
)
def test_mistakes_are_one_line(model: Model, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as told:
        model.sample(**asked)
    assert "\n" not in str(told.value)


def test_a_model_without_classes_knows_no_labels_and_no_guidance() -> None:
    vectors = random_model(tiny(network=MLPConfig(width=16, depth=1)), Info((2,), "vector", None))
    x = vectors.sample(5)
    assert x.shape == (5, 2)
    assert x.dtype == torch.float32
    assert vectors.labels(3) is None
    with pytest.raises(ValueError, match=r"guidance 2 came, allowed is 1, for the model knows no classes"):
        vectors.sample(2, guidance=2.0)
    with pytest.raises(ValueError, match="label 1 was asked of a model without classes"):
        vectors.sample(2, label=1)


def test_fewer_schedule_steps_than_usual_are_all_taken() -> None:
    short = random_model(sampling=Sampling(steps=50))
    assert short.usual_steps == 20
    assert generate(short, 2).settings["steps"] == 20
    assert torch.equal(short.sample(2), short.sample(2, steps=20))


def test_a_folder_gives_the_same_model_back(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["card.md", "config.json", "model.safetensors"]
    again = sfumato.load(tmp_path / "model", device="cpu")
    assert json.dumps(again.config.document()) == json.dumps(model.config.document())
    assert again.card == "a card\n"
    assert torch.equal(again.sample(3), model.sample(3))
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    model.save(tmp_path / "model", half=True)
    halved = sfumato.load(tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").stat().st_size < 0.6 * size
    assert next(halved.net.parameters()).dtype == torch.float32
    for name, x in halved.net.state_dict().items():
        torch.testing.assert_close(x, model.net.state_dict()[name], rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_bfloat16_inside_the_network_changes_little() -> None:
    run = trained()
    exact, rough = (sfumato.load(run, precision=row) for row in ("float32", "bfloat16"))
    difference = (exact.sample(20).float() - rough.sample(20).float()).abs().mean()
    assert 0 < difference < 1
    with pytest.raises(ValueError, match="unknown precision 'half'"):
        sfumato.load(run, precision="half")


@pytest.mark.slow
def test_likelihoods_are_measured_without_bfloat16() -> None:
    run = trained()
    fast, rough = (sfumato.load(run, precision=row) for row in ("float32-fast", "bfloat16"))
    x, t = torch.randn(3, *fast.config.shape), torch.full((3,), 0.5, dtype=torch.float64)
    exact = rough.in_float32()
    assert torch.equal(exact.denoiser(x, t).x0, fast.denoiser(x, t).x0)
    assert not torch.equal(rough.denoiser(x, t).x0, fast.denoiser(x, t).x0)
    splits = data.load(fast.config.trained_on)
    bounds = [bound_of(model, splits, rows=9).rows for model in (fast, rough)]
    assert torch.equal(*bounds)
    flows = [flow_bits_of(model, splits, 2)["value"] for model in (fast, rough)]
    assert flows[0] == flows[1]


def test_a_run_its_model_and_its_best_are_found() -> None:
    run = trained()
    assert find(run) == find(str(run)) == run / "model"
    assert find(run / "best") == run / "best"
    assert (
        sfumato.load(run / "best").config.training["held_out_loss"]
        <= sfumato.load(run).config.training["held_out_loss"]
    )


def _edit(key: str, value: Any) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        document = json.loads((folder / "config.json").read_text())
        document[key] = value
        (folder / "config.json").write_text(json.dumps(document))

    return harm


def _without(key: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        document = json.loads((folder / "config.json").read_text())
        del document[key]
        (folder / "config.json").write_text(json.dumps(document))

    return harm


def _tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        tensors = native.read_tensors(folder / "model.safetensors")
        change(tensors)
        native.save_file(tensors, folder / "model.safetensors")

    return harm


def _only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _torn(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


OPTIONS = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4}
HARM: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing tensor": (_tensors(lambda t: t.pop("stem.bias")), r"missing: stem\.bias"),
    "foreign tensor": (_tensors(lambda t: t.update(more=torch.ones(1))), r"foreign: more"),
    "misshapen tensor": (
        _tensors(lambda t: t.update({"stem.bias": torch.ones(3)})),
        r"stem\.bias is \(3,\), wanted \(8,\)",
    ),
    "no tensors": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors is missing"),
    "torn tensors": (_torn, r"no whole safetensors file .*torn"),
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
    "garbage": (lambda f: (f / "config.json").write_text("{"), r"config\.json cannot be read"),
    "a list": (lambda f: (f / "config.json").write_text("[1]"), r"holds list, not an object"),
    "another version": (_edit("format", "sfumato 9"), r"format 'sfumato 9' \(wanted 'sfumato 1'\)"),
    "missing key": (_without("target"), r"missing \['target'\]"),
    "foreign key": (_edit("colour", 1), r"foreign \['colour'\]"),
    "unknown network": (_edit("network", "unett"), r"unknown network 'unett'; did you mean 'unet'"),
    "unknown option": (_edit("options", {**OPTIONS, "chanels": 8}), r"does not read as a config.*chanels"),
    "option of a wrong type": (_edit("options", {**OPTIONS, "channels": "8"}), r"does not read as a config"),
    "other options": (_edit("options", {**OPTIONS, "channels": 16}), r"does not fit its config\.json .*misshapen"),
    "nameless schedule": (_edit("schedule", {}), r"does not read as a config.*name"),
    "unknown schedule": (_edit("schedule", {"name": "cosin"}), r"unknown schedule 'cosin'; did you mean 'cosine'"),
    "nameless codec": (_edit("codec", {}), r"does not read as a config.*name"),
    "conditions": (_edit("conditions", {"classes": "ten"}), r"does not read as a config"),
    "unknown target": (_edit("target", "epss"), r"unknown target 'epss'; did you mean 'eps'"),
    "unknown time": (_edit("time", "indeks"), r"unknown time 'indeks'; did you mean 'index'"),
    "a pickle": (_only_a_pickle, r"holds only pytorch_model\.bin: a pickle can run code, so it is refused"),
}


@pytest.mark.parametrize("harm", sorted(HARM))
def test_a_folder_that_is_no_whole_model_is_refused_in_one_line(harm: str, model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model.save(folder)
    HARM[harm][0](folder)
    with pytest.raises(ValueError, match=HARM[harm][1]) as told:
        sfumato.load(folder)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["weights.pt", "weights.ckpt", "weights.bin", "weights.pkl"])
def test_a_pickle_is_refused_unread(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    with pytest.raises(ValueError, match="is a pickle, which can run code when read, so it is refused"):
        sfumato.load(tmp_path / name)


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown model 'nothing-like-it'.*a model folder or a run's folder"):
        sfumato.load("nothing-like-it")
    with pytest.raises(ValueError, match=r"no/such is no folder"):
        sfumato.load("no/such")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="has not finished: give its command again, or take its folder best"):
        sfumato.load(tmp_path)


def test_other_ema_lengths_need_the_runs_snapshots(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="there are no snapshots in"):
        sfumato.load(tmp_path / "model", ema=0.1)
    with pytest.raises(ValueError, match=r"share of the training in \(0, 0\.28\); got 0\.5"):
        sfumato.load(trained(), ema=0.5)
    shutil.copytree(trained(), tmp_path / "run")
    one, two = (sfumato.load(tmp_path / "run", ema=ema).net.state_dict() for ema in (0.05, 0.2))
    assert any(not torch.equal(x, two[name]) for name, x in one.items())
