"""Samples at one setting: what is counted, what is remembered, and that scores are those of the model's own samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from sfumato.experiments import sampled
from sfumato.experiments.report import Request
from sfumato.experiments.sampled import (
    Bench,
    Setting,
    bench,
    by_chance,
    counting,
    in_codec_units,
    measured,
    standard_error,
)
from sfumato.experiments.tradeoff import real_of
from sfumato.guidance.guide import Guide
from sfumato.metrics.features import FeatureNetwork, Seen
from sfumato.tasks.scores import pictures_of, real_pictures, score


def halves(images: np.ndarray) -> Seen:
    """Eight features that a hand can check: the means of the picture's columns."""
    features = images.astype(np.float32).mean((1, 3)) / 255
    shifted = np.concatenate([features, features[:, :2] - 0.01], 1)
    return Seen(features, shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


STUB = FeatureNetwork("columns", "FD(columns)", halves, tuple("0123456789"))


@pytest.fixture
def on(request_of: Callable[..., Request]) -> Bench:
    return bench(request_of("ddim-table"), STUB)


class TestEvaluations:
    @pytest.mark.parametrize(
        ("setting", "wanted"),
        [
            (Setting("ddim", 6, "trailing", 1.0, 4), 6),
            (Setting("heun", 20, "trailing", 1.0, 4), 2 * 20 - 2),  # 2S - 1, and its first step is long
            (Setting("dpmpp-2m", 6, "trailing", 2.0, 4), 12),  # the rows of guidance count
        ],
        ids=lambda x: getattr(x, "sampler", ""),
    )
    def test_rows_are_counted(
        self, on: Bench, request_of: Callable[..., Request], setting: Setting, wanted: int
    ) -> None:
        found = measured(request_of("ddim-table"), on, setting, "x")
        assert found["evaluations"] == wanted
        assert found["milliseconds_per_sample"] == pytest.approx(1000 * found["seconds"] / 4)

    def test_heun_asks_twice_a_step_but_the_last(
        self, on: Bench, request_of: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where no step is long."""
        monkeypatch.setattr("sfumato.samplers.edm.long", lambda schedule, t, s: float(s) == 0)
        found = measured(request_of("ddim-table"), on, Setting("heun", 5, "trailing", 1.0, 4), "x")
        assert found["evaluations"] == 2 * 5 - 1

    def test_a_weaker_network_is_counted_too(self, on: Bench, saved: Callable[[int], str]) -> None:
        from sfumato.model import load

        weak = load(saved(1))
        guide = Guide(2.0, weak=weak.denoiser, told={"weak": "tiny"})
        with counting(*sampled._networks(on.model, guide)) as counter:
            weak.sample(3, sampler="ddim", steps=2, guidance=1.0)
            on.model.sample(2, sampler="ddim", steps=2, guidance=1.0)
        assert counter.rows == 3 * 2 + 2 * 2
        on.model.sample(2, sampler="ddim", steps=2, guidance=1.0)
        assert counter.rows == 10  # and nothing is counted afterwards
        with pytest.raises(ValueError, match="cannot be counted"):
            sampled._networks(on.model, Guide(2.0, weak=on.model.guided()))


class TestMeasured:
    def test_the_score_is_that_of_the_models_samples(self, on: Bench, request_of: Callable[..., Request]) -> None:
        request = request_of("ddim-table", seed=3)
        found = measured(request, on, Setting("ddim", 4, "trailing", 1.0, 20, kept=20), "x")
        x = on.model.sample(20, sampler="ddim", steps=4, grid="trailing", seed=request.seed, guidance=1.0)
        assert np.array_equal(found["images"], (x.numpy().transpose(0, 2, 3, 1) * (255 / 16)).round().astype(np.uint8))
        labels = np.arange(20) % 10
        again = score(found["images"], on.reference, STUB, labels)
        assert {name: found[name] for name in again} == again
        assert found["sampling"]["sampler"] == "ddim"
        assert found["n"] == 20

    def test_a_block_is_made_once_and_only_for_its_setting(
        self, on: Bench, request_of: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        request, setting, made = request_of("ddim-table"), Setting("ddim", 2, "trailing", 1.0, 10, kept=3), []
        whole = sampled._measure
        monkeypatch.setattr(sampled, "_measure", lambda *given: made.append(given[-1]) or whole(*given))
        first, again = (measured(request, on, setting, "x") for _ in range(2))
        assert len(made) == 1
        assert first["seconds"] == again["seconds"]
        assert first["images"].shape == (3, 8, 8, 1)
        assert np.array_equal(first["images"], again["images"])
        others = [replace(setting, guidance=Guide(2.0)), replace(setting, guidance=Guide(2.0, low=0.5))]
        for other in (*others, replace(setting, kept=4), replace(setting, steps=3)):
            measured(request, on, other, "x")
        assert len(made) == 5
        elsewhere = replace(on, reference=replace(on.reference, seen=halves(on.reference.images[::2])))
        measured(request, elsewhere, replace(setting, steps=3), "x")
        assert len(made) == 6
        measured(request, replace(on, network=replace(STUB, weights="12ab")), setting, "x")
        assert len(made) == 7


class TestFloor:
    def test_it_is_the_score_of_real_pictures(self, on: Bench) -> None:
        real, labels = real_pictures(on.splits.train, on.splits.info, 1000)[0]
        assert on.floor == score(real, on.reference, STUB, labels)
        assert on.floor["agreement"] is not None
        assert any("floor: 1,000 real" in line for line in on.basis)
        named = replace(on, network=replace(STUB, weights="12ab"))
        assert any("of `columns`, weights sha256 `12ab`" in line for line in named.basis)

    def test_disjoint_sets_differ_by_chance(self, on: Bench) -> None:
        sets = real_pictures(on.splits.train, on.splits.info, 50, sampled.SETS)
        found = [score(images, on.reference, STUB)["frechet"] for images, _ in sets]
        assert len(set(found)) == sampled.SETS
        assert by_chance(on.floors(50)) == pytest.approx((np.mean(found), np.std(found, ddof=1)))
        assert min(found) > on.floor["frechet"]  # fewer pictures are further away
        assert by_chance(on.floors(1200))[1] == 0  # rows for one set only

    def test_agreement_is_asked_of_a_network_of_the_same_classes_only(
        self, on: Bench, request_of: Callable[..., Request]
    ) -> None:
        """Of ten others it would be a number without a meaning; in another order the numbers are turned."""
        setting = Setting("ddim", 2, "trailing", 1.0, 20)
        known = measured(request_of("ddim-table"), on, setting, "known")["agreement"]
        others = replace(on, network=replace(STUB, label_names=tuple("abcdefghij")))
        assert measured(request_of("ddim-table"), others, setting, "others")["agreement"] is None
        assert [one["agreement"] for one in others.floors(50)] == [None] * sampled.SETS
        assert real_of(others, 50).values["agreement"] is None

        def turned(images: np.ndarray) -> Seen:
            seen = halves(images)
            assert seen.log_probs is not None
            return Seen(seen.features, seen.log_probs[:, ::-1])

        backwards = replace(on, network=FeatureNetwork("columns", "FD(columns)", turned, tuple("9876543210")))
        assert measured(request_of("ddim-table"), backwards, setting, "turned")["agreement"] == known
        assert [one["agreement"] for one in backwards.floors(50)] == [one["agreement"] for one in on.floors(50)]


def test_the_standard_error_is_that_of_other_samples(on: Bench) -> None:
    """Of real pictures, of which there are more to draw from."""
    rng = np.random.default_rng(0)
    x = pictures_of(on.splits.train, len(on.splits.train), 17)
    draws = [x[rng.permutation(len(x))[:400]] for _ in range(20)]
    told = np.mean([standard_error(on, images) for images in draws])
    seen = np.std([score(images, on.reference, STUB)["frechet"] for images in draws], ddof=1)
    assert 0.75 < told / seen < 1.6  # 1.1 of many draws: a jackknife is careful; 20 of them know it to a sixth


def test_pictures_come_back_as_they_are_drawn() -> None:
    images = np.array([[[[0], [255]], [[51], [204]]]], dtype=np.uint8)
    wanted = torch.tensor([[[[-1.0, 1.0], [-0.6, 0.6]]]])
    assert torch.allclose(in_codec_units(torch.from_numpy(images)), wanted)


def test_features_go_with_the_data(request_of: Callable[..., Request], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(sampled, "feature_network", lambda name: asked.append(name) or STUB)
    bench(request_of("ddim-table"))
    monkeypatch.setattr(sampled, "FEATURES", {"digits": "mnist"})
    bench(request_of("ddim-table"))
    assert asked == ["efficientnet-lite0", "mnist"]
