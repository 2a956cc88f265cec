"""Guidance: a Denoiser that wraps another and bends what it says.

A guidance is two pure functions,

    expand(query) -> queries              what has to be asked of the inner denoiser
    combine(query, predictions) -> Prediction

and `Guided` composes them with one joint call, so guidances nest.  Scales travel in cond, one value a row.
"""

from sfumato.guidance.cfg import cfg
from sfumato.guidance.clip import clip
from sfumato.guidance.guided import Guidance, Guided
from sfumato.guidance.reschedule import Rescheduled

__all__ = ["Guidance", "Guided", "Rescheduled", "cfg", "clip"]
