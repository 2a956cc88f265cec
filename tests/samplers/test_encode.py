"""The way up: encode and sample undo each other, on data whose latents are known; and paths between latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato import samplers, schedules
from sfumato.denoiser import Cond, Denoiser, NetworkDenoiser, Prediction, from_x0
from sfumato.grids import GRIDS, pairs
from sfumato.nn import MLP, Conditions, MLPConfig
from sfumato.samplers import SAMPLERS, ddim, lerp, slerp
from sfumato.samplers.loop import Sampler
from sfumato.samplers.refused import why
from sfumato.schedules import Schedule
from sfumato.testbed import GaussianMixture

UP = torch.tensor([0.0, 1.0])


def upward(schedule: str) -> list[str]:
    """The rows that are not refused on the way up."""
    return [name for name in SAMPLERS if not why(name, SAMPLERS, schedules.from_spec(schedule), UP)]


def there_and_back(denoiser: Denoiser, x_0: Tensor, sampler: str, steps: int, grid: str) -> float:
    """The root mean square error of the reconstruction."""
    z = samplers.encode(denoiser, x_0, sampler, steps, grid)
    assert z.shape == x_0.shape
    assert z.dtype == x_0.dtype
    return float((samplers.sample(denoiser, z, sampler, steps, grid) - x_0).square().mean().sqrt())


ROUNDS = [("linear_continuous", "logsnr"), ("rectified", "trailing")]


@pytest.mark.parametrize(("sampler", "schedule", "grid"), [(n, *r) for r in ROUNDS for n in upward(r[0])])
def test_there_and_back(sampler: str, schedule: str, grid: str, mixture_2d: GaussianMixture) -> None:
    denoiser, x_0 = mixture_2d.denoiser(schedules.from_spec(schedule)), mixture_2d.sample(16, seed=1)
    row, steps = SAMPLERS[sampler], (12, 48)
    if row.calls is None:
        assert there_and_back(denoiser, x_0, sampler, 1, grid) < 5e-6  # tolerance=1e-5
        return
    errors = [there_and_back(denoiser, x_0, sampler, s, grid) for s in steps]
    assert errors[1] < 0.15
    assert errors[1] < errors[0] / 3
    if (schedule, grid) == ROUNDS[0]:  # where the steps at both ends are finite in logsnr
        assert math.log(errors[0] / errors[1]) / math.log(steps[1] / steps[0]) > min(row.order, 2) - 0.2


KNOWN = ["rectified", "zero_terminal", "edm"]


@pytest.mark.parametrize(("schedule", "sampler"), [(name, each) for name in KNOWN for each in upward(name)])
def test_latents_of_a_gaussian_are_known(schedule: str, sampler: str, gaussian_2d: GaussianMixture) -> None:
    """x_1 = alpha mu + (alpha^2 S + sigma^2)^(1/2) S^(-1/2) (x_0 - mu), alpha and sigma at t = 1."""
    made, x_0 = schedules.from_spec(schedule), gaussian_2d.sample(16, seed=2)
    alpha, sigma = float(made.alpha(torch.ones(1))), float(made.sigma(torch.ones(1)))
    mean, (values, axes) = gaussian_2d.means[0], torch.linalg.eigh(gaussian_2d.covariances[0])
    root = axes @ torch.diag(((alpha**2 * values + sigma**2) / values).sqrt()) @ axes.T
    truth = alpha * mean + (x_0 - mean) @ root
    z = samplers.encode(gaussian_2d.denoiser(made), x_0, sampler, 40, "karras")
    off = float((z - truth).square().mean().sqrt()) / made.prior_std
    row = SAMPLERS[sampler]
    assert off < (1e-5 if row.calls is None else 0.06 if row.order == 1 else 0.01)


class Labels(Denoiser):
    """x_0 ~ N(label, 0.5^2), and what it was asked."""

    def __init__(self, schedule: Schedule):
        self.schedule, self.null_cond, self.asked = schedule, {}, []  # type: ignore[var-annotated]

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        assert not torch.is_grad_enabled()
        self.asked.append((float(t[0]), x_t))
        mean = (cond or {}).get("label", torch.zeros(len(x_t)))[:, None].to(x_t)
        alpha, sigma = (c(t)[:, None].to(x_t) for c in (self.schedule.alpha, self.schedule.sigma))
        gain = 0.25 * alpha / (0.25 * alpha**2 + sigma**2)
        return from_x0(self.schedule, x_t, t, mean + gain * (x_t - alpha * mean))


BOTH_WAYS = ["zero_terminal:steps=40", "rectified", "edm"]


@pytest.mark.parametrize("schedule", BOTH_WAYS)
@pytest.mark.parametrize("sampler", [name for name, row in SAMPLERS.items() if not row.stochastic])
def test_every_grid_is_walked_both_ways(sampler: str, schedule: str) -> None:
    """By every deterministic row, from a first step to a last; there and back the pairs are the same, turned round."""
    if sampler not in upward(schedule):
        return
    denoiser, x = Labels(schedules.from_spec(schedule)), torch.tensor([[0.4, -0.3], [-1.1, 0.0]])
    whole = SAMPLERS[sampler].calls is None
    for grid, steps in product(["trailing"] if whole else GRIDS, [1] if whole else [1, 4]):
        times = GRIDS[grid](denoiser.schedule, steps)
        assert pairs(times.flip(0)) == [(s, t) for t, s in reversed(pairs(times))]
        z = samplers.encode(denoiser, x, sampler, steps, grid)
        assert z.shape == x.shape
        assert z.dtype == x.dtype
        assert bool(z.isfinite().all())
        assert bool(samplers.sample(denoiser, z, sampler, steps, grid).isfinite().all())


@pytest.mark.parametrize("sampler", upward("rectified"))
def test_a_network_that_is_told_everything_is_asked_upwards(sampler: str) -> None:
    torch.manual_seed(0)
    net = MLP(MLPConfig(width=8, depth=1), (2,), Conditions(classes=3, span=1))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    denoiser = NetworkDenoiser(net, schedules.rectified(), target="v", time="unit")
    z = samplers.encode(denoiser, torch.ones(2, 2), sampler, 3, cond={"label": torch.tensor([0, 2])})
    assert bool(z.isfinite().all())


@pytest.mark.parametrize("sampler", [name for name, row in SAMPLERS.items() if row.stochastic])
def test_stochastic_rows_do_not_encode(sampler: str) -> None:
    with pytest.raises(ValueError, match=f"sampler '{sampler}' with schedule 'rectified' is refused: .*; take a deter"):
        samplers.encode(Labels(schedules.rectified()), torch.zeros(2, 2), sampler)


@pytest.mark.parametrize("sampler", ["ddim:eta=0.5", "heun:churn=10", partial(ddim, eta=1.0)])
def test_options_that_add_noise_do_not_encode(sampler: str | Sampler) -> None:
    with pytest.raises(ValueError, match="noise"):
        samplers.encode(Labels(schedules.cosine(50)), torch.zeros(2, 2), sampler, 10)


def test_mistakes_are_answered() -> None:
    denoiser, x = Labels(schedules.rectified()), torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"unknown sampler 'dimm'; did you mean 'ddim'"):
        samplers.encode(denoiser, x, "dimm")
    with pytest.raises(ValueError, match="steps must be a whole number"):
        samplers.encode(denoiser, x, steps=0)


@pytest.mark.parametrize("sampler", ["euler", samplers.euler])
def test_the_first_step_asks_of_the_picture_without_noise(sampler: str | Sampler) -> None:
    """x at t_1 is alpha_1 x_0 + sigma_1 eps(alpha_1 x_0, t_1), and from there on the sampler walks."""
    schedule, x = schedules.cosine(50), torch.tensor([[0.4, -0.3], [-1.1, 0.0]])
    denoiser, cond = Labels(schedule), {"label": torch.tensor([1.0, -2.0])}
    samplers.encode(denoiser, x, sampler, 5, cond=cond)
    assert [round(t * 50) for t, _ in denoiser.asked] == [10, 10, 20, 30, 40]
    (t, first), (_, second) = denoiser.asked[:2]
    alpha, sigma = (float(c(torch.tensor(t, dtype=torch.float64))) for c in (schedule.alpha, schedule.sigma))
    torch.testing.assert_close(first, alpha * x)
    with torch.no_grad():
        eps = denoiser(first, torch.full((2,), t, dtype=torch.float64), cond).eps
    torch.testing.assert_close(second, alpha * x + sigma * eps)


def test_one_step_up_and_down() -> None:
    """It is (1) alone, and grad stays as it was."""
    denoiser, x = Labels(schedules.cosine(50)), torch.tensor([[0.4, -0.3]])
    z = samplers.encode(denoiser, x, steps=1)
    assert torch.is_grad_enabled()
    assert len(denoiser.asked) == 1
    alpha, sigma = (float(c(torch.ones(1))) for c in (denoiser.schedule.alpha, denoiser.schedule.sigma))
    gain = 0.25 * alpha / (0.25 * alpha**2 + sigma**2)
    torch.testing.assert_close(z, alpha * x + alpha * x * (1 - alpha * gain))


# ---- paths in the space of latents


def by_numpy(a: np.ndarray, b: np.ndarray, w: float) -> np.ndarray:
    """sin((1 - w) o)/sin o a + sin(w o)/sin o b for one row."""
    o = np.arccos(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))
    return (np.sin((1 - w) * o) * a + np.sin(w * o) * b) / np.sin(o)


def latents(rows: int = 5, shape: Sequence[int] = (2, 3, 4)) -> tuple[Tensor, Tensor]:
    a, b = torch.randn(2, rows, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return a, b


@pytest.mark.parametrize("w", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_slerp_is_the_formula_on_a_sphere(w: float) -> None:
    a, b = latents()
    norm = a.flatten(1).norm(dim=1)
    b = b * (norm / b.flatten(1).norm(dim=1))[:, None, None, None]
    c = slerp(a, b, w)
    for row in range(len(a)):
        truth = by_numpy(a[row].flatten().numpy(), b[row].flatten().numpy(), w)
        np.testing.assert_allclose(c[row].flatten().numpy(), truth, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(c.flatten(1).norm(dim=1), norm)


def test_slerp_goes_at_an_even_pace_and_changes_its_radius_evenly() -> None:
    """Equal angles for equal w, each row from its own radius to its own."""
    a, b = latents()
    b = 3 * b
    ways = torch.stack([slerp(a, b, w) for w in np.linspace(0, 1, 9)]).flatten(2)
    norm = ways.norm(dim=2)
    torch.testing.assert_close(norm, torch.lerp(norm[0], norm[-1], torch.linspace(0, 1, 9).double()[:, None]))
    unit = ways / norm[..., None]
    cosines = (unit[1:] * unit[:-1]).sum(2)
    torch.testing.assert_close(cosines, cosines[:1].expand_as(cosines))
    torch.testing.assert_close(ways[0], a.flatten(1))
    torch.testing.assert_close(ways[-1], b.flatten(1))


def test_slerp_of_rows_on_one_line() -> None:
    """Alike, nearly alike, of other length, and opposite: no NaN, the ends are the ends, and alike stays alike."""
    a = latents()[0][:1].expand(4, 2, 3, 4)
    b = a * torch.tensor([1.0, 1 + 1e-12, 2.0, -1.0])[:, None, None, None].double()
    for w in (0.0, 0.3, 0.5, 1.0):
        c = slerp(a, b, w)
        assert bool(c.isfinite().all())
        torch.testing.assert_close(c[:3], torch.lerp(a, b, w)[:3], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    near = b + 1e-10 * latents()[1][:1]
    assert bool(slerp(a, near, 0.5).isfinite().all())


def test_a_row_of_slerp_is_its_own_and_keeps_its_dtype() -> None:
    a, b = (each.float() for each in latents())
    whole = slerp(a, b, 0.3)
    assert whole.dtype == torch.float32
    assert whole.shape == a.shape
    for row in range(len(a)):
        assert torch.equal(slerp(a[row : row + 1], b[row : row + 1], 0.3)[0], whole[row])


def test_lerp_is_straight_and_leaves_the_sphere() -> None:
    """Half way between latents at right angles it is shorter by sqrt(2); slerp is not."""
    a, b = latents()
    for w in (0.0, 0.25, 1.0):
        torch.testing.assert_close(lerp(a, b, w), (1 - w) * a + w * b)
    a, b = torch.eye(6)[None, :3] * math.sqrt(6), torch.eye(6)[None, 3:] * math.sqrt(6)
    assert float(lerp(a, b, 0.5).norm() / a.norm()) == pytest.approx(math.sqrt(0.5))
    assert float(slerp(a, b, 0.5).norm() / a.norm()) == pytest.approx(1)


@torch.no_grad()
def test_the_path_between_latents_decodes_to_a_path_of_data() -> None:
    """For N(0, I) data the latent is x_0 itself, so slerp of latents decodes to slerp of data."""
    data = GaussianMixture(torch.ones(1), torch.zeros(1, 8), torch.eye(8)[None])
    denoiser, (a, b) = data.denoiser(schedules.rectified()), latents(3, (8,))
    z_a, z_b = (samplers.encode(denoiser, each, "heun", 40) for each in (a, b))
    z = slerp(z_a, z_b, 0.4)
    torch.testing.assert_close(samplers.sample(denoiser, z, "heun", 40), slerp(a, b, 0.4), rtol=0, atol=0.02)
