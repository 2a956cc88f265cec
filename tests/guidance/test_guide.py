"""A Guide: what a user may say, the Denoiser it makes, what rows are told, and how it is written down."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato import schedules
from sfumato.denoiser import Denoiser
from sfumato.guidance import Guide, apg, autoguide, cfg, classifier_eps, classifier_mean, clip, rescale, threshold
from sfumato.noise import PRIOR, normal
from sfumato.testbed import GaussianMixture
from sfumato.testbed.guided import Labelled

SCHEDULE = schedules.rectified()
LABELLED = Labelled(
    GaussianMixture(torch.ones(2), torch.tensor([[0.8, 0.1], [-0.5, 0.6]]), 0.3 * torch.eye(2).expand(2, 2, 2)), [0, 1]
)
INNER, CLASSIFIER = LABELLED.denoiser(SCHEDULE), LABELLED.classifier(SCHEDULE)
WEAK = LABELLED.mixture.denoiser(SCHEDULE)
LIMITS = (-1.0, 1.0)

MADE: list[tuple[dict[str, Any], Denoiser]] = [
    ({"scale": 3}, clip(cfg(INNER))),
    ({"scale": 3, "low": 0.2, "high": 0.7}, clip(cfg(INNER))),
    ({"scale": 2.0, "mix": "rescale:phi=0.4"}, clip(rescale(INNER, 0.4))),
    ({"scale": 2.0, "mix": "apg:eta=0,norm=15"}, clip(apg(INNER, 0, 15))),
    ({"scale": 2.0, "weak": WEAK, "dynamic": 0.9}, threshold(autoguide(INNER, WEAK), 0.9)),
    ({"classifier": CLASSIFIER, "classifier_scale": 4.0}, clip(classifier_eps(cfg(INNER), CLASSIFIER))),
    ({"scale": 0, "classifier": CLASSIFIER, "algorithm": 1}, clip(classifier_mean(cfg(INNER), CLASSIFIER))),
]


@pytest.mark.parametrize(("said", "by_hand"), MADE)
def test_it_wraps_as_one_would_by_hand(said: dict[str, Any], by_hand: Denoiser) -> None:
    guide = Guide(**said)
    x, t = 2 * normal(range(4), (2,), PRIOR).double(), torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    cond = {"label": torch.tensor([0, 1, 0, 1]), "tilt": torch.ones(4), **guide.cond(4)}
    ours, theirs = guide.wrap(INNER, LIMITS)(x, t, cond), by_hand(x, t, cond)
    for a, b in ((ours.x0, theirs.x0), (ours.eps, theirs.eps), (ours.tilt, theirs.tilt)):
        assert a is b is None or torch.equal(a, b)
    assert not torch.equal(ours.x0 if ours.tilt is None else ours.tilt, INNER(x, t, cond).x0)


def test_without_limits_nothing_is_clipped() -> None:
    x, t, label = 5 * torch.ones(2, 2), torch.tensor([0.5, 0.2]), {"label": torch.tensor([0, 1])}
    assert torch.equal(Guide().wrap(INNER, None)(x, t, label).x0, INNER(x, t, label).x0)
    with pytest.raises(ValueError, match="holds x_0 in its limits, and here are none; leave dynamic out"):
        Guide(dynamic=0.9).wrap(INNER, None)


def test_rows_are_told_only_what_is_not_neutral() -> None:
    def told(**said: Any) -> dict[str, list[float]]:
        return {name: value.tolist() for name, value in Guide(**said).cond(2).items()}

    assert told() == {}
    assert told(scale=1, classifier=CLASSIFIER, classifier_scale=0) == {}
    assert told(scale=3, low=0.1) == {"guidance": [3, 3], "low": [0.1, 0.1]}
    assert told(high=0.7, classifier=CLASSIFIER) == {"high": [0.7, 0.7], "classifier": [1, 1]}
    assert all(value.dtype == torch.float64 for value in Guide(scale=2).cond(1).values())


def test_it_is_written_down() -> None:
    names = {"weak": "mnist at step 1000", "classifier": "mnist-noisy"}
    for guide, said in [
        (Guide(2), {"scale": 2, "low": 0.0, "high": 1.0, "mix": "cfg"}),
        (Guide(2, weak=WEAK, told=names), {"scale": 2, "low": 0.0, "high": 1.0, "weak": "mnist at step 1000"}),
        (Guide(2, weak=WEAK, dynamic=0.9), {"scale": 2, "low": 0.0, "high": 1.0, "weak": "unnamed", "dynamic": 0.9}),
        (
            Guide(classifier=CLASSIFIER, classifier_scale=5, algorithm=1, told=names, mix="rescale"),
            {"scale": 1.0, "low": 0.0, "high": 1.0, "mix": "rescale", "classifier": "mnist-noisy",
             "classifier_scale": 5, "algorithm": 1},
        ),
    ]:  # fmt: skip
        assert json.loads(json.dumps(guide.document())) == said


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"scale": float("nan")}, "guidance: scale is a finite number; got nan"),
        ({"scale": True}, "guidance: scale is a finite number; got True"),
        ({"scale": "2"}, "guidance: scale is a finite number; got '2'"),
        ({"low": 0.5, "high": 0.5}, "guidance acts where low < t <= high, 0 <= low < high <= 1; got 0.5, 0.5"),
        ({"low": -0.1}, "0 <= low < high <= 1; got -0.1, 1.0"),
        ({"high": 1.5}, "got 0.0, 1.5"),
        ({"mix": "rescaled"}, "unknown guidance mix 'rescaled'; did you mean 'rescale'"),
        ({"mix": "rescale:psi=1"}, "unknown option of guidance mix rescale 'psi'"),
        ({"mix": "apg", "weak": WEAK}, "a weaker model has no null to mix; got mix 'apg'"),
        ({"classifier": CLASSIFIER, "algorithm": 3}, "by algorithm 1 or 2; got 3"),
        ({"classifier_scale": 5.0}, "classifier_scale 5 by algorithm 2 was asked without a classifier"),
        ({"algorithm": 1}, "by algorithm 1 was asked without a classifier"),
        ({"classifier": CLASSIFIER, "classifier_scale": float("inf")}, "classifier_scale is a finite number"),
        ({"dynamic": 1.5}, "the percentile of dynamic thresholding"),
        ({"told": {"week": "a"}}, r"told names 'weak' and 'classifier'; got \['week'\]"),
    ],
)
def test_what_does_not_fit_is_answered_in_one_line(said: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as told:
        Guide(**said)
    assert "\n" not in str(told.value)


def test_a_mixed_batch_under_one_guide() -> None:
    """Rows of users of other scales, under the wrappers of all, are what they are alone."""
    wrapped = Guide(classifier=CLASSIFIER).wrap(INNER, LIMITS)
    x, t, y = normal(range(3), (2,), PRIOR), torch.tensor([0.3, 0.5, 0.9]), torch.tensor([0, 1, 0])

    def rows(s: slice) -> dict[str, Tensor]:
        cond = {"guidance": torch.tensor([1.0, 3.0, 0.5]), "classifier": torch.tensor([0.0, 0.0, 2.0]), "label": y}
        return {name: value[s] for name, value in cond.items()}

    whole = wrapped(x, t, rows(slice(None)))
    for b in range(3):
        s = slice(b, b + 1)
        alone = wrapped(x[s], t[s], rows(s))
        torch.testing.assert_close(whole.x0[s], alone.x0, rtol=0, atol=1e-5)
        torch.testing.assert_close(whole.eps[s], alone.eps, rtol=0, atol=1e-5)
