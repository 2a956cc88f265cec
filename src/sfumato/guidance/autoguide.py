"""Autoguidance: away from what a weaker model says, past what the good one says.

    x0 = x0_weak + w (x0 - x0_weak),   and eps likewise                                                    (1)

for a smaller or less trained model of the same data and conditions, whose mistakes are those of the good one, only
larger.  So, unlike `cfg`, this draws towards good pictures and not towards the class, and needs no null.  w and its
interval are those of `cfg`; where every row has w = 1 the weaker model is not asked.

It is another network, so it is asked by itself, in `combine`, and (1) costs one call of each.

T. Karras et al., "Guiding a Diffusion Model with a Bad Version of Itself", arXiv:2406.02507, eq. (3)
"""

from __future__ import annotations

from collections.abc import Sequence

from sfumato.asking import Query, ask
from sfumato.denoiser import Denoiser, Prediction
from sfumato.guidance.cfg import TOLD, lerp, mixed, scale, unsteered
from sfumato.guidance.guided import Guidance, Guided, without


def autoguide(inner: Denoiser, weak: Denoiser) -> Guided:
    """`inner` under (1); both have one schedule."""
    if weak.schedule.spec != inner.schedule.spec:
        raise ValueError(
            f"the weaker model has schedule {weak.schedule.spec}, the model {inner.schedule.spec}; they must be alike: "
            "wrap the weaker one in guidance.Rescheduled(weak, model's schedule)"
        )

    unsteered(inner)
    unsteered(weak)

    def combine(query: Query, predictions: Sequence[Prediction]) -> Prediction:
        if scale(query) is None:
            return predictions[0]
        (weaker,) = ask(weak, [without(query, *TOLD)])
        return mixed(lerp, query, predictions[0], weaker)

    return Guided(inner, Guidance(lambda query: [without(query, *TOLD)], combine), steers=True)
