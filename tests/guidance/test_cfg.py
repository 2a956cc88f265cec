"""Classifier-free guidance: the formula, a scale a row, and one call where one is enough."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato import samplers, schedules
from sfumato.denoiser import Cond, Denoiser, NetworkDenoiser, Prediction, from_x0
from sfumato.guidance import Guidance, Guided, cfg, clip
from sfumato.noise import PRIOR, normal

SCHEDULE = schedules.cosine(20)
NULL = {"label": torch.tensor([9])}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner, self.last, self.calls = nn.Embedding(10, 12), nn.Linear(6, 12), nn.Linear(12, 6), 0

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        self.calls += 1
        assert cond is not None
        assert set(cond) <= {"label", "tilt"}  # the scale is not the network's affair
        return self.last(torch.tanh(self.inner(x) + self.table(cond["label"]) + t[:, None] / 20))


@pytest.fixture
def inner() -> NetworkDenoiser:
    torch.manual_seed(0)
    return NetworkDenoiser(Net(), SCHEDULE, target="v", null_cond=NULL)


def state(n: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    x = normal(range(n), (6,), PRIOR)
    return x, torch.linspace(0.1, 1, n, dtype=torch.float64), torch.arange(n)


def close(p: Prediction, x0: Tensor, eps: Tensor) -> None:
    torch.testing.assert_close(p.x0, x0, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(p.eps, eps, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_formula(inner: NetworkDenoiser) -> None:
    """x0_null + w (x0 - x0_null), eps likewise; x_t = alpha x0 + sigma eps still holds."""
    x, t, label = state()
    given, null = inner(x, t, {"label": label}), inner(x, t, {"label": torch.full((5,), 9)})
    for w in (0.0, 0.4, 2.5, -1.0):
        p = cfg(inner)(x, t, {"label": label, "guidance": torch.full((5,), w)})
        close(p, null.x0 + w * (given.x0 - null.x0), null.eps + w * (given.eps - null.eps))
        back = SCHEDULE.alpha(t)[:, None].float() * p.x0 + SCHEDULE.sigma(t)[:, None].float() * p.eps
        torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-5)


class Far(Tensor):
    """A tensor on a GPU, as far as waiting for it goes: whoever asks for its values fails."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert getattr(func, "__name__", "") not in {"__bool__", "item", "tolist", "cpu", "numpy", "__float__"}, func
        return super().__torch_function__(func, types, args, kwargs or {})


@torch.no_grad()
def test_no_value_is_waited_for(inner: NetworkDenoiser) -> None:
    """What is told lies on the processor: whether to ask twice, once, or for the unconditional is known there."""
    x, t, label = (a.as_subclass(Far) for a in state())
    with pytest.raises(AssertionError):
        bool((t > 0).all())
    for w in (2.5, 1.0, 0.3):
        cfg(inner)(x, t, {"label": label, "guidance": torch.full((5,), w)})


@torch.no_grad()
def test_the_seeds_own_scale_is_one_less(inner: NetworkDenoiser) -> None:
    """arXiv:2207.12598, eq. (6): (1 + w) eps_cond - w eps_null, for w = ours - 1."""
    x, t, label = state()
    given, null = inner(x, t, {"label": label}), inner(x, t, {"label": torch.full((5,), 9)})
    p = cfg(inner)(x, t, {"label": label, "guidance": torch.full((5,), 3.0)})
    torch.testing.assert_close(p.eps, 3 * given.eps - 2 * null.eps, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("scale", [None, 1.0])
def test_scale_one_is_no_guidance_and_one_call(inner: NetworkDenoiser, scale: float | None) -> None:
    x, t, label = state()
    plain = inner(x, t, {"label": label})
    assert isinstance(inner.net, Net)
    inner.net.calls = 0
    cond = {"label": label} if scale is None else {"label": label, "guidance": torch.full((5,), scale)}
    p = cfg(inner)(x, t, cond)
    assert inner.net.calls == 1
    assert torch.equal(p.x0, plain.x0)
    assert torch.equal(p.eps, plain.eps)


@torch.no_grad()
def test_scale_zero_is_the_null(inner: NetworkDenoiser) -> None:
    x, t, label = state()
    null = inner(x, t, {"label": torch.full((5,), 9)})
    close(cfg(inner)(x, t, {"label": label, "guidance": torch.zeros(5)}), null.x0, null.eps)


@torch.no_grad()
def test_each_row_has_its_own_scale_and_all_share_one_call(inner: NetworkDenoiser) -> None:
    x, t, label = state()
    w = torch.tensor([1.0, 0.0, 3.0, 1.0, -2.0])
    assert isinstance(inner.net, Net)
    inner.net.calls = 0
    together = cfg(inner)(x, t, {"label": label, "guidance": w})
    assert inner.net.calls == 1
    for b in range(5):
        rows = slice(b, b + 1)
        alone = cfg(inner)(x[rows], t[rows], {"label": label[rows], "guidance": w[rows]})
        close(alone, together.x0[rows], together.eps[rows])


@torch.no_grad()
def test_guidance_reaches_every_sampler(inner: NetworkDenoiser) -> None:
    x, _, label = state()
    for name in sorted(set(samplers.SAMPLERS) - {"cold", "meanflow"}):  # which this schedule does not go with
        plain = samplers.sample(inner, x, name, steps=10, cond={"label": label})
        one = samplers.sample(cfg(inner), x, name, steps=10, cond={"label": label, "guidance": torch.ones(5)})
        three = samplers.sample(cfg(inner), x, name, steps=10, cond={"label": label, "guidance": torch.full((5,), 3.0)})
        assert torch.equal(plain, one)
        assert (plain - three).abs().max() > 1e-2


@torch.no_grad()
def test_guidances_nest(inner: NetworkDenoiser) -> None:
    x, t, label = state()
    cond = {"label": label, "guidance": torch.full((5,), 6.0)}
    guided, both = cfg(inner)(x, t, cond), clip(cfg(inner), -0.5, 0.5)(x, t, cond)
    assert guided.x0.abs().max() > 0.5
    torch.testing.assert_close(both.x0, guided.x0.clamp(-0.5, 0.5))
    other = cfg(clip(inner, -0.5, 0.5))
    assert other.null_cond is inner.null_cond
    low = [clip(inner, -0.5, 0.5)(x, t, {"label": y}).x0 for y in (label, torch.full((5,), 9))]
    torch.testing.assert_close(other(x, t, cond).x0, low[1] + 6 * (low[0] - low[1]), rtol=1e-5, atol=1e-5)


def test_without_a_null_it_says_so(inner: NetworkDenoiser) -> None:
    x, t, label = state()
    bare = NetworkDenoiser(inner.net, SCHEDULE, target="v")
    for denoiser, cond, words in [
        (bare, {"label": label}, r"the model has null for nothing, cond gives \['label'\]; take guidance 1"),
        (inner, {"text": label}, r"null for \['label'\], cond gives \['text'\]"),
        (inner, {}, r"cond gives nothing"),
    ]:
        with pytest.raises(ValueError, match=words):
            cfg(denoiser)(x, t, {**cond, "guidance": torch.full((5,), 2.0)})


def test_every_part_of_a_prediction_is_split() -> None:
    """What the joint call answers goes back to its own rows, the variances too, None staying None."""

    class Full(Denoiser):
        schedule = SCHEDULE

        def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
            assert cond is not None
            return Prediction(x_t, x_t + 1, x_t + cond["k"][:, None], None)

    seen: list[Prediction] = []

    def combine(query: object, predictions: object) -> Prediction:
        seen.extend(predictions)  # type: ignore[call-overload]
        return seen[0]

    twice = Guidance(lambda q: [q, type(q)(2 * q.x, q.t, cond={"k": q.cond["k"] + 5})], combine)
    x, t, k = state()
    Guided(Full(), twice)(x, t, {"k": k.float()})
    assert torch.equal(seen[0].x0, x)
    assert torch.equal(seen[1].x0, 2 * x)
    assert seen[1].variance_mix is not None
    assert torch.equal(seen[1].variance_mix, 2 * x + (k + 5)[:, None])
    assert seen[1].x0_variance is None


def test_it_keeps_the_conditional_variances(inner: NetworkDenoiser) -> None:
    class Sure(Denoiser):
        schedule, null_cond = SCHEDULE, NULL

        def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
            assert cond is not None
            p = from_x0(SCHEDULE, x_t, t, x_t)
            return Prediction(p.x0, p.eps, cond["label"][:, None].expand_as(x_t).float())

    x, t, label = state()
    p = cfg(Sure())(x, t, {"label": label, "guidance": torch.full((5,), 2.0)})
    assert p.variance_mix is not None
    assert p.variance_mix[:, 0].tolist() == [0, 1, 2, 3, 4]
