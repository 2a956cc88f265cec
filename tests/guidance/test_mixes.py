"""What is done with two answers: interval, rescale, projection, a weaker model; and thresholding of one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sfumato import gaussian, schedules
from sfumato.denoiser import Cond, Denoiser, NetworkDenoiser, Prediction
from sfumato.guidance import Guided, Rescheduled, apg, autoguide, cfg, clip, rescale, threshold
from sfumato.noise import PRIOR, normal
from sfumato.options import call_with

SCHEDULE = schedules.cosine(20)
SHAPE = (2, 4, 4)


class Net(nn.Module):
    """Told a label and the time; it counts its calls and says what it was told."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table, self.first, self.last = nn.Embedding(10, 12), nn.Linear(32, 12), nn.Linear(12, 32)
        self.calls, self.told = 0, set[str]()

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        assert cond is not None
        self.calls, self.told = self.calls + 1, set(cond)
        hidden = self.first(x.flatten(1)) + 2 * self.table(cond["label"]) + t[:, None] / 20
        return 2 * self.last(torch.tanh(hidden)).view_as(x)


def model(seed: int = 0) -> NetworkDenoiser:
    return NetworkDenoiser(Net(seed), SCHEDULE, target="v", null_cond={"label": torch.tensor([9])})


def net(denoiser: NetworkDenoiser) -> Net:
    assert isinstance(denoiser.net, Net)
    return denoiser.net


MIXES: dict[str, Callable[[Denoiser], Guided]] = {
    "cfg": cfg,
    "rescale": rescale,
    "apg": lambda inner: apg(inner, 0.3, 2.0),
    "autoguide": lambda inner: autoguide(inner, model(1)),
}


@pytest.fixture(params=MIXES)
def mix(request: pytest.FixtureRequest) -> Callable[[Denoiser], Guided]:
    return MIXES[request.param]


def state(n: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    return normal(range(n), SHAPE, PRIOR), torch.linspace(0.1, 1, n, dtype=torch.float64), torch.arange(n)


def scales(*w: float) -> Tensor:
    return torch.tensor(w, dtype=torch.float64)


def alike(p: Prediction, q: Prediction) -> None:
    assert torch.equal(p.x0, q.x0)
    assert torch.equal(p.eps, q.eps)


def halves(inner: Denoiser, x: Tensor, t: Tensor, label: Tensor) -> tuple[Prediction, Prediction]:
    return inner(x, t, {"label": label}), inner(x, t, {"label": torch.full_like(label, 9)})


@torch.no_grad()
def test_of_scale_one_it_is_one_plain_call(mix: Callable[[Denoiser], Guided]) -> None:
    inner, (x, t, label) = model(), state()
    plain, guided = inner(x, t, {"label": label}), mix(inner)
    for cond in ({}, {"guidance": scales(*[1.0] * 5)}, {"guidance": torch.ones(5), "low": torch.full((5,), 0.3)}):
        before = net(inner).calls
        alike(guided(x, t, {"label": label, **cond}), plain)
        assert net(inner).calls == before + 1
        assert net(inner).told == {"label"}


@torch.no_grad()
def test_in_mixed_batches_rows_are_as_alone(mix: Callable[[Denoiser], Guided]) -> None:
    inner, (x, t, label) = model(), state()
    cond = {"label": label, "guidance": scales(1, 4, 3, 1, -2), "low": scales(0, 0, 0.6, 0, 0.1)}
    before = net(inner).calls
    whole = mix(inner)(x, t, cond)
    assert net(inner).calls == before + 1
    plain = inner(x, t, {"label": label})
    for b in range(5):
        row = slice(b, b + 1)
        alone = mix(inner)(x[row], t[row], {name: value[row] for name, value in cond.items()})
        torch.testing.assert_close(whole.x0[row], alone.x0, rtol=0, atol=1e-5)
        torch.testing.assert_close(whole.eps[row], alone.eps, rtol=0, atol=1e-5)
        guided = b in (1, 4)  # row 2 lies below its interval
        assert bool((whole.x0[row] - plain.x0[row]).abs().max() > 0.05) == guided
        if not guided:
            torch.testing.assert_close(whole.eps[row], plain.eps[row], rtol=0, atol=1e-5)
    back = gaussian.perturb(SCHEDULE, whole.x0, t, whole.eps)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-5)


@torch.no_grad()
def test_rows_of_scale_one_keep_their_eps_where_there_is_hardly_noise(mix: Callable[[Denoiser], Guided]) -> None:
    """Near t = 0, eps = (x_t - alpha x0)/sigma would lose its digits."""
    inner, (x, _, label) = model(), state()
    t, w = torch.full((5,), 1e-7, dtype=torch.float64), scales(1, 1, 1, 1, 3)
    plain = inner(x, t, {"label": label})
    p = mix(inner)(x, t, {"label": label, "guidance": w})
    torch.testing.assert_close(p.eps[:4], plain.eps[:4], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_interval_is_open_below_and_closed_above(dtype: torch.dtype, mix: Callable[[Denoiser], Guided]) -> None:
    """low < t <= high, whatever the precision of the three."""
    inner, t = model(), torch.tensor([0.25, 0.3, 0.35, 0.65, 0.7, 0.75], dtype=dtype)
    x, label = normal(range(6), SHAPE, PRIOR), torch.arange(6)
    plain = inner(x, t, {"label": label})
    for told in (torch.float32, torch.float64):
        ends = {"low": torch.full((6,), 0.3, dtype=told), "high": torch.full((6,), 0.7, dtype=told)}
        p = mix(inner)(x, t, {"label": label, "guidance": torch.full((6,), 3.0), **ends})
        moved = (p.x0 - plain.x0).flatten(1).abs().amax(1) > 0.01
        assert moved.tolist() == [False, False, True, True, True, False]
        before = net(inner).calls
        alike(mix(inner)(x, torch.full_like(t, 0.9), {"label": label, "guidance": torch.full((6,), 3.0), **ends}),
              inner(x, torch.full_like(t, 0.9), {"label": label}))  # fmt: skip
        assert net(inner).calls == before + 2  # one of them this test's own


@torch.no_grad()
@pytest.mark.parametrize("phi", [0.0, 0.3, 0.7, 1.0])
def test_rescale_is_diffusers(phi: float) -> None:
    rescale_noise_cfg = pytest.importorskip("diffusers.guiders.guider_utils").rescale_noise_cfg
    inner, (x, t, label) = model(), state()
    one, none = halves(inner, x, t, label)
    truth = rescale_noise_cfg(none.x0 + 6 * (one.x0 - none.x0), one.x0, guidance_rescale=phi)
    p = rescale(inner, phi)(x, t, {"label": label, "guidance": torch.full((5,), 6.0)})
    torch.testing.assert_close(p.x0, truth, rtol=1e-5, atol=1e-6)
    if phi == 1:
        torch.testing.assert_close(p.x0.flatten(1).std(1), one.x0.flatten(1).std(1), rtol=1e-5, atol=1e-6)


def project(v0: Tensor, v1: Tensor) -> tuple[Tensor, Tensor]:
    """As in arXiv:2410.02416, Algorithm 1."""
    dtype = v0.dtype
    v0, v1 = v0.double(), v1.double()
    v1 = nn.functional.normalize(v1, dim=[-1, -2, -3])  # type: ignore[arg-type]
    parallel = (v0 * v1).sum(dim=[-1, -2, -3], keepdim=True) * v1
    return parallel.to(dtype), (v0 - parallel).to(dtype)


def normalized_guidance(cond: Tensor, uncond: Tensor, scale: float, eta: float, norm_threshold: float) -> Tensor:
    """The same, without a momentum buffer."""
    diff = cond - uncond
    if norm_threshold > 0:
        diff_norm = diff.norm(p=2, dim=[-1, -2, -3], keepdim=True)
        diff = diff * torch.minimum(torch.ones_like(diff), norm_threshold / diff_norm)
    parallel, orthogonal = project(diff, cond)
    return cond + (scale - 1) * (orthogonal + eta * parallel)


@torch.no_grad()
@pytest.mark.parametrize(("eta", "norm"), [(0.0, 0.0), (0.0, 1.0), (0.5, 3.0), (-0.5, 0.0), (1.0, 0.0), (1.0, 0.2)])
def test_apg_is_the_authors(eta: float, norm: float) -> None:
    inner, (x, t, label) = model(), state()
    one, none = halves(inner, x, t, label)
    for w in (0.0, 2.5, 8.0):
        cond = {"label": label, "guidance": torch.full((5,), w)}
        p = apg(inner, eta, norm)(x, t, cond)
        truth = normalized_guidance(one.x0, none.x0, w, eta, norm)
        torch.testing.assert_close(p.x0, truth, rtol=1e-5, atol=1e-5)
        if (eta, norm) == (1.0, 0.0):
            torch.testing.assert_close(p.x0, cfg(inner)(x, t, cond).x0, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_without_contrast_nothing_is_divided_by() -> None:
    """A row that is all alike, or zero, or of one value."""

    class Flat(Denoiser):
        schedule, null_cond = SCHEDULE, {"label": torch.tensor([9])}

        def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
            assert cond is not None
            level = (cond["label"] == 9).to(x_t)[:, None].expand_as(x_t)
            return Prediction(level, level)

    for width in (1, 6):
        x, t = torch.ones(2, width), torch.tensor([0.5, 0.7])
        for guidance in (rescale(Flat()), apg(Flat()), apg(Flat(), 0.5, 1.0)):
            p = guidance(x, t, {"label": torch.zeros(2, dtype=torch.long), "guidance": torch.full((2,), 3.0)})
            assert bool(p.x0.isfinite().all())


@torch.no_grad()
def test_autoguidance_is_away_from_the_weaker_model() -> None:
    """Each is asked once, told what a model is told; the null of neither plays a part."""
    inner, weak, (x, t, label) = model(), model(1), state()
    strong, poor = inner(x, t, {"label": label}), weak(x, t, {"label": label})
    p = autoguide(inner, weak)(x, t, {"label": label, "guidance": torch.full((5,), 2.5), "low": torch.zeros(5)})
    torch.testing.assert_close(p.x0, poor.x0 + 2.5 * (strong.x0 - poor.x0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(p.eps, poor.eps + 2.5 * (strong.eps - poor.eps), rtol=1e-5, atol=1e-5)
    assert (net(inner).calls, net(weak).calls) == (2, 2)
    assert net(weak).told == {"label"}
    autoguide(inner, weak)(x, t, {"label": label})
    assert net(weak).calls == 2


@torch.no_grad()
def test_a_weaker_model_of_another_schedule() -> None:
    inner, (x, t, label) = model(), state()
    other = NetworkDenoiser(Net(1), schedules.cosine_continuous(), target="v", time="unit")
    with pytest.raises(
        ValueError, match=r"the weaker model has schedule .*wrap the weaker one in guidance.Rescheduled"
    ):
        autoguide(inner, other)
    p = autoguide(inner, Rescheduled(other, SCHEDULE))(x, t, {"label": label, "guidance": torch.full((5,), 2.0)})
    torch.testing.assert_close(gaussian.perturb(SCHEDULE, p.x0, t, p.eps), x, rtol=0, atol=1e-4)


def test_imagens_threshold() -> None:
    """By numpy, row by row; a row within its limits is left alone."""
    import numpy as np

    class Says(Denoiser):
        schedule = SCHEDULE

        def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
            return Prediction(x_t, x_t, tilt=x_t)

    x = normal(range(3), (3, 8, 8), PRIOR) * torch.tensor([0.2, 1.5, 4.0])[:, None, None, None]
    x[0].clamp_(-1, 1)
    t = torch.tensor([0.2, 0.5, 0.9])
    for percentile in (0.8, 0.995, 1.0):
        p = threshold(Says(), percentile)(x, t)
        for row, said in zip(x.double().numpy(), p.x0, strict=True):
            s = max(np.quantile(np.abs(row), percentile), 1)
            np.testing.assert_allclose(said.numpy(), np.clip(row, -s, s) / s, rtol=1e-5, atol=1e-6)
        assert float(p.x0.abs().max()) <= 1
        assert torch.equal(p.x0[0], x[0])
        torch.testing.assert_close(gaussian.perturb(SCHEDULE, p.x0, t, p.eps), x, rtol=1e-5, atol=1e-5)
        assert p.tilt is not None
    wide = threshold(Says(), 0.9, 1.0, 5.0)(3 + 2 * x, t).x0  # measured from 3, in 2
    torch.testing.assert_close(wide, 3 + 2 * threshold(Says(), 0.9)(x, t).x0, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@settings(max_examples=30)
@given(
    outer=st.sampled_from(sorted(MIXES)),
    inside=st.sampled_from(["none", "clip", "threshold"]),
    outside=st.sampled_from(["none", "clip", "threshold"]),
    w=st.lists(st.sampled_from([1.0, 0.0, 2.0, 7.5, -1.0]), min_size=5, max_size=5),
    low=st.sampled_from([0.0, 0.3, 0.9]),
)
def test_any_composition_keeps_x_t(outer: str, inside: str, outside: str, w: list[float], low: float) -> None:
    limit: dict[str, Callable[[Denoiser], Denoiser]] = {"none": lambda d: d, "clip": clip, "threshold": threshold}
    x, t, label = state()
    denoiser = limit[outside](MIXES[outer](limit[inside](model())))
    p = denoiser(x, t, {"label": label, "guidance": scales(*w), "low": torch.full((5,), low)})
    torch.testing.assert_close(gaussian.perturb(SCHEDULE, p.x0, t, p.eps), x, rtol=0, atol=1e-4)
    if outside != "none":
        assert float(p.x0.abs().max()) <= 1 + 1e-6


@pytest.mark.parametrize("inside", MIXES)
def test_one_guidance_within_another_is_refused(mix: Callable[[Denoiser], Guided], inside: str) -> None:
    """Both would be steered by the same w, of which the inner one is told nothing."""
    with pytest.raises(ValueError, match="two guidances came that both are steered by w"):
        mix(clip(MIXES[inside](model())))
    with pytest.raises(ValueError, match="two guidances came"):
        autoguide(model(), MIXES[inside](model(1)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rescale:phi=1.5", r"option phi of rescale lies in \[0, 1\].*got 1.5"),
        ("apg:norm=-1", "option norm of apg is a length >= 0"),
        ("apg:eta=1e999", "option eta of apg is a finite number"),
    ],
)
def test_options_out_of_range(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call_with("mix", text, {"rescale": rescale, "apg": apg})(model())


@pytest.mark.parametrize("percentile", [0, 1.1, float("nan"), True])
def test_percentiles_out_of_range(percentile: float) -> None:
    with pytest.raises(ValueError, match=r"the percentile of dynamic thresholding lies in \(0, 1\]"):
        threshold(model(), percentile)
    with pytest.raises(ValueError, match="dynamic thresholding needs low < high"):
        threshold(model(), 0.9, 1.0, 1.0)
