"""Walks of any samplers, joined into one call of the network, end where each ends alone.

An adaptive row looks at its own errors, so a last digit may cost it a step: it is compared in float64, with a network
in float64.  (Even so the time that a network is told is a float32, whose last digit may turn.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement, cycle

import pytest
import torch
from torch import Tensor, nn

from sfumato import schedules
from sfumato.corruptions import PROCESSES
from sfumato.denoiser import Cond, Denoiser, NetworkDenoiser
from sfumato.grids import GRIDS, pairs
from sfumato.guidance import cfg, clip
from sfumato.nn import Conditions, DiT, DiTConfig, UNet, UNetConfig
from sfumato.noise import PRIOR, RowNoise, normal
from sfumato.samplers import SAMPLERS, sample, together
from sfumato.samplers.loop import Walk, named
from sfumato.samplers.refused import why
from sfumato.schedules import Schedule

CLASSES = 10
ENDS = torch.tensor([1.0, 0.0])


class Tiny(nn.Module):
    """Convolutions and a normalisation, told of time, class and span; it counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.told, self.label = nn.Linear(2, 16), nn.Embedding(CLASSES + 1, 16)
        self.first, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.last = nn.Conv2d(16, 1, 3, padding=1)
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        self.calls += 1
        span = (cond or {}).get("span", torch.zeros_like(t))
        label = (cond or {}).get("label", torch.full_like(t, CLASSES, dtype=torch.long))
        told = self.told(torch.stack([t, span], 1).to(x)) + self.label(label)
        return self.last(nn.functional.silu(self.norm(self.first(x)) + told[:, :, None, None]))


@cache
def model(schedule: str, dtype: torch.dtype) -> tuple[Tiny, Denoiser]:
    torch.manual_seed(0)
    net = Tiny().eval().to(dtype)
    null = {"label": torch.tensor([CLASSES])}
    inner = NetworkDenoiser(net, PROCESSES[schedule](), target="v", time="unit", null_cond=null)
    return net, clip(cfg(inner), -3.0, 3.0)


@dataclass(frozen=True)
class Walker:
    """Who walks, how, and under what: rows of their own seeds."""

    sampler: str
    seeds: tuple[int, ...]
    steps: int
    grid: str
    labels: tuple[int, ...] = ()
    guidance: tuple[float, ...] = ()

    @property
    def adaptive(self) -> bool:
        return SAMPLERS[self.sampler].calls is None

    @property
    def text(self) -> str:
        return self.sampler + (":tolerance=0.001" if self.adaptive else "")

    @property
    def x_T(self) -> Tensor:
        return normal(self.seeds, (1, 6, 6), PRIOR).to(torch.float64 if self.adaptive else torch.float32)

    @property
    def cond(self) -> dict[str, Tensor] | None:
        cond = {"label": torch.tensor(self.labels)} if self.labels else {}
        return {**cond, **({"guidance": torch.tensor(self.guidance)} if self.guidance else {})} or None

    def walk(self, schedule: Schedule) -> Walk:
        times, x = GRIDS[self.grid](schedule, self.steps), self.x_T
        return named(self.text, SAMPLERS)(x, pairs(times), schedule, RowNoise(self.seeds, x))


@cache
def alone(walker: Walker, schedule: str, dtype: torch.dtype) -> tuple[Tensor, int]:
    """Where it ends, and the calls of the network it takes."""
    net, denoiser = model(schedule, dtype)
    before = net.calls
    x = sample(denoiser, walker.x_T, walker.text, walker.steps, walker.grid, walker.seeds, walker.cond)
    return x, net.calls - before


def check(walkers: Sequence[Walker], schedule: str) -> None:
    dtype = torch.float64 if any(w.adaptive for w in walkers) else torch.float32
    net, denoiser = model(schedule, dtype)
    before = net.calls
    joined = together(denoiser, [(w.walk(denoiser.schedule), w.cond) for w in walkers])
    calls = net.calls - before
    apart = [alone(w, schedule, dtype) for w in walkers]
    for w, x, (truth, _) in zip(walkers, joined, apart, strict=True):
        assert x.dtype == w.x_T.dtype
        torch.testing.assert_close(x, truth, rtol=0, atol=1e-6 if w.adaptive else 1e-4)
        assert float((x[0] - x[1]).abs().max()) > 0.05  # its rows are not all alike
    assert calls == max(alone_calls for _, alone_calls in apart)  # all that is asked at a time is one call


def guided(sampler: str) -> Walker:
    return Walker(sampler, (100, 101, 102), 5, "karras", (1, 7, 4), (2.0, 1.0, 3.5))


def plain(sampler: str) -> Walker:
    return Walker(sampler, (7, 8), 3, "quadratic")


def common(samplers: Sequence[str]) -> str | None:
    """A schedule with which none of them is refused."""
    names = (n for n in ("rectified", "cold") if not any(why(s, SAMPLERS, PROCESSES[n](), ENDS) for s in samplers))
    return next(names, None)


PAIRS = [pair for pair in combinations_with_replacement(SAMPLERS, 2) if common(pair)]


def test_all_share_a_model_but_those_of_no_common_schedule() -> None:
    assert {name for pair in PAIRS for name in pair} == set(SAMPLERS)
    n = sum(common([name, "ddim"]) is not None for name in SAMPLERS)
    assert len(PAIRS) >= n * (n + 1) // 2


@pytest.mark.parametrize("first", SAMPLERS)
def test_any_two(first: str) -> None:
    """One under labels and guidance, the other under nothing, of other rows, times and step counts."""
    for a, b in PAIRS:
        if a == first:
            schedule = common((a, b))
            assert schedule
            check((guided(a), plain(b)), schedule)


@pytest.mark.parametrize("schedule", ["rectified", "cosine"])
def test_the_whole_table_at_once(schedule: str) -> None:
    """Walks end one after the other, the shortest after its first call; the rest go on."""
    names = [name for name in SAMPLERS if not why(name, SAMPLERS, PROCESSES[schedule](), ENDS)]
    assert len(names) > len(SAMPLERS) / 2
    walkers = [make(name) for name, make in zip(names, cycle([guided, plain]), strict=False)]
    check([Walker("ddim", (5, 6), 1, "trailing", (2, 2)), *walkers], schedule)


CONDITIONS = Conditions(classes=CLASSES, context=4, span=1)


@pytest.fixture(scope="module", params=["unet", "dit"])
def told(request: pytest.FixtureRequest) -> Denoiser:
    """A network of the house with attention, told labels, tokens and the span; random, so that all of it speaks."""
    torch.manual_seed(0)
    config = UNetConfig(channels=8, multipliers=(1, 2), blocks=1, groups=4, attention=(1,), head_channels=4)
    net = {
        "unet": lambda: UNet(config, (1, 8, 8), CONDITIONS),
        "dit": lambda: DiT(DiTConfig(patch=2, width=16, depth=2, heads=2), (1, 8, 8), CONDITIONS),
    }[request.param]().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    null = CONDITIONS.null(torch.zeros(1, 1, 8, 8))
    return clip(cfg(NetworkDenoiser(net, schedules.rectified(), target="flow", time="unit", null_cond=null)), -3, 3)


def tokens(rows: int, length: int) -> Tensor:
    return torch.randn(rows, length, 4, generator=torch.Generator().manual_seed(length))


def test_tokens_of_different_length_labels_guidance_and_spans(told: Denoiser) -> None:
    """Shorter contexts are padded, silent rows are null, and only those that ask for a span have one."""
    asked: list[tuple[str, int, tuple[int, ...], Cond | None]] = [
        ("dpmpp-2m", 4, (1, 2), {"context": tokens(2, 2), "guidance": torch.tensor([3.0, 1.5])}),
        ("meanflow", 2, (3, 4), {"context": tokens(2, 5), "label": torch.tensor([0, 9])}),
        ("heun", 3, (5, 6, 7), {"label": torch.tensor([1, 2, 3]), "guidance": torch.tensor([1.0, 0.0, 2.0])}),
        ("meanflow", 1, (8, 9), None),
        ("ancestral", 5, (10, 11), {"context": tokens(2, 1)}),
    ]

    def walk(sampler: str, steps: int, seeds: tuple[int, ...], cond: Cond | None) -> tuple[Walk, Cond | None]:
        x, times = normal(seeds, (1, 8, 8), PRIOR), GRIDS["trailing"](told.schedule, steps)
        return SAMPLERS[sampler].run(x, pairs(times), told.schedule, RowNoise(seeds, x)), cond

    joined = together(told, [walk(*each) for each in asked])
    silent = together(told, [walk(sampler, steps, seeds, None) for sampler, steps, seeds, _ in asked])
    for (sampler, steps, seeds, cond), x, without in zip(asked, joined, silent, strict=True):
        truth = sample(told, normal(seeds, (1, 8, 8), PRIOR), sampler, steps, None, seeds, cond)
        torch.testing.assert_close(x, truth, rtol=0, atol=1e-4)
        assert (float((x - without).abs().max()) > 0.01) == (cond is not None)  # what is told is heard


def test_a_walk_may_end_before_it_asks() -> None:
    def still(x: Tensor) -> Walk:
        yield from ()
        return x

    _, denoiser = model("rectified", torch.float32)
    w = guided("ddim")
    joined = together(denoiser, [(still(w.x_T), None), (w.walk(denoiser.schedule), w.cond)])
    assert torch.equal(joined[0], w.x_T)
    assert torch.equal(joined[1], alone(w, "rectified", torch.float32)[0])
    assert together(denoiser, []) == []
