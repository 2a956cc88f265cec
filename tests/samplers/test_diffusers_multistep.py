"""Where diffusers' solvers differ from ours: 3M, UniPC of order 3, PNDM, and Heun from where alpha is nearly 0.

Each of theirs is restated here as one of our generators, which makes what theirs makes to 1e-5 on the network, noise
and grid of `beside_diffusers`, and is then measured with ours on a mixture whose flow is known.  Fitted orders:

    theirs                                         what departs from the paper                        theirs   ours
    DPMSolverMultistepScheduler(solver_order=3)    theirs: D'' lacks a factor 2, first step of order 1    2      3
    UniPCMultistepScheduler(solver_order=3)        theirs: lower_order_final, the last steps              2      3
    PNDMScheduler(skip_prk_steps=False), eps       ours: m half way in sigma/alpha, theirs in t           3      4
    PNDMScheduler(skip_prk_steps=True), eps        theirs: starts by Heun and Adams of order 2 and 3      3      4
    PNDMScheduler(), v                             theirs: combines v of several times, not eps           1      4

Down the cosine theirs of Heun follows EDM to the letter, from sigma/alpha = 20,000 in one step, and ends a hundred
times or more farther from the truth than ours.
lower_order_final is meant for a last step to sigma = 0; over an interval that ends above it only costs an order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, HeunDiscreteScheduler, PNDMScheduler, UniPCMultistepScheduler
from torch import Tensor

from sfumato import samplers, schedules
from sfumato.asking import Query
from sfumato.denoiser import Prediction
from sfumato.parameterization import from_target, to_target
from sfumato.samplers import Sampler, exponential
from sfumato.samplers.loop import Noise, Steps, Walk
from sfumato.schedules import Schedule
from sfumato.testbed import GaussianMixture
from sfumato.testbed.flow import flow

from .beside_diffusers import CASES, Network, agree, made, one_grid, start, walked

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs, with numpy 2

Nodes = list[tuple[Tensor, Tensor]]  # half logSNR and x0, newest first


def constant(schedule: Schedule, x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x_s for an x0 that stands still."""
    A = schedule.sigma(s) / schedule.sigma(t)
    return A * x + (schedule.alpha(s) - A * schedule.alpha(t)) * x0


def their_3m(x: Tensor, times: Steps, schedule: Schedule, noise: Noise) -> Walk:
    """First steps of order 1 and 2, and so the last two where S < 15 or, the very last, where it ends at sigma = 0."""
    nodes: Nodes = []
    for left, (t, s) in zip(range(len(times), 0, -1), times, strict=True):
        p = yield Query(x, t)
        l, l_s, alpha = 0.5 * schedule.logsnr(t), 0.5 * schedule.logsnr(s), schedule.alpha(s)
        h = l_s - l
        order = min(3, len(nodes) + 1, left if len(times) < 15 else 3, 1 if s == 0 else 3)
        x = constant(schedule, x, p.x0, t, s)
        if order > 1:
            r_0 = (l - nodes[0][0]) / h
            slope = (p.x0 - nodes[0][1]) / r_0
        if order == 2:
            x = x - alpha * torch.expm1(-h) / 2 * slope
        if order == 3:
            r_1 = (nodes[0][0] - nodes[1][0]) / h
            change = slope - (nodes[0][1] - nodes[1][1]) / r_1
            D1, D2 = slope + r_0 / (r_0 + r_1) * change, change / (r_0 + r_1)
            phi_2 = torch.expm1(-h) / h + 1
            x = x + alpha * phi_2 * D1 - alpha * (phi_2 / h - 0.5) * D2
        nodes = [(l, p.x0), *nodes[:1]]
    return x


def their_heun(x: Tensor, times: Steps, schedule: Schedule, noise: Noise) -> Walk:
    """Heun in x/alpha and sigma/alpha wherever it comes from; ours takes long steps (`exponential.long`) as DDIM."""
    for t, s in times:
        p = yield Query(x, t)
        x = schedule.alpha(s) * p.x0 + schedule.sigma(s) * p.eps
        if s > 0:
            q = yield Query(x, s)
            x = x + (schedule.sigma(s) - schedule.alpha(s) * torch.exp(-0.5 * schedule.logsnr(t))) * (q.eps - p.eps) / 2
    return x


POINTS, WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(16))


def uni(schedule: Schedule, x: Tensor, nodes: Nodes, t: Tensor, s: Tensor) -> Tensor:
    """A step of UniPC: exact, by quadrature, for the polynomial through three nodes or more; a_1 = 1/2 for two."""
    (l, x0), *others = nodes
    known, h, alpha = constant(schedule, x, x0, t, s), 0.5 * schedule.logsnr(s) - l, schedule.alpha(s)
    if s == 0 or not others:
        return known
    if len(others) == 1:
        return known - alpha * torch.expm1(-h) / 2 * h / (others[0][0] - l) * (others[0][1] - x0)
    at = l + h * (POINTS + 1) / 2
    for l_j, x0_j in others:
        zeros = torch.stack([l_i for l_i, _ in nodes if l_i != l_j])
        lagrange = ((at[:, None] - zeros) / (l_j - zeros)).prod(1)
        known = known + alpha * h / 2 * (WEIGHTS * torch.exp(at - l - h) * lagrange).sum() * (x0_j - x0)
    return known


def their_unipc(x: Tensor, times: Steps, schedule: Schedule, noise: Noise) -> Walk:
    """Predictor and corrector of order 3, but of order 2 in the last step but one and of order 1 in the last."""
    nodes: Nodes = []
    before: tuple[Tensor, Nodes, Tensor] | None = None
    for left, (t, s) in zip(range(len(times), 0, -1), times, strict=True):
        p = yield Query(x, t)
        now = (0.5 * schedule.logsnr(t), p.x0)
        if before is not None:
            start, used, came = before
            x = uni(schedule, start, [*used, now], came, t)
        nodes = [now, *nodes[:2]]
        before = x, nodes[:left], t
        x = uni(schedule, x, nodes[:left], t, s)
    return x


ADAMS = {2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


def their_plms(x: Tensor, times: Steps, schedule: Schedule, noise: Noise, *, target: str, prk: bool) -> Walk:
    """What is combined is what the network says, of `target`, and becomes eps at the step's own x and t alone."""

    def ask(x: Tensor, t: Tensor) -> Generator[Query, Prediction, Tensor]:
        p = yield Query(x, t)
        return to_target(target, schedule, t, p.x0, p.eps)

    def moved(x: Tensor, y: Tensor, t: Tensor, s: Tensor) -> Tensor:
        x0, eps = from_target(target, schedule, t, x, y)
        return schedule.alpha(s) * x0 + schedule.sigma(s) * eps

    said: list[Tensor] = []
    for k, (t, s) in enumerate(times):
        y = yield from ask(x, t)
        said = [y, *said[:3]]
        if prk and k < 3:
            m = (t + s) / 2
            y_2 = yield from ask(moved(x, y, t, m), m)
            y_3 = yield from ask(moved(x, y_2, t, m), m)
            y_4 = yield from ask(moved(x, y_3, t, s), s)
            y = (y + 2 * y_2 + 2 * y_3 + y_4) / 6
        elif k == 0:
            y = (y + (yield from ask(moved(x, y, t, s), s))) / 2
        else:
            y = sum((c * e for c, e in zip(ADAMS[len(said)], said, strict=True)), torch.zeros_like(y))
        x = moved(x, y, t, s)
    return x


MULTISTEP: dict[str, tuple[type, dict[str, Any], str | Sampler]] = {
    "3m": (DPMSolverMultistepScheduler, {}, their_3m),
    "3m, ending above sigma = 0": (DPMSolverMultistepScheduler, {"final_sigmas_type": "sigma_min"}, their_3m),
    "unipc": (UniPCMultistepScheduler, {}, their_unipc),
    "unipc, ending above sigma = 0": (UniPCMultistepScheduler, {"final_sigmas_type": "sigma_min"}, their_unipc),
    "unipc without lower_order_final is ours": (
        UniPCMultistepScheduler,
        {"final_sigmas_type": "sigma_min", "lower_order_final": False},
        "unipc-3",
    ),
}


@pytest.mark.parametrize(("betas", "target"), CASES)
@pytest.mark.parametrize("name", MULTISTEP)
def test_restated(name: str, betas: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, options, restated = MULTISTEP[name]
    monkeypatch.setattr(exponential, "REACH", math.inf)  # the other thing in which ours differs: theirs has no limit
    network = Network(betas, target)
    for steps in (5, 10, 20):
        theirs = made(kind, betas, target, solver_order=3, **options)
        times = one_grid(theirs, network.schedule, steps)
        agree(network.ours(restated, times), walked(theirs, network, times, start()[0]))


@pytest.mark.parametrize("steps", [5, 20])
def test_heun_restated(steps: int) -> None:
    network = Network("cosine", "v")
    theirs = made(HeunDiscreteScheduler, "cosine", "v")
    times = one_grid(theirs, network.schedule, steps)
    x = start()[0] / network.schedule.alpha(times[0])
    agree(network.ours(their_heun, times.unique_consecutive()), walked(theirs, network, times, x))


@pytest.mark.parametrize("steps", [5, 10, 50])
def test_heun_from_afar(steps: int, mixture_2d: GaussianMixture) -> None:
    """Down the cosine, from sigma/alpha = 20,000: how far from where the flow leads."""
    x_T, schedule = start()[0][:, :2], schedules.cosine()
    truth, denoiser = flow(mixture_2d, schedule, x_T, 1.0, 0.0), mixture_2d.denoiser(schedule)
    ours, theirs = (
        (samplers.sample(denoiser, x_T, sampler, steps=steps) - truth).square().mean().sqrt()
        for sampler in ("heun", their_heun)
    )
    assert 100 * ours < theirs


@pytest.mark.parametrize("prk", [True, False])
@pytest.mark.parametrize(("betas", "target"), [*CASES, ("linear", "v")])
def test_pndm_restated(betas: str, target: str, prk: bool) -> None:
    network = Network(betas, target)
    for steps in (5, 10, 20):
        theirs = made(PNDMScheduler, betas, target, set_alpha_to_one=True, skip_prk_steps=not prk)
        calls = one_grid(theirs, network.schedule, steps)
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        restated = partial(their_plms, target=target, prk=prk)
        agree(network.ours(restated, times), walked(theirs, network, calls, start()[0]))


def test_pndm_differs_by_the_midpoint_alone(mixture_2d: GaussianMixture) -> None:
    """On the edm schedule half way in t is half way in sigma/alpha, and ours is theirs."""
    denoiser = mixture_2d.denoiser(schedules.EDM(sigma_max=5))
    x_T = 5 * start()[0][:, :2]
    for steps in (5, 20):
        ours = samplers.sample(denoiser, x_T, "plms", steps=steps)
        agree(ours, samplers.sample(denoiser, x_T, partial(their_plms, target="eps", prk=True), steps=steps), 1e-9)


FROM, TO = 0.25, 0.1
Grid = Callable[[Schedule, int], Tensor]


def equal_in_t(schedule: Schedule, steps: int) -> Tensor:
    return torch.linspace(FROM, TO, steps + 1, dtype=torch.float64)


def equal_in_ratio(schedule: Schedule, steps: int) -> Tensor:
    first, last = torch.exp(-0.5 * schedule.logsnr(torch.tensor([FROM, TO], dtype=torch.float64)))
    ratios = first + (last - first) * torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return schedule.time_of_logsnr(-2 * ratios.log())


ORDERS: list[tuple[str | Sampler, Grid, int]] = [
    ("dpmpp-3m", equal_in_t, 3),
    (their_3m, equal_in_t, 2),
    ("unipc-3", equal_in_t, 3),
    (their_unipc, equal_in_t, 2),
    ("plms", equal_in_ratio, 4),
    (partial(their_plms, target="eps", prk=True), equal_in_ratio, 3),
    (partial(their_plms, target="eps", prk=False), equal_in_ratio, 3),
    (partial(their_plms, target="v", prk=True), equal_in_ratio, 1),
    (partial(their_plms, target="v", prk=False), equal_in_ratio, 1),
]


@pytest.mark.parametrize(("sampler", "grid", "order"), ORDERS)
def test_orders_on_the_mixture(sampler: str | Sampler, grid: Grid, order: int, mixture_2d: GaussianMixture) -> None:
    """From 32 to 128 steps, from t = 1/4 to 1/10: sigma/alpha from 0.95 to 0.34, where the flow bends most."""
    x, schedule = start()[0][:, :2], schedules.linear_continuous()
    truth, denoiser = flow(mixture_2d, schedule, x, FROM, TO), mixture_2d.denoiser(schedule)
    few, many = (
        (samplers.sample(denoiser, x, sampler, grid=grid(schedule, steps)) - truth).norm().item() for steps in (32, 128)
    )
    assert abs(math.log(few / many, 4) - order) < 0.3
