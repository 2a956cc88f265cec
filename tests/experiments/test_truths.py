"""The numbers behind the experiments, against closed forms and independent sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch

from sfumato import gaussian, likelihood
from sfumato import schedules as rooms
from sfumato.experiments import bound_terms, chains, forward_chain, interpolation, progressive, reverse_film, schedules
from sfumato.experiments.chains import Film
from sfumato.experiments.drawings import NAMES, drawings
from sfumato.experiments.figures import LIMIT, figure, gif, png, sheet
from sfumato.experiments.report import Request
from sfumato.experiments.trained import trained
from sfumato.guidance import clip
from sfumato.metrics import NearestNeighbour
from sfumato.noise import BOUND, normal
from sfumato.testbed import Empirical


class TestForwardChain:
    def test_measured_within_the_errors_of_theory(self) -> None:
        schedule = rooms.linear(steps=50)
        x_0 = torch.from_numpy(drawings(32))[0] / 127.5 - 1
        rows, shown = forward_chain.measure(schedule, x_0, forward_chain.Size(64, 32, 10), seed=0)
        assert [row[0] for row in rows] == list(range(5, 51, 5))
        assert shown.shape == (2, len(forward_chain.SHOWN_AT), 1, 32, 32)
        for row in rows:
            named = dict(zip(forward_chain.COLUMNS, row, strict=True))
            alpha_bar = math.prod(1 - b for b in schedule.betas[: named["i"]].tolist())
            assert named["alpha"] ** 2 == pytest.approx(alpha_bar, rel=1e-12)
            assert named["sigma2"] == pytest.approx(1 - alpha_bar, rel=1e-9)
            for name in forward_chain.COLUMNS:
                if name.startswith("z_"):
                    assert abs(named[name]) < 4.5, name

    def test_the_z_scores_have_unit_variance(self) -> None:
        """Over many seeds: what is called an error is one."""
        schedule, found = rooms.linear(steps=10, beta_end=0.005), []
        for seed in range(60):
            x_0 = torch.linspace(-1, 1, 64).reshape(8, 8)
            rows, _ = forward_chain.measure(schedule, x_0, forward_chain.Size(16, 8, 1), seed)
            found.append(
                [rows[-1][forward_chain.COLUMNS.index(n)] for n in forward_chain.COLUMNS if n.startswith("z_")]
            )
        spread = np.array(found).std(0)
        assert np.all((spread > 0.7) & (spread < 1.35))


class TestSchedules:
    @pytest.mark.parametrize("name", schedules.NAMES)
    def test_terminal_alpha_bar_is_the_papers_product(self, name: str) -> None:
        mpmath.mp.dps = 40
        steps, first, last = 1000, mpmath.mpf("1e-4"), mpmath.mpf("0.02")
        ramp = [mpmath.mpf(i) / (steps - 1) for i in range(steps)]
        angles = [(mpmath.mpf(i) / steps + mpmath.mpf("0.008")) / mpmath.mpf("1.008") for i in range(steps + 1)]
        f = [mpmath.cos(angle * mpmath.pi / 2) ** 2 for angle in angles]
        betas = {
            "linear": [first + r * (last - first) for r in ramp],
            "quadratic": [(mpmath.sqrt(first) + r * (mpmath.sqrt(last) - mpmath.sqrt(first))) ** 2 for r in ramp],
            "sigmoid": [(last - first) / (1 + mpmath.exp(6 - 12 * r)) + first for r in ramp],
            "cosine": [min(1 - f[i + 1] / f[i], mpmath.mpf("0.999")) for i in range(steps)],
        }[name]
        wanted = mpmath.fprod(1 - b for b in betas)
        rows = schedules.table(name, rooms.SCHEDULES[name](), schedules.Size(1), 0.0, 0.0)
        named = [dict(zip(schedules.COLUMNS, row, strict=True)) for row in rows]
        assert named[0]["terminal_alpha_bar"] == pytest.approx(float(wanted), rel=1e-9)
        assert named[-1]["alpha_bar"] == named[-1]["terminal_alpha_bar"]
        assert [row["i"] for row in named] == [1, *range(10, 1001, 10)]
        for row in named:
            assert row["beta"] == pytest.approx(float(betas[row["i"] - 1]), rel=1e-9)
            assert row["logsnr"] == pytest.approx(math.log(row["alpha_bar"] / (1 - row["alpha_bar"])), rel=1e-6)

    def test_a_cost_is_a_time(self) -> None:
        build_ms, call_us = schedules.cost("linear", schedules.Size(3, steps=50))
        assert 1e-3 < build_ms < 1e3
        assert 1e-1 < call_us < 1e5


class TestBoundTerms:
    def test_terms_sum_to_the_likelihood(self, request_of: Callable[..., Request]) -> None:
        request = request_of("bound-terms")
        subject = trained(request)
        terms = bound_terms.measure(request, subject, bound_terms.Size(5, block=2))
        x_0, labels = subject.held_out(5)
        assert labels is not None
        whole = likelihood.bits_per_dim(
            subject.model.in_float32().guided(),
            x_0,
            bin_width=2 / 16,
            cond={"label": labels},
            draws=None,
            seed=request.seed,
        )
        assert terms.total == pytest.approx(whole.total, rel=1e-5)
        assert terms.standard_error == pytest.approx(whole.standard_error, rel=1e-4)
        rows = bound_terms.table(subject.model.denoiser.schedule, terms)
        bits = {row[0]: row[bound_terms.COLUMNS.index("bits_per_dim")] for row in rows}
        assert list(bits) == [*(f"L_{i}" for i in range(21)), "sum"]
        assert sum(value for term, value in bits.items() if term != "sum") == pytest.approx(bits["sum"], rel=1e-9)
        assert bits["L_20"] == pytest.approx(whole.prior, rel=1e-9)
        assert bits["L_0"] == pytest.approx(whole.decoder, rel=1e-5)

    def test_lambda_turns_errors_into_terms(self, request_of: Callable[..., Request]) -> None:
        """The measured squared error of x_0 at one step is what lambda_t makes of the term."""
        request = request_of("bound-terms")
        subject = trained(request)
        terms = bound_terms.measure(request, subject, bound_terms.Size(4, block=4))
        schedule = subject.model.denoiser.schedule
        rows = bound_terms.table(schedule, terms)
        x_0, labels = subject.held_out(4)
        for i in (2, 9, 20):
            t = torch.full((4,), i / 20, dtype=torch.float64)
            eps = normal([bound_terms.SPREAD * n for n in range(4)], x_0.shape[1:], BOUND, i)
            with torch.no_grad():
                x0 = (
                    subject.model.in_float32()
                    .guided()(gaussian.perturb(schedule, x_0, t, eps), t, {"label": labels})
                    .x0
                )
            named = dict(zip(bound_terms.COLUMNS, rows[i - 1], strict=True))
            assert named["x0_squared_error"] == pytest.approx((x0 - x_0).square().mean().item(), rel=1e-4)
            beta, alpha_bar = schedule.betas[i - 1], schedule.alphas_cumprod[i - 1]
            before = schedule.alphas_cumprod[i - 2]
            published = beta**2 / (2 * beta * (1 - before) / (1 - alpha_bar) * (1 - beta) * (1 - alpha_bar))
            assert named["lambda_eps"] == pytest.approx(published.item(), rel=1e-9)  # DDPM, eq. (12)


class TestProgressive:
    def test_distances_of_a_known_film(self) -> None:
        end = torch.tensor([[1.0, 1.0], [0.0, 0.0], [3.0, 3.0]])
        x0 = torch.stack([torch.zeros(3, 2), end])
        film = Film(torch.tensor([1.0, 0.0], dtype=torch.float64), x0, x0)
        rows = progressive.table(rooms.cosine(steps=10), film, torch.tensor([0, 0, 1]))
        assert [row[0] for row in rows] == [0, 10]
        assert rows[0][3] == 0
        assert rows[0][4] == pytest.approx(math.sqrt(4 * 0.25 / 6))  # rows 0 and 1 lie 0.5 off their mean, row 2 on it
        assert rows[1][3] == pytest.approx(math.sqrt((2 + 18) / 6))
        assert rows[1][4] == 0

    def test_the_film_ends_in_the_models_samples(self, request_of: Callable[..., Request]) -> None:
        request = request_of("progressive")
        subject = trained(request)
        film, steps = progressive.walk(request, subject, progressive.Size(12, 1000, frames=4, block=5))
        assert steps == 20  # the model's own T
        assert film.t.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
        samples = subject.model.sample(12, sampler="ancestral", steps=20, seed=request.seed)
        assert torch.equal(subject.model.codec.decode(film.x[-1]), samples)


class TestInterpolation:
    def test_at_t_0_pixels_are_mixed_and_at_t_1_nothing_is_left(self, request_of: Callable[..., Request]) -> None:
        request = request_of("interpolation")
        subject = trained(request)
        ends, mixed = interpolation.mixtures(request, subject, interpolation.Size(2, 4))
        x, _ = subject.held_out(4)
        assert torch.equal(ends, torch.stack([x[0::2], x[1::2]]))
        near = NearestNeighbour(subject.training_rows())
        rows = [
            dict(zip(interpolation.COLUMNS, row, strict=True))
            for row in interpolation.table(subject, ends, mixed, near)
        ]
        assert len(rows) == 2 * len(interpolation.TIMES) * len(interpolation.LAMBDAS)
        apart = (ends[0] - ends[1]).square().mean().sqrt().item()
        for row in rows:
            if row["t"] == 0:
                assert row["rms_to_first"] == pytest.approx(row["lambda"] * apart, abs=1e-6)
                assert row["rms_to_second"] == pytest.approx((1 - row["lambda"]) * apart, abs=1e-6)
        same, two = mixed["same"], mixed["two"]
        moved = [(x[-1] - x[-1, :1]).abs().mean().item() for x in (same, two)]
        assert moved[0] < 0.02  # of the pictures T = 20 leaves 0.3 % at t = 1
        assert moved[1] > 2 * moved[0]  # and the noises differ
        assert torch.equal(same[:, 0], two[:, 0])  # lambda = 0 knows only the first noise
        assert not torch.equal(same[4, -1], two[4, -1])

    def test_a_small_t_changes_little(self, request_of: Callable[..., Request]) -> None:
        """With the exact denoiser of its two ends, lambda = 0 at small t comes back to the first."""
        subject = trained(request_of("interpolation"))
        x, _ = subject.held_out(2)
        exact = clip(Empirical(x).denoiser(subject.model.denoiser.schedule))
        object.__setattr__(subject.model, "guided", lambda: exact)
        ends = torch.stack([x[:1], x[1:]])
        back = interpolation._decode(subject, ends, "two", 0.25, interpolation.Size(1, 20), seed=0)["x"]
        assert torch.allclose(back[0, 0], x[0], atol=1e-4)
        assert torch.allclose(back[-1, 0], x[1], atol=1e-4)


class TestReverseFilm:
    SIZE = reverse_film.Size(training=1, steps=50, samples=6, pixels=16, frames=10)

    def test_the_exact_denoiser_ends_on_the_drawings(self) -> None:
        x_0 = torch.from_numpy(drawings(16))[:, None] / 127.5 - 1
        schedule = rooms.cosine()
        exact = Empirical(x_0).denoiser(schedule)
        film = reverse_film.reverse(clip(exact), self.SIZE, seed=0)
        far, which = reverse_film.distances(film, x_0).min(1)
        assert far.max() < 1e-5
        assert len(set(which.tolist())) > 1
        begun = reverse_film.forward(schedule, x_0, 50, self.SIZE, seed=0)
        assert begun.t.tolist() == film.t.flip(0).tolist()
        assert reverse_film.x0_error(exact, exact, begun).max() == 0
        picked = Film(film.t, film.x[:, :3])
        rows = reverse_film.table("exact", NAMES, schedule, reverse_film.Pair(begun, picked), None)
        assert len(rows) == 3 * 10
        for row in rows:
            named = dict(zip(reverse_film.COLUMNS, row, strict=True))
            error = named["sigma"] / math.sqrt(2 * 16 * 16)  # of a root mean square of 256 Gaussians
            assert abs(named["noise_forward"] - named["sigma"]) < 4.5 * error
            assert abs(named["noise_reverse"] - named["sigma"]) < 4.5 * error


class TestChains:
    def test_frames_hold_both_ends(self) -> None:
        assert chains.frame_numbers(10, 4) == [0, 2, 5, 8, 10]
        assert chains.frame_numbers(3, 50) == [0, 1, 2, 3]

    def test_index_counts_a_continuous_schedule_in_thousands(self) -> None:
        assert chains.index(rooms.cosine(steps=20), 0.25) == 5
        assert chains.index(rooms.rectified(), 0.25) == 250


class TestPictures:
    def test_drawings_are_grey_pictures_of_any_size(self) -> None:
        for size in (16, 32, 64):
            made = drawings(size)
            assert made.shape == (3, size, size)
            assert made.dtype == np.uint8
            assert all(len(np.unique(picture)) > size / 2 for picture in made)
        shrunk = drawings(64).reshape(3, 32, 2, 32, 2).mean((2, 4))
        assert np.abs(shrunk - drawings(32)).mean() < 2  # the same shapes at every size

    def test_a_sheet_keeps_every_pixel_in_its_place(self) -> None:
        x = torch.linspace(-1, 1, 2 * 3 * 4 * 5).reshape(2, 3, 1, 4, 5)
        made = sheet(x, 2)
        assert made.shape == (2 * 6 - 2, 3 * 7 - 2, 1)
        for r in range(2):
            for k in range(3):
                tile = made[r * 6 : r * 6 + 4, k * 7 : k * 7 + 5, 0]
                assert np.abs(tile / 127.5 - 1 - x[r, k, 0].numpy()).max() < 1 / 250
        assert np.all(made[4:6] == 255)

    def test_noise_is_made_to_fit(self, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (700, 700), dtype=np.uint8)
        drawn = figure(7, 7)
        drawn.subplots().imshow(noise, cmap="gray", interpolation="nearest")
        assert len(png(drawn)) < LIMIT
        assert len(gif([noise[:150, :200]] * 3 + [noise[150:300, :200]] * 3)) < LIMIT
