"""Several queries in one call of the denoiser: joined row by row, and each answered as it would be alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sfumato import schedules
from sfumato.asking import NEUTRAL, Query, ask
from sfumato.denoiser import Cond, Denoiser, Prediction


class Rows(Denoiser):
    """Every row's answer is a function of that row alone; it keeps what it was asked."""

    def __init__(self, null_cond: Cond, mix: bool = False):
        self.schedule, self.null_cond, self.mix = schedules.rectified(), null_cond, mix
        self.asked: list[tuple[Tensor, Tensor, Cond | None]] = []

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        self.asked.append((x_t, t, cond))
        told = sum((c.to(x_t).flatten(1).sum(1) if c.ndim > 1 else c.to(x_t) for c in (cond or {}).values()), t.to(x_t))
        x0 = x_t * 0.5 + told.reshape(-1, *[1] * (x_t.ndim - 1))
        return Prediction(x0, -x0, x0.square() if self.mix else None, None)


NULL = {"label": torch.tensor([7]), "context": torch.zeros(1, 1, 2), "image": torch.zeros(1, 3)}
ONE = Query(
    torch.arange(6.0).reshape(2, 3), torch.tensor(0.5, dtype=torch.float64), cond={"label": torch.tensor([1, 2])}
)
TWO = Query(-torch.arange(3.0)[None], torch.tensor([0.25]), cond={"guidance": torch.tensor([3.0])})
SILENT = Query(torch.ones(2, 3), torch.tensor([0.1, 0.9]))


@pytest.mark.parametrize("mix", [False, True])
def test_what_is_asked_together_is_one_call_and_answered_as_alone(mix: bool) -> None:
    denoiser = Rows(NULL, mix)
    answers = ask(denoiser, [ONE, TWO, SILENT])
    assert len(denoiser.asked) == 1
    x, t, cond = denoiser.asked[0]
    assert torch.equal(x, torch.cat([ONE.x, TWO.x, SILENT.x]))
    torch.testing.assert_close(t, torch.tensor([0.5, 0.5, 0.25, 0.1, 0.9], dtype=torch.float64))
    assert cond is not None
    assert {name: c.tolist() for name, c in cond.items()} == {"label": [1, 2, 7, 7, 7], "guidance": [1, 1, 3, 1, 1]}
    full = [
        {"label": torch.tensor([1, 2]), "guidance": torch.ones(2)},
        {"label": torch.tensor([7]), "guidance": torch.tensor([3.0])},
        {"label": torch.tensor([7, 7]), "guidance": torch.ones(2)},
    ]
    for query, told, answer in zip((ONE, TWO, SILENT), full, answers, strict=True):
        alone = denoiser(query.x, query.t.expand(len(query.x)), told)
        torch.testing.assert_close(answer.x0, alone.x0)
        torch.testing.assert_close(answer.eps, alone.eps)
        assert (answer.variance_mix is not None) == mix
        assert answer.x0_variance is None
        if mix:
            torch.testing.assert_close(answer.variance_mix, alone.variance_mix)


def test_one_query_is_asked_as_it_is() -> None:
    """One t for all rows becomes one a row; nothing is told that nobody said; nothing asked is no call."""
    denoiser = Rows(NULL)
    (answer,) = ask(denoiser, [ONE])
    x, t, cond = denoiser.asked[0]
    assert x is ONE.x
    assert t.tolist() == [0.5, 0.5]
    assert cond == ONE.cond
    assert torch.equal(answer.x0, denoiser(ONE.x, t, ONE.cond).x0)
    ask(denoiser, [SILENT])
    assert denoiser.asked[-1][2] is None
    ask(denoiser, [SILENT, SILENT])
    assert denoiser.asked[-1][2] is None


def test_where_a_sampler_goes_travels_as_a_span() -> None:
    """t - s, one value a row; 0 for those that do not say."""
    denoiser = Rows({})
    far = Query(torch.zeros(2, 3), torch.tensor([1.0, 0.75]), s=torch.tensor(0.25))
    ask(denoiser, [far])
    cond = denoiser.asked[-1][2]
    assert cond is not None
    assert cond["span"].tolist() == [0.75, 0.5]
    ask(denoiser, [SILENT, far])
    cond = denoiser.asked[-1][2]
    assert cond is not None
    assert set(cond) == {"span"}
    assert cond["span"].tolist() == [0, 0, 0.75, 0.5]


def test_what_a_sampler_can_do_with_a_tilt_travels_too() -> None:
    """1 for those that can, 0 for those that do not say; and the tilt of an answer is split as its other parts are."""
    denoiser = Rows({})
    can = Query(torch.zeros(1, 3), torch.tensor([0.5]), tilt=True)
    ask(denoiser, [can])
    cond = denoiser.asked[-1][2]
    assert cond is not None
    assert {name: value.tolist() for name, value in cond.items()} == {"tilt": [1]}
    ask(denoiser, [SILENT, can])
    cond = denoiser.asked[-1][2]
    assert cond is not None
    assert {name: value.tolist() for name, value in cond.items()} == {"tilt": [0, 0, 1]}

    class Tilted(Denoiser):
        schedule = schedules.rectified()

        def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
            return Prediction(x_t, x_t, tilt=3 * x_t)

    for query, answer in zip((SILENT, ONE), ask(Tilted(), [SILENT, replace(ONE, cond=None)]), strict=True):
        assert answer.tilt is not None
        assert torch.equal(answer.tilt, 3 * query.x)


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_neutral_values_need_no_null(name: str) -> None:
    denoiser = Rows({})
    ask(denoiser, [SILENT, Query(torch.zeros(1, 3), torch.tensor([0.5]), cond={name: torch.tensor([0.7])})])
    cond = denoiser.asked[-1][2]
    assert cond is not None
    assert cond[name].tolist() == [NEUTRAL[name], NEUTRAL[name], pytest.approx(0.7)]


def test_shorter_contexts_are_padded_with_zeros() -> None:
    denoiser, some = Rows(NULL), torch.arange(1.0, 13.0)
    short = Query(torch.zeros(2, 3), torch.tensor([0.5, 0.6]), cond={"context": some[:4].reshape(2, 1, 2)})
    long = Query(torch.zeros(1, 3), torch.tensor([0.7]), cond={"context": some[:6].reshape(1, 3, 2)})
    ask(denoiser, [short, SILENT, long])
    cond = denoiser.asked[-1][2]
    assert cond is not None
    assert cond["context"].tolist() == [
        [[1, 2], [0, 0], [0, 0]],
        [[3, 4], [0, 0], [0, 0]],
        [[0, 0], [0, 0], [0, 0]],
        [[0, 0], [0, 0], [0, 0]],
        [[1, 2], [3, 4], [5, 6]],
    ]


def test_a_condition_of_some_rows_that_has_no_null_is_refused() -> None:
    with pytest.raises(ValueError, match=r"condition 'label' is given for some rows only, and the model has no null"):
        ask(Rows({}), [ONE, SILENT])
    ask(Rows({}), [ONE, ONE])  # given for all rows it needs none


def test_each_is_answered_in_its_own_dtype() -> None:
    denoiser = Rows(NULL, mix=True)
    double = Query(ONE.x.double() / 3, ONE.t, cond=ONE.cond)
    answers = ask(denoiser, [ONE, double])
    assert denoiser.asked[-1][0].dtype == torch.float64
    for answer, dtype in zip(answers, (torch.float32, torch.float64), strict=True):
        assert answer.x0.dtype == answer.eps.dtype == dtype
        assert answer.variance_mix is not None
        assert answer.variance_mix.dtype == dtype
    torch.testing.assert_close(answers[1].x0, double.x / 2 + 0.5 + torch.tensor([[1.0], [2.0]]), rtol=1e-15, atol=1e-15)


def test_pictures_are_null_as_pictures() -> None:
    """A null of shape (1, ...) is one for every silent row, in the dtype of what is given."""
    denoiser = Rows(NULL)
    seen = Query(torch.zeros(1, 3), torch.tensor([0.5]), cond={"image": torch.tensor([[1.0, 2.0, 3.0]]).double()})
    ask(denoiser, [SILENT, seen])
    cond = denoiser.asked[-1][2]
    assert cond is not None
    assert cond["image"].dtype == torch.float64
    assert cond["image"].tolist() == [[0, 0, 0], [0, 0, 0], [1, 2, 3]]
