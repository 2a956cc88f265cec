"""Log-likelihood by the ODE against the mixtures' own densities, and its bits/dim against sums over bins."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sfumato
from sfumato import codecs, data, schedules
from sfumato.corruptions import Blurring
from sfumato.degradations import dct
from sfumato.denoiser import Cond, Denoiser, NetworkDenoiser, Prediction
from sfumato.likelihood import bits_per_dim, bits_per_dim_flow, flow, log_likelihood
from sfumato.testbed import GaussianMixture


def thin() -> GaussianMixture:
    """Two Gaussians, turned against each other, with eigenvalues down to 0.01."""
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    covariances = torch.stack([turn @ torch.diag(torch.tensor([0.01, 0.5])) @ turn.T, 0.01 * torch.eye(2)])
    return GaussianMixture(torch.tensor([0.6, 0.4]), torch.tensor([[1.0, 0.3], [-0.7, -0.5]]), covariances)


@pytest.mark.parametrize("name", ["linear", "cosine_continuous", "edm"])
def test_log_likelihood_of_a_mixture(name: str) -> None:
    """Within 1e-4 nats (asked for) if the prior is the mixture's own density at t = 1; N(0, I) errs as printed."""
    mixture, schedule = thin(), schedules.from_spec(name)
    x, one = mixture.sample(16, seed=2), torch.ones(1, dtype=torch.float64)
    denoiser, truth = mixture.denoiser(schedule), mixture.log_prob(x)
    found = log_likelihood(denoiser, x, prior=lambda x_1: mixture.log_prob_at(x_1, one, schedule), tolerance=1e-4)
    usual = log_likelihood(denoiser, x, tolerance=1e-4)
    errors = [float((value - truth).abs().max()) for value in (found, usual)]
    print(f"{name}: {errors[0]:.1e} nats with the mixture's prior, {errors[1]:.1e} with the usual normal one")
    assert errors[0] < 1e-4
    assert errors[1] < 0.02
    assert found.shape == (16,)


def test_a_schedule_of_many_angles() -> None:
    """Blurring: for independent coefficients the flow is linear, and its density the data's own."""
    schedule = Blurring(height=2, width=3, sigma_blur_max=2.0)
    spread = torch.linspace(0.05, 1, 6, dtype=torch.float64).reshape(1, 2, 3)

    class Coefficients(Denoiser):
        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
            alpha, sigma = schedule.alpha(t), schedule.sigma(t)
            off = x_t / (alpha.square() * spread + sigma.square())
            return Prediction(alpha * spread * off, sigma * off)

    x = spread.sqrt() * torch.randn(4, 1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    truth = -0.5 * (x.square() / spread + spread.log() + math.log(2 * math.pi)).flatten(1).sum(1)
    torch.testing.assert_close(log_likelihood(Coefficients(), x, tolerance=1e-5), truth, rtol=0, atol=1e-4)


def test_hutchinson_has_no_bias() -> None:
    """The same row 600 times, each with probes of its own; more probes, less spread."""
    mixture = thin()
    denoiser, x = mixture.denoiser(schedules.rectified()), torch.tensor([[0.6, 0.1]], dtype=torch.float64)
    truth, rows = float(mixture.log_prob(x)), x.repeat(600, 1)
    spreads = []
    for probes in (1, 4):
        found = log_likelihood(denoiser, rows, tolerance=1e-3, divergence="hutchinson", probes=probes, batch=600)
        spreads.append(float(found.std()))
        assert abs(float(found.mean()) - truth) < 4 * spreads[-1] / math.sqrt(600)
    assert 1.5 < spreads[0] / spreads[1] < 2.7


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        assert cond is not None
        return self.body(x) * (1 + cond["scale"] * t)[:, None, None, None]


def test_a_network_row_by_row_whatever_mode_it_is_called_in() -> None:
    torch.manual_seed(0)
    net = Tiny()
    denoiser = NetworkDenoiser(net, schedules.cosine(100), target="v", time="unit")
    x, cond = torch.randn(5, 1, 6, 6), {"scale": torch.linspace(-1, 1, 5)}

    def found(rows: slice, batch: int, seed: int = 0) -> Tensor:
        return log_likelihood(
            denoiser, x[rows], cond={"scale": cond["scale"][rows]}, tolerance=1e-2, batch=batch, seed=seed
        )

    every = found(slice(5), 5)
    assert every.dtype == torch.float64
    torch.testing.assert_close(found(slice(5), 2), every, rtol=0, atol=1e-3)
    torch.testing.assert_close(found(slice(2), 2), every[:2], rtol=0, atol=1e-3)
    assert float((found(slice(5), 5, seed=1) - every).abs().min()) > 1e-3  # other probes
    with torch.inference_mode():
        torch.testing.assert_close(found(slice(5), 5), every, rtol=0, atol=1e-3)
    assert all(p.grad is None for p in net.parameters())


def _no_grad(x: Tensor, body: nn.Module) -> Tensor:
    with torch.no_grad():
        return body(x)


def _in_place(x: Tensor, body: nn.Module) -> Tensor:
    y = body(x).exp()
    return y.mul_(2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (_no_grad, r"gradient of the denoiser's answer by x \(.*\) is not its slope"),
        (_in_place, r"cannot be differentiated by x \(one of the variables needed.*inplace"),
        (lambda x, body: body(x.detach()), "is not its slope"),
        (lambda x, body: body(x.detach() + 0.5 * (x - x.detach())), "is not its slope"),
    ],
)
def test_a_denoiser_without_its_gradient_is_refused(wrong: Callable[[Tensor, nn.Module], Tensor], message: str) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 6))
    for right, told in ((lambda x, body: body(x), None), (wrong, message)):
        net = lambda x, t, cond, right=right: right(x, body)  # noqa: E731
        denoiser = NetworkDenoiser(net, schedules.rectified(), target="v", time="unit")
        if told is None:
            log_likelihood(denoiser, torch.randn(3, 6), tolerance=0.1)
        else:
            with pytest.raises(ValueError, match=told):
                log_likelihood(denoiser, torch.randn(3, 6), tolerance=0.1)


def test_an_answer_apart_from_x_is_refused() -> None:
    class Apart(Denoiser):
        schedule = schedules.rectified()

        def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
            return Prediction(torch.zeros_like(x_t), x_t.detach())

    with pytest.raises(ValueError, match=r"cannot be differentiated by x \(element 0 of tensors does not require grad"):
        log_likelihood(Apart(), torch.randn(3, 6))


# A mixture on a plane, seen only by the cell of a grid in which a point lies: every probability is a known integral.
WIDTH = 0.25
PLANE = GaussianMixture(
    torch.tensor([0.6, 0.4]),
    torch.tensor([[0.5, 0.2], [-0.6, -0.3]]),
    torch.tensor([[[0.05, 0.02], [0.02, 0.03]], [[0.02, 0.0], [0.0, 0.08]]]),
)


def cells() -> tuple[Tensor, Tensor, Tensor]:
    """Centres (N, 2) of the cells that matter, their probabilities, and E_u log p(x + u), by Gauss-Legendre."""
    axis = torch.arange(-10, 11, dtype=torch.float64) * WIDTH
    centres = torch.cartesian_prod(axis, axis)
    z, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(12))
    offsets, mass = torch.cartesian_prod(z, z) * WIDTH / 2, torch.cartesian_prod(w, w).prod(1) / 4
    log_p = PLANE.log_prob((centres[:, None] + offsets).reshape(-1, 2)).reshape(len(centres), -1)
    probability = (log_p.exp() * mass).sum(1) * WIDTH**2
    assert float(probability.sum()) == pytest.approx(1, abs=1e-6)
    keep = probability > 1e-5
    return centres[keep], probability[keep] / probability[keep].sum(), (log_p * mass).sum(1)[keep]


def test_bits_of_levels_are_the_dequantised_density_and_a_bound() -> None:
    """Above the exact bits of the cells by the gap of uniform dequantisation, which quadrature knows."""
    centres, probability, inside = cells()
    exact = float(-(probability * probability.log2()).sum()) / 2
    gap = float(-(probability * inside).sum()) / (2 * math.log(2)) - math.log2(WIDTH) - exact
    x_0 = centres.repeat(8, 1)
    found = bits_per_dim_flow(
        PLANE.denoiser(schedules.rectified()), x_0, bin_width=WIDTH, draws=2, seed=3, batch=len(x_0)
    )
    noisy = [x_0 + WIDTH * flow._uniform(len(x_0), x_0.shape[1:], 3, draw) for draw in range(2)]
    density = torch.stack([PLANE.log_prob(x) for x in noisy]).mean(0)
    torch.testing.assert_close(found.rows, -density / (2 * math.log(2)) - math.log2(WIDTH), rtol=0, atol=1e-3)

    each = found.rows.reshape(8, -1)
    total = float((probability * each.mean(0)).sum())
    error = float((probability * each.std(0) / math.sqrt(8)).square().sum().sqrt())
    print(f"exact {exact:.4f}, gap by quadrature {gap:.4f}, found {total - exact:.4f} +- {error:.4f}")
    assert gap > 4 * error
    assert abs(total - exact - gap) < 4 * error
    assert found.total == pytest.approx(float(found.rows.mean()))
    assert found.standard_error == pytest.approx(float(found.rows.std()) / math.sqrt(len(x_0)))
    assert found.calls >= 2 * 50


def test_bits_of_data_without_levels() -> None:
    x = PLANE.sample(6, seed=1)
    found = bits_per_dim_flow(PLANE.denoiser(schedules.rectified()), x, bin_width=None, draws=9)
    torch.testing.assert_close(found.rows, -PLANE.log_prob(x) / (2 * math.log(2)), rtol=0, atol=1e-4)


def test_levels_behind_an_orthonormal_transform() -> None:
    """Pixels behind a DCT: noise is spread over the pixel's bin, whatever axes the denoiser has."""
    codec = codecs.DCTCodec(levels=5)
    pixels = torch.tensor([[[[0, 3], [1, 4]]], [[[2, 2], [0, 1]]]], dtype=torch.uint8)
    centres = codec.pixels.encode(pixels).double()
    plain = GaussianMixture(torch.ones(1), torch.zeros(1, 4), 0.3 * torch.eye(4)[None] + 0.1)
    turn = torch.stack([dct(e.reshape(1, 1, 2, 2)).flatten() for e in torch.eye(4, dtype=torch.float64)], 1)
    turned = GaussianMixture(torch.ones(1), torch.zeros(1, 4), (turn @ plain.covariances[0] @ turn.T)[None])
    schedule, shape, width = schedules.rectified(), (1, 2, 2), codec.pixels.bin_width
    straight = bits_per_dim_flow(plain.denoiser(schedule, shape), centres, bin_width=width)
    behind = bits_per_dim_flow(turned.denoiser(schedule, shape), centres, bin_width=width, encode=dct)
    torch.testing.assert_close(behind.rows, straight.rows, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_digits_by_the_flow_and_by_the_bound() -> None:
    """Held-out digits, given their labels: both bound the same quantity, and the flow's is no worse."""
    model = sfumato.load("digits")
    held_out = data.load(data.Data("digits")).held_out.take(np.arange(16))  # type: ignore[union-attr]
    x_0, cond = model.codec.encode(held_out["x"]), {"label": held_out["label"]}
    width = model.codec.bin_width
    flow = bits_per_dim_flow(model.denoiser, x_0, bin_width=width, cond=cond, tolerance=1e-2)
    bound = bits_per_dim(model.denoiser, x_0, bin_width=width, cond=cond, draws=40)
    apart = flow.rows - bound.rows
    error = float(apart.std()) / math.sqrt(len(x_0))
    print(
        f"flow {flow.total:.3f} +- {flow.standard_error:.3f} ({flow.calls} calls), bound {bound.total:.3f} +- "
        f"{bound.standard_error:.3f}, apart {float(apart.mean()):.3f} +- {error:.3f}"
    )
    assert float(apart.mean()) < 4 * error
    assert abs(flow.total - bound.total) < 0.2
    assert 1.5 < flow.total < 3


def test_mistakes() -> None:
    denoiser, x = PLANE.denoiser(schedules.rectified()), torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"unknown divergence 'exakt'; did you mean 'exact'"):
        log_likelihood(denoiser, x, divergence="exakt")
    with pytest.raises(ValueError, match=r"x must be rows of floating point numbers; got torch.uint8 \(2, 2\)"):
        log_likelihood(denoiser, x.byte())
    with pytest.raises(ValueError, match="x must be rows"):
        log_likelihood(denoiser, x[:0])
    for option in ("probes", "batch"):
        with pytest.raises(ValueError, match=rf"{option} must be a whole number"):
            log_likelihood(denoiser, x, **{option: 0})
    with pytest.raises(ValueError, match="draws must be a whole number"):
        bits_per_dim_flow(denoiser, x, bin_width=0.1, draws=0)
