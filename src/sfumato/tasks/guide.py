"""A guidance by names: the weaker model and the classifier are loaded, and brought to the model's own schedule."""

from __future__ import annotations

from sfumato.classifier import load_classifier
from sfumato.denoiser import Denoiser
from sfumato.guidance import Guide, Rescheduled, rescheduled_classifier
from sfumato.guidance.classifier import Logits
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
    w = model.config.sampling.guidance if scale is None else scale
    if w == 1 and (weak, mix, interval) != (None, "cfg", (0.0, 1.0)):
        raise ValueError(
            "a weaker model, a mix and an interval say how the scale w of guidance acts, and w is 1, which is none; "
            "give guidance other than 1, or leave them out"
        )
    return Guide(
        w,
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
    weak = load(name, precision=model.precision, device=str(model.device))
    for key in ("kind", "shape", "codec", "conditions", "label_names", "source"):
        theirs, ours = getattr(weak.config, key), getattr(model.config, key)
        if theirs != ours:
            raise ValueError(f"the weaker model {name!r} has {key} {theirs}, the model {ours}; they must be alike")
    if weak.config.schedule == model.config.schedule:
        return weak.denoiser
    for whose in (weak, model):
        _check_gaussian(whose, "a weaker model of another schedule")
    return Rescheduled(weak.denoiser, model.denoiser.schedule)


def _check_gaussian(model: Model, what: str) -> None:
    if not model.config.gaussian or model.config.conditions.span:
        raise ValueError(
            f"{what} goes with models that denoise plain Gaussian noise, and a model here is a bridge, of average "
            "velocities, or of another forward process; leave it out"
        )


def _classifier(model: Model, name: str) -> Logits:
    found = load_classifier(name)
    if found.schedule is None:
        raise ValueError(f"classifier {name!r} knows clean pictures only; guidance asks a noise-aware one: mnist-noisy")
    _check_gaussian(model, "guidance by a classifier")
    for key in ("shape", "codec", "label_names"):
        theirs, ours = getattr(found.config, key), getattr(model.config, key)
        if theirs != ours:
            raise ValueError(f"classifier {name!r} has {key} {theirs}, the model {ours}; they must be alike")
    found.net.to(model.device)
    if found.config.schedule == model.config.schedule:
        return found.logits
    return rescheduled_classifier(found.logits, found.schedule, model.denoiser.schedule)
