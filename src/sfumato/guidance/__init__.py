"""Guidance: a Denoiser that wraps another and bends what it says.

A guidance is two pure functions,

    expand(query) -> queries              what has to be asked of the inner denoiser
    combine(query, predictions) -> Prediction

and `Guided` composes them with one joint call, so guidances nest.  Scales travel in cond, one value a row.  `Guide` is
a user's choice of them, put together.
"""

from sfumato.guidance.apg import apg
from sfumato.guidance.autoguide import autoguide
from sfumato.guidance.cfg import cfg
from sfumato.guidance.classifier import Logits, classifier_eps, classifier_mean
from sfumato.guidance.clip import clip
from sfumato.guidance.guide import MIXES, Guide
from sfumato.guidance.guided import Guidance, Guided
from sfumato.guidance.rescale import rescale
from sfumato.guidance.reschedule import Rescheduled, rescheduled_classifier
from sfumato.guidance.threshold import threshold

__all__ = [
    "MIXES",
    "Guidance",
    "Guide",
    "Guided",
    "Logits",
    "Rescheduled",
    "apg",
    "autoguide",
    "cfg",
    "classifier_eps",
    "classifier_mean",
    "clip",
    "rescale",
    "rescheduled_classifier",
    "threshold",
]
