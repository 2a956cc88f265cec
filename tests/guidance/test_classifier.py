"""Classifier guidance: who asks the classifier and who does not, who may, and what becomes of the answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sfumato import gaussian, samplers, schedules
from sfumato.asking import Query, ask
from sfumato.corruptions import PROCESSES, Blurring
from sfumato.denoiser import Denoiser, NetworkDenoiser
from sfumato.grids import GRIDS, pairs
from sfumato.guidance import (
    Guide,
    Rescheduled,
    autoguide,
    cfg,
    classifier_eps,
    classifier_mean,
    rescheduled_classifier,
    threshold,
)
from sfumato.guidance.classifier import Logits
from sfumato.noise import PRIOR, RowNoise, normal
from sfumato.samplers import SAMPLERS
from sfumato.samplers.loop import named
from sfumato.samplers.refused import why
from sfumato.schedules import Schedule
from sfumato.testbed import GaussianMixture
from sfumato.testbed.guided import Labelled

SHAPE = (1, 4, 4)
ALGORITHMS = [classifier_mean, classifier_eps]


def labelled() -> Labelled:
    """Three classes of small pictures."""
    means = torch.randn(3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    eye = torch.eye(16, dtype=torch.float64)
    return Labelled(GaussianMixture(torch.ones(3), means, torch.stack([eye * v for v in (0.3, 0.4, 0.5)])), [0, 1, 2])


class Counted:
    """A classifier that remembers how many rows each call had."""

    def __init__(self, classifier: Logits):
        self.classifier, self.rows = classifier, list[int]()

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.rows.append(len(x_t))
        return self.classifier(x_t, t)


def state(schedule: Schedule, n: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    t = torch.linspace(0.2, 1, n, dtype=torch.float64)
    return normal(range(n), SHAPE, PRIOR).to(dtype), t


def tilting(n: int, **cond: Tensor) -> dict[str, Tensor]:
    return {"label": torch.arange(n) % 3, "tilt": torch.ones(n), **cond}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("scale", [None, 0.0])
def test_at_scale_0_the_classifier_is_not_asked(algorithm: Callable, scale: float | None) -> None:
    """One plain call, bit-identical, and no label is needed."""
    schedule = schedules.rectified()
    counted = Counted(labelled().classifier(schedule))
    inner = labelled().denoiser(schedule, SHAPE)
    x, t = state(schedule)
    told = {} if scale is None else {"classifier": torch.full((4,), scale)}
    p, plain = algorithm(inner, counted)(x, t, told), inner(x, t)
    assert torch.equal(p.x0, plain.x0)
    assert torch.equal(p.eps, plain.eps)
    assert p.tilt is None
    assert counted.rows == []


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rows_of_scale_0_are_not_shown_to_it(algorithm: Callable) -> None:
    """Their label may be anything; they are what they are without guidance, and the others what they are alone."""
    schedule = schedules.cosine_continuous()
    counted = Counted(labelled().classifier(schedule))
    inner = labelled().mixture.denoiser(schedule, SHAPE)
    x, t = state(schedule)
    label, s = torch.tensor([0, 77, 2, -1]), torch.tensor([2.0, 0.0, -1.0, 0.0])
    guided = algorithm(inner, counted)
    whole, plain = guided(x, t, tilting(4, label=label, classifier=s)), inner(x, t)
    assert counted.rows == [2]
    for b in range(4):
        row = slice(b, b + 1)
        alone = guided(x[row], t[row], tilting(1, label=label[row], classifier=s[row]))
        torch.testing.assert_close(whole.x0[row], alone.x0, rtol=0, atol=1e-5)
        torch.testing.assert_close(whole.eps[row], alone.eps, rtol=0, atol=1e-5)
        if s[b] == 0:
            assert torch.equal(whole.x0[row], plain.x0[row])
            assert torch.equal(whole.eps[row], plain.eps[row])
            assert whole.tilt is None or not whole.tilt[row].any()


def test_the_two_algorithms_by_their_formulas() -> None:
    """tilt = s g, eps - sigma s g, x0 + sigma^2/alpha s g, with g by the mixture's own scores."""
    schedule = schedules.linear_continuous()
    x, t = state(schedule, dtype=torch.float64)
    flat, y, s = x.flatten(1), torch.arange(4) % 3, torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    score = torch.stack([labelled().conditional(int(k)).score(flat[i : i + 1], t[i : i + 1], schedule)[0]
                         for i, k in enumerate(y)])  # fmt: skip
    g = (s[:, None] * (score - labelled().mixture.score(flat, t, schedule))).view_as(x)
    inner, classifier = labelled().mixture.denoiser(schedule, SHAPE), labelled().classifier(schedule)
    plain = inner(x, t)
    mean = classifier_mean(inner, classifier)(x, t, tilting(4, classifier=s))
    assert mean.tilt is not None
    torch.testing.assert_close(mean.tilt, g, rtol=1e-9, atol=1e-9)
    assert torch.equal(mean.x0, plain.x0)
    eps = classifier_eps(inner, classifier)(x, t, {"label": y, "classifier": s})
    alpha, sigma = (c[:, None, None, None] for c in (schedule.alpha(t), schedule.sigma(t)))
    torch.testing.assert_close(eps.eps, plain.eps - sigma * g, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(eps.x0, plain.x0 + sigma**2 / alpha * g, rtol=1e-9, atol=1e-9)
    assert eps.tilt is None


@pytest.mark.parametrize("name", sorted(set(PROCESSES) - {"cold", "from_betas"}))
def test_algorithm_2_is_finite_up_to_pure_noise_and_keeps_x_t(name: str) -> None:
    """Where alpha(1) = 0 it goes on as it is nearby: with an exact classifier, towards the exact conditional x0."""
    schedule = Blurring(4, 4) if name == "blurring" else PROCESSES[name]()
    x, t = normal(range(6), SHAPE, PRIOR).double() * schedule.prior_std, torch.linspace(0.5, 1, 6, dtype=torch.float64)
    linear = nn.Linear(16, 3).double()
    inner = NetworkDenoiser(lambda x, t, cond: x / 2, schedule, target="x0", time="unit")
    cond = {"label": torch.arange(6) % 3, "classifier": torch.full((6,), 2.0)}
    p = classifier_eps(inner, lambda x_t, t: linear(x_t.flatten(1)))(x, t, cond)
    torch.testing.assert_close(
        gaussian.perturb(schedule, p.x0, t, p.eps), x, rtol=1e-9, atol=1e-9 * float(x.abs().max())
    )
    if name == "blurring":
        return
    exact = classifier_eps(labelled().mixture.denoiser(schedule, SHAPE), labelled().classifier(schedule))
    p = exact(x, t, {**cond, "classifier": torch.ones(6)})
    truth = labelled().denoiser(schedule, SHAPE)(x, t, cond)
    torch.testing.assert_close(p.x0, truth.x0, rtol=0, atol=0.01)
    torch.testing.assert_close(p.x0[:-1], truth.x0[:-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_graph_leaks_and_no_gradient_is_left(algorithm: Callable, context: Callable) -> None:
    schedule, net = schedules.rectified(), nn.Linear(16, 3)
    with context():
        x, t = state(schedule)
        p = algorithm(labelled().mixture.denoiser(schedule, SHAPE), lambda x_t, t: net(x_t.flatten(1)))(
            x, t, tilting(4, classifier=torch.ones(4))
        )
    assert all(part is None or not part.requires_grad for part in (p.x0, p.eps, p.tilt))
    assert net.weight.grad is None
    assert not x.requires_grad


def test_what_is_asked_wrongly_is_answered() -> None:
    inner = labelled().mixture.denoiser(schedules.rectified(), SHAPE)
    (x, t), one = state(schedules.rectified()), torch.ones(4)
    guided = classifier_eps(inner, labelled().classifier(schedules.rectified()))
    with pytest.raises(ValueError, match=r'asks for cond\["label"\], one class a row'):
        guided(x, t, {"classifier": one})
    with pytest.raises(ValueError, match=r"labels from 0 to 3, the classifier knows 0\.\.2; give a class"):
        guided(x, t, {"classifier": one, "label": torch.arange(4)})
    with pytest.raises(ValueError, match=r"a classifier says logits \(4, K\) for 4 rows; got \(4,\)"):
        classifier_eps(inner, lambda x_t, t: x_t.flatten(1).sum(1))(x, t, tilting(4, classifier=one))


def common(sampler: str) -> Schedule:
    """rectified, or cold for the sampler that is for nothing else."""
    ends = torch.tensor([1.0, 0.0])
    return next(PROCESSES[n]() for n in ("rectified", "cold") if not why(sampler, SAMPLERS, PROCESSES[n](), ends))


def few(sampler: str) -> str:
    return sampler + (":tolerance=0.01" if SAMPLERS[sampler].calls is None else "")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_but_ancestral_refuses_algorithm_1(sampler: str) -> None:
    schedule = common(sampler)
    guided = classifier_mean(labelled().denoiser(schedule, SHAPE), labelled().classifier(schedule))
    x, y = normal(range(3), SHAPE, PRIOR), torch.arange(3)

    def run(scale: float) -> Tensor:
        cond = {"label": y, "classifier": torch.tensor([scale, 0.0, 0.0])}
        return samplers.sample(guided, x, few(sampler), 4, cond=cond)

    plain = run(0.0)
    if sampler == "ancestral":
        assert not torch.equal(plain[0], run(1.0)[0])
        assert torch.equal(plain[1:], run(1.0)[1:])
        return
    with pytest.raises(ValueError, match=r"by Algorithm 1 moves the mean .* take that, or Algorithm 2") as told:
        run(1.0)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("variance", ["small", "large", "optimal"])
def test_the_last_step_is_tilted_too(variance: str) -> None:
    """mean + variance tilt, with the variance that its row gives for s = 0."""
    from sfumato.denoiser import Prediction
    from sfumato.samplers.ancestral import ancestral
    from sfumato.variances import VARIANCES

    schedule, x = schedules.cosine(50), normal([0], (3,), PRIOR).double()
    t, s = torch.tensor([0.02, 0.0], dtype=torch.float64)
    p = Prediction(0.5 * x, x, None, 0.1 + x.square(), torch.ones_like(x))
    walk = ancestral(x, [(t, s)], schedule, lambda k: torch.full_like(x, torch.nan), variance=variance)
    query = next(walk)
    assert query.tilt
    with pytest.raises(StopIteration) as end:
        walk.send(p)
    mean, _ = gaussian.posterior(schedule, x, p.x0, t, s)
    torch.testing.assert_close(end.value.value, mean + VARIANCES[variance](schedule, t, s, p).exp() * p.tilt)
    assert float((end.value.value - mean).min()) > 0


WEAK = Labelled(GaussianMixture(torch.ones(1), torch.zeros(1, 16), torch.eye(16)[None]), [0])
WRAPPED: dict[str, Callable[[Denoiser, Schedule], Denoiser]] = {
    "classifier over cfg": lambda d, schedule: classifier_eps(cfg(d), labelled().classifier(schedule)),
    "threshold over cfg": lambda d, schedule: threshold(cfg(d), 0.9),
    "classifier over autoguidance": lambda d, schedule: classifier_eps(
        autoguide(d, WEAK.mixture.denoiser(schedule, SHAPE)), labelled().classifier(schedule)
    ),
    "a whole guide": lambda d, schedule: Guide(
        mix="apg:eta=0.2,norm=3", classifier=labelled().classifier(schedule), dynamic=0.95
    ).wrap(d, (-1, 1)),
    "rescale": lambda d, schedule: Guide(mix="rescale", classifier=labelled().classifier(schedule)).wrap(d, None),
}


@pytest.mark.slow
@settings(max_examples=40)
@given(
    sampler=st.sampled_from(sorted(SAMPLERS)),
    wrapped=st.sampled_from(sorted(WRAPPED)),
    w=st.sampled_from([0.0, 1.0, 3.0]),
    s=st.sampled_from([0.0, 1.0, 4.0]),
    low=st.sampled_from([0.0, 0.4]),
)
def test_every_sampler_runs_under_every_guidance(sampler: str, wrapped: str, w: float, s: float, low: float) -> None:
    schedule = common(sampler)
    inner = labelled().denoiser(schedule, SHAPE)
    x, label = normal(range(3), SHAPE, PRIOR), torch.tensor([0, 1, 2])
    cond = {
        "label": label,
        "guidance": torch.tensor([w, 1.0, 1.0]),
        "classifier": torch.tensor([s, 0.0, 0.0]),
        "low": torch.full((3,), low),
    }
    guided = WRAPPED[wrapped](inner, schedule)
    out = samplers.sample(guided, x, few(sampler), 4, cond=cond)
    assert bool(out.isfinite().all())
    if wrapped in ("classifier over cfg", "rescale") and SAMPLERS[sampler].calls is not None:
        plain = samplers.sample(inner, x, few(sampler), 4, cond={"label": label})
        torch.testing.assert_close(out[1:], plain[1:], rtol=0, atol=1e-4)
        if s == 0 and w == 1:
            assert torch.equal(out, plain)
        elif s != 0 and sampler != "cold":
            assert float((out[0] - plain[0]).abs().max()) > 1e-3


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_joined_with_others_rows_keep_to_themselves(algorithm: Callable) -> None:
    """An ancestral walk under a classifier, beside walks that know nothing of it, in one call."""
    schedule = schedules.rectified()
    inner = algorithm(cfg(labelled().denoiser(schedule, SHAPE)), labelled().classifier(schedule))
    two, first = torch.tensor([0, 2]), {"label": torch.tensor([1, 2])}
    walkers: list[tuple[str, int, tuple[int, int], dict[str, Tensor] | None]] = [
        ("ancestral", 5, (1, 2), {**first, "classifier": torch.tensor([2.0, 0.0])}),
        ("ancestral:variance=optimal", 3, (3, 4), {**first, "guidance": torch.tensor([3.0, 1.0])}),
        ("ddim", 4, (5, 6), {"label": two, "guidance": torch.tensor([2.0, 4.0]), "low": torch.tensor([0.3, 0.0])}),
        ("heun", 3, (7, 8), None),
    ]

    def walk(sampler: str, steps: int, seeds: tuple[int, int]) -> samplers.loop.Walk:
        x = normal(seeds, SHAPE, PRIOR)
        return named(sampler, SAMPLERS)(x, pairs(GRIDS["trailing"](schedule, steps)), schedule, RowNoise(seeds, x))

    joined = samplers.together(inner, [(walk(name, n, seeds), cond) for name, n, seeds, cond in walkers])
    for x, (name, n, seeds, cond) in zip(joined, walkers, strict=True):
        alone = samplers.sample(inner, normal(seeds, SHAPE, PRIOR), name, n, "trailing", seeds, cond)
        torch.testing.assert_close(x, alone, rtol=0, atol=1e-4)
    free = samplers.sample(inner, normal((1, 2), SHAPE, PRIOR), "ancestral", 5, "trailing", (1, 2), first)
    assert float((joined[0][0] - free[0]).abs().max()) > 0.02
    torch.testing.assert_close(joined[0][1], free[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("trained", "asked"), [("cosine_continuous", "rectified"), ("linear_continuous", "edm")])
def test_along_another_schedule_both_ways(algorithm: Callable, trained: str, asked: str) -> None:
    """Rescheduled around the guidance, or the guidance around Rescheduled: both are the asked schedule's own."""
    own, other = schedules.from_spec(trained), schedules.from_spec(asked)
    inner, classifier = labelled().denoiser(own, SHAPE), labelled().classifier(own)
    t = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
    x = normal(range(3), SHAPE, PRIOR).double() * (other.alpha(t) + other.sigma(t))[:, None, None, None]
    cond = tilting(3, classifier=torch.full((3,), 2.0))
    truth = algorithm(labelled().denoiser(other, SHAPE), labelled().classifier(other))(x, t, cond)
    outside = Rescheduled(algorithm(inner, classifier), other)(x, t, cond)
    inside = algorithm(Rescheduled(inner, other), rescheduled_classifier(classifier, own, other))(x, t, cond)
    for p in (outside, inside):
        torch.testing.assert_close(p.x0, truth.x0, rtol=0, atol=1e-7)
        torch.testing.assert_close(p.eps, truth.eps, rtol=0, atol=1e-7)
        assert (p.tilt is None) == (algorithm is classifier_eps)
        if p.tilt is not None:
            torch.testing.assert_close(p.tilt, truth.tilt, rtol=1e-7, atol=1e-7)


def test_rows_that_did_not_ask_are_answered_as_if_alone() -> None:
    """A query that says nothing, joined with one under the classifier: scale 0, and no gradient."""
    schedule = schedules.rectified()
    counted = Counted(labelled().classifier(schedule))
    denoiser = classifier_eps(labelled().denoiser(schedule, SHAPE), counted)
    x, t = state(schedule)
    asks = Query(x, t, cond={"label": torch.arange(4) % 3, "classifier": torch.ones(4)})
    silent = Query(2 * x, t)
    first, second = ask(denoiser, [asks, silent])
    assert counted.rows == [4]
    torch.testing.assert_close(second.x0, denoiser(2 * x, t).x0)
    torch.testing.assert_close(first.x0, denoiser(x, t, asks.cond).x0)
