"""A guidance by names: the weaker model and the classifier are loaded, and brought to the model's own schedule."""

from __future__ import annotations

from sfumato.classifier import load_classifier
from sfumato.denoiser import Denoiser
from sfumato.guidance import Guide, Rescheduled, rescheduled_classifier
from sfumato.guidance.classifier import Classifier
from sfumato.model import Model, load


def guide(
    model: Model,
    scale: float | None = None,
    *,
    interval: tuple[float, float] = (0.0, 1.0),
    mix: str = "cfg",
    weak: str | None = None,
    classifier: str | None = None,
    classifier_scale: float = 1.0,
    algorithm: int = 2,
    dynamic: float | None = None,
) -> Guide:
    """The `Guide` of these names for a model; scale None is as the model's config says.

    weak: a zoo name, a model folder or a run, of like data.  classifier: a noise-aware one of the zoo, or a folder.
    """
    return Guide(
        model.config.sampling.guidance if scale is None else scale,
        *interval,
        mix=mix,
        weak=None if weak is None else _weaker(model, weak),
        classifier=None if classifier is None else _classifier(model, classifier),
        classifier_scale=classifier_scale,
        algorithm=algorithm,
        dynamic=dynamic,
        told={name: said for name, said in (("weak", weak), ("classifier", classifier)) if said is not None},
    )


def _weaker(model: Model, name: str) -> Denoiser:
    weak = load(name, device=str(model.device))
    if (weak.config.shape, weak.config.conditions) != (model.config.shape, model.config.conditions):
        raise ValueError(
            f"the weaker model {name!r} makes {weak.config.shape} under {weak.config.conditions}, the model "
            f"{model.config.shape} under {model.config.conditions}; they must be alike"
        )
    same = weak.config.schedule == model.config.schedule
    return weak.denoiser if same else Rescheduled(weak.denoiser, model.denoiser.schedule)


def _classifier(model: Model, name: str) -> Classifier:
    found = load_classifier(name)
    if found.schedule is None:
        raise ValueError(f"classifier {name!r} knows clean pictures only; guidance asks a noise-aware one: mnist-noisy")
    if (found.config.shape, found.config.classes) != (model.config.shape, model.config.conditions.classes):
        raise ValueError(
            f"classifier {name!r} sees {found.config.shape} of {found.config.classes} classes, the model makes "
            f"{model.config.shape} of {model.config.conditions.classes}; they must be alike"
        )
    found.net.to(model.device)
    if found.config.schedule == model.config.schedule:
        return found.logits
    return rescheduled_classifier(found.logits, found.schedule, model.denoiser.schedule)
