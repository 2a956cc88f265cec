"""The numbers behind the experiments that train, and behind encoding, against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato import data, samplers
from sfumato import schedules as rooms
from sfumato.codecs import PixelCodec, StandardCodec
from sfumato.experiments import assumptions, flow, nll, reconstruction, trainings
from sfumato.experiments.report import Request, digest
from sfumato.experiments.trained import trained
from sfumato.experiments.trainings import Judged, trained_here
from sfumato.nn import UNetConfig
from sfumato.noise import PRIOR, normal
from sfumato.recipes.digits import digits
from sfumato.samplers import SAMPLERS
from sfumato.testbed import GaussianMixture

SMALL = UNetConfig(channels=8, multipliers=(1,), blocks=1, groups=4)


def one_gaussian(mean: float, std: float, dimension: int = 2) -> GaussianMixture:
    means = torch.full((1, dimension), mean, dtype=torch.float64)
    return GaussianMixture(torch.ones(1), means, std**2 * torch.eye(dimension, dtype=torch.float64)[None])


@pytest.fixture(scope="module")
def judged() -> Judged:
    return Judged(data.load(digits().data), PixelCodec(17))


class TestTrainings:
    def test_a_stopped_training_ends_in_the_same_weights(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trainings, "SAVE_EVERY", 2)
        plan = replace(digits(), network=SMALL, steps=4, batch=4)
        whole = trained_here(Request("flow", tmp_path / "whole"), "x", plan)

        def stop(text: str) -> None:
            if "step 2" in text:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trained_here(Request("flow", tmp_path / "stopped", say=stop), "x", plan)
        said: list[str] = []
        again = trained_here(Request("flow", tmp_path / "stopped", say=said.append), "x", plan)
        assert "going on from step 2" in said[0]
        assert digest(again) == digest(whole)
        other = trained_here(Request("flow", tmp_path / "stopped"), "x", replace(plan, seed=1))
        assert digest(other) != digest(whole)  # another plan is another training

    def test_real_rows_score_as_real(self, judged: Judged) -> None:
        found = judged(judged.held_out["x"], judged.held_out["label"])
        assert found["energy"] == pytest.approx(0, abs=1e-9)
        assert found["agreement"] > 0.98
        assert judged(judged.train["x"][:50], judged.train["label"][:50])["nearest"] == 0
        wrong = judged(judged.held_out["x"], (judged.held_out["label"] + 1) % 10)
        assert wrong["agreement"] < 0.02
        assert trainings.score_cells({"agreement": 0.5, "energy": None, "nearest": 1.0}) == ["50.0%", "-", "1.00"]


class TestAssumptions:
    @pytest.mark.parametrize("schedule", [rooms.rectified(), rooms.cosine(s=0.2), rooms.edm()], ids=lambda s: s.name)
    def test_the_error_by_logsnr_does_not_depend_on_the_path(self, schedule: rooms.Schedule) -> None:
        """Of N(mu, s^2 I) it is Var[x_0 | x_t] = s^2/(1 + s^2 snr)."""
        mixture = one_gaussian(0.3, 0.7)
        found = assumptions.x0_squares(mixture.denoiser(schedule), mixture.sample(4000).float(), {}, 0).mean(1)
        wanted = 0.49 / (1 + 0.49 * torch.tensor(assumptions.LOGSNRS, dtype=torch.float64).exp())
        assert torch.allclose(found, wanted, rtol=0.06)  # 4 standard errors of 8,000 squares

    def test_all_have_the_same_budget(self) -> None:
        plans = {name: assumptions.plan(name, assumptions.FULL, 0) for name in assumptions.ASSUMPTIONS}
        for run in plans.values():
            assert (run.steps, run.batch, run.seed) == (assumptions.FULL.training, assumptions.FULL.batch, 0)
            assert (run.sampling.sampler, run.sampling.steps) == ("ddim", 50)
            assert replace(run.network, time_scale=1.0) == plans["eps"].network
            assert run.optimiser == plans["eps"].optimiser
        assert plans["no-time"] == replace(plans["flow"], time="none")


class TestNll:
    def test_terms_and_prior_sum_to_the_rows(
        self, judged: Judged, saved: Callable[[int], str], request_of: Callable[..., Request]
    ) -> None:
        subject = trained(request_of("nll"))
        size = nll.Size(1, 4, rows=3, ode_rows=2, samples=10, sampled=2, tolerance=0.5)
        found = nll.measure(subject.model, judged, size, seed=0)
        for variance in nll.FIXED:
            whole = found[f"terms-{variance}"].sum() + found[f"prior-{variance}"]
            assert whole.item() == pytest.approx(found[f"rows-{variance}"].mean().item(), rel=1e-9)
        which, rows = nll.best(found)
        assert rows.mean() == min(found[f"rows-{variance}"].mean() for variance in nll.FIXED)
        assert torch.equal(rows, found[f"rows-{which}"])

    def test_a_difference_is_of_the_same_rows(self) -> None:
        rows = torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64)
        scores = {score: torch.tensor([0.5]) for score in nll.SCORES}

        def found(shift: float) -> dict[str, Tensor]:
            return {"rows-learned": rows + shift, "rows-small": rows + shift + 1, "ode": rows, **scores}

        lines = nll._numbers({("linear", "simple"): found(0.0), ("cosine", "vlb"): found(-0.25)}, {}, 2.5)
        assert lines[0][2:4] == ["3.000 ± 0.577 (learned)", "-"]
        assert lines[1][2:4] == ["2.750 ± 0.577 (learned)", "-0.250 ± 0.000"]

    def test_both_schedules_begin_alike(self) -> None:
        for steps in (nll.QUICK.steps, nll.FULL.steps):
            first = [rooms.from_spec(text.format(steps=steps)).betas[0].sqrt() for text in nll.SCHEDULES.values()]  # type: ignore[attr-defined]
            assert max(first) < PixelCodec(17).bin_width
            assert max(first) < 1.1 * min(first)


class TestFlow:
    SIZE = flow.Size(1, 1, 1, 1, steps=(1, 2, 4, 8), fine=400)

    def test_straightness_of_one_gaussian_in_closed_form(self) -> None:
        """x(t) = mu (1 - t) + m(t) x(1), m^2 = ((1 - t) s)^2 + t^2, so that every integral is one of m alone."""
        s, mu = 0.4, 0.5
        x_1 = normal(range(200), (2,), PRIOR).double()
        found = flow.walks(one_gaussian(mu, s).denoiser(rooms.rectified()), x_1, self.SIZE)
        t = (np.arange(100_000) + 0.5) / 100_000
        slope = (t - (1 - t) * s**2) / np.sqrt(((1 - t) * s) ** 2 + t**2)
        second = x_1.square().mean().item()
        assert found.straightness == pytest.approx(second * np.mean((1 - s - slope) ** 2), rel=0.02)
        transport = ((1 - s) * x_1 - mu).square().mean().item()
        assert found.transport == pytest.approx(transport, rel=0.01)
        assert torch.allclose(found.fine[-1], mu + s * x_1, atol=5e-3)
        errors = found.end_errors()
        assert errors == sorted(errors, reverse=True)
        assert found.needed() == next(n for n, e in zip(found.steps, errors, strict=True) if e <= flow.ENOUGH)

    def test_one_point_is_straight(self) -> None:
        x_1 = normal(range(10), (2,), PRIOR).double()
        found = flow.walks(one_gaussian(0.5, 0.0).denoiser(rooms.rectified()), x_1, self.SIZE)
        assert found.straightness < 1e-12
        assert found.end_errors()[0] < 1e-9
        assert found.needed() == 1
        bent = flow.walks(one_gaussian(0.5, 0.0).denoiser(rooms.cosine_continuous()), x_1, self.SIZE)
        assert bent.straightness > 0.05

    def test_the_encoded_ring_is_the_codecs_image_of_it(self) -> None:
        codec = StandardCodec((0.2, -0.1), (0.7, 0.5))
        x = flow.ring().sample(500)
        there = flow.encoded_ring(codec)
        at = codec.encode(x.float()).double()
        assert torch.allclose(there.log_prob(at), flow.ring().log_prob(x) + math.log(0.7 * 0.5), atol=1e-3)

    def test_paths_differ_in_what_they_say(self) -> None:
        of = data.Data("file", path="ring.npz")
        plans = [[flow.plane_plan(p, of, flow.FULL, 0), flow.digits_plan(p, flow.FULL, 0)] for p in flow.PATHS]
        for straight, coupled, bent in zip(*plans, strict=True):
            assert coupled == replace(straight, loss=replace(straight.loss, coupling="ot"))
            assert (straight.schedule, bent.schedule) == ("rectified", "cosine_continuous")
            assert replace(bent, schedule="rectified", target="flow", loss=straight.loss) == straight


class TestReconstruction:
    def test_orders_on_the_mixture_are_the_declared_ones(self) -> None:
        orders = reconstruction.exact_orders(reconstruction.on_the_mixture((16, 32, 64)))
        assert list(orders) == list(reconstruction.WALKS)
        for sampler, (there_and_back, latent) in orders.items():
            assert min(there_and_back, latent) > SAMPLERS[sampler].order - 0.2

    def test_what_is_written_is_what_the_walks_gave(self, request_of: Callable[..., Request]) -> None:
        request = request_of("reconstruction")
        subject = trained(request)
        size = reconstruction.Size(2, (5, 50), (), 1)
        ways = reconstruction.ways(size, subject.model.denoiser.schedule.steps)
        assert {way.steps for way in ways} == {5}  # T = 20
        way = next(way for way in ways if way.sampler == "ddim")
        found = reconstruction.round_trip(request, subject, size, way)
        x_0, labels = subject.held_out(2)
        assert labels is not None
        cond = {"label": labels}
        denoiser = subject.model.in_float32().guided()
        x_1 = samplers.encode(denoiser, x_0, "ddim", 5, way.grid, cond)
        assert torch.equal(found["x_1"], x_1)
        assert torch.equal(found["x_0"], samplers.sample(denoiser, x_1, "ddim", 5, way.grid, cond=cond))
        row = dict(zip(reconstruction.COLUMNS, reconstruction.table(subject, x_0, {way: found})[0], strict=True))
        assert row["error"] == pytest.approx((found["x_0"] - x_0).square().mean().sqrt().item(), rel=1e-5)
        assert row["calls_up"] == 5
        assert 0 <= row["exact_pixels"] <= 1

    def test_both_paths_have_the_same_ends(self, request_of: Callable[..., Request]) -> None:
        request = request_of("reconstruction")
        strip = reconstruction.interpolated(request, trained(request), reconstruction.Size(1, (), (), 2))
        for end in (0, -1):
            assert torch.allclose(strip["slerp"][end], strip["lerp"][end], atol=1e-3)
        assert not torch.allclose(strip["slerp"][5], strip["lerp"][5], atol=1e-2)
