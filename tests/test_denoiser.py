"""A network becomes a Denoiser: it is told the right time, shown the right input, and its answer is solved rightly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sfumato import gaussian, schedules
from sfumato import parameterization as par
from sfumato.denoiser import TIMES, Cond, NetworkDenoiser, Prediction, from_x0
from sfumato.parameterization import TARGETS
from sfumato.schedules import Schedule


class Spy:
    """A network that remembers what it was shown, and answers with what it was given."""

    def __init__(self, answer: Tensor):
        self.answer = answer

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        self.x, self.t, self.cond = x, t, cond
        return self.answer


def test_a_network_that_says_the_truth(schedule: Schedule) -> None:
    """For every target: told y = a x0 + b eps, the Denoiser gives x0 and eps back."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64, generator=generator)
    t = torch.tensor([1 / 6, 0.5, 5 / 6], dtype=torch.float64)
    x_t = gaussian.perturb(schedule, x0, t, eps)
    for target in TARGETS:
        try:
            par.check(target, schedule)
        except ValueError:
            continue
        spy = Spy(par.to_target(target, schedule, t, x0, eps))
        p = NetworkDenoiser(spy, schedule, target=target, time="unit")(x_t, t, {"label": torch.arange(3)})
        torch.testing.assert_close(p.x0, x0, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(p.eps, eps, rtol=1e-9, atol=1e-10)
        assert p.variance_mix is None
        assert p.x0_variance is None
        torch.testing.assert_close(spy.x, par.scaled_input(target, schedule, t, x_t))
        assert spy.cond is not None
        assert spy.cond["label"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 3, 10, 1000, 4000])
def test_index_is_diffusers_integer(steps: int, dtype: torch.dtype) -> None:
    """t = i/T is told as exactly i - 1, even where float32 makes t T a little less than i."""
    schedule = schedules.from_betas([0.001] * steps)
    spy = Spy(torch.zeros(steps, 1))
    t = torch.arange(1, steps + 1).to(dtype) / steps
    NetworkDenoiser(spy, schedule)(torch.zeros(steps, 1), t)
    assert spy.t.dtype == torch.float32
    assert torch.equal(spy.t, torch.arange(steps).float())


def test_the_other_times() -> None:
    schedule, spy = schedules.rectified(), Spy(torch.zeros(3, 1))
    t = torch.tensor([1e-9, 0.25, 1.0], dtype=torch.float64)
    NetworkDenoiser(spy, schedule, target="v", time="unit")(torch.zeros(3, 1), t)
    assert torch.equal(spy.t, t.float())
    NetworkDenoiser(spy, schedule, target="v", time="logsnr")(torch.zeros(3, 1), t)
    torch.testing.assert_close(spy.t, torch.tensor([30.0, 2 * torch.tensor(3.0).log(), -30.0]))
    NetworkDenoiser(spy, schedule, target="v", time="c_noise")(torch.zeros(3, 1), t)  # EDM's log(sigma)/4
    torch.testing.assert_close(spy.t, torch.tensor([-4.0, -torch.tensor(3.0).log() / 4, 4.0]))
    NetworkDenoiser(spy, schedule, target="v", time="none")(torch.zeros(3, 1), t)
    assert spy.t.tolist() == [0, 0, 0]
    assert set(TIMES) == {"index", "unit", "logsnr", "c_noise", "none"}


def test_learned_variance_halves_the_channels() -> None:
    schedule = schedules.cosine(10)
    y = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.3, 0.9], dtype=torch.float64)
    x_t = torch.ones(2, 3, 4, 4)
    p = NetworkDenoiser(Spy(y), schedule, learned_variance=True)(x_t, t)
    plain = NetworkDenoiser(Spy(y[:, :3]), schedule)(x_t, t)
    assert torch.equal(p.x0, plain.x0)
    assert p.variance_mix is not None
    torch.testing.assert_close(p.variance_mix, (y[:, 3:] + 1) / 2)


@pytest.mark.parametrize("learned", [False, True])
def test_an_answer_of_the_wrong_shape_is_refused(learned: bool) -> None:
    channels = 3 if learned else 6
    denoiser = NetworkDenoiser(Spy(torch.zeros(2, channels, 4, 4)), schedules.cosine(10), learned_variance=learned)
    with pytest.raises(ValueError, match=r"the network answered \(2, .*x_t of \(2, 3, 4, 4\)"):
        denoiser(torch.zeros(2, 3, 4, 4), torch.tensor([0.5, 0.5]))


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        y = self.layer(x)
        self.seen += [x.dtype, t.dtype, y.dtype]
        return y


def test_the_states_precision_is_kept_whatever_the_networks() -> None:
    """float32 in and out under bfloat16 autocast, a bfloat16 network and a float64 state; times stay float32."""
    schedule, t = schedules.cosine(10), torch.tensor([0.3, 1.0], dtype=torch.float64)
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    for net, autocast, x_t, seen in [
        (Linear(), None, x, [torch.float32, torch.float32, torch.float32]),
        (Linear(), torch.bfloat16, x, [torch.float32, torch.float32, torch.bfloat16]),
        (Linear().bfloat16(), None, x, [torch.bfloat16, torch.float32, torch.bfloat16]),
        (Linear(), None, x.double(), [torch.float32, torch.float32, torch.float32]),
    ]:
        p = NetworkDenoiser(net, schedule, target="v", autocast=autocast)(x_t, t)
        assert p.x0.dtype == p.eps.dtype == x_t.dtype
        assert net.seen == seen


def test_from_x0_keeps_x_t(schedule: Schedule) -> None:
    x_t, x0 = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([0.2, 0.6, 1.0])
    p = from_x0(schedule, x_t, t, x0)
    assert isinstance(p, Prediction)
    assert p.x0 is x0
    torch.testing.assert_close(gaussian.perturb(schedule, p.x0, t, p.eps), x_t, rtol=1e-12, atol=1e-12)


def test_mistakes_are_answered() -> None:
    def net(x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        return x

    with pytest.raises(ValueError, match=r"unknown target 'epsilon'; did you mean 'eps'"):
        NetworkDenoiser(net, schedules.cosine(10), target="epsilon")
    with pytest.raises(ValueError, match=r"unknown time 'indx'; did you mean 'index'"):
        NetworkDenoiser(net, schedules.cosine(10), time="indx")
    with pytest.raises(ValueError, match=r"time 'index' needs a T-step schedule.*'edm'.*take 'unit' or 'logsnr'"):
        NetworkDenoiser(net, schedules.edm())
    with pytest.raises(ValueError, match=r"target 'eps' with schedule 'rectified' is refused"):
        NetworkDenoiser(net, schedules.rectified(), time="unit")
