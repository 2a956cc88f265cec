"""Feature networks by name: Inception-v3, EfficientNet-Lite0, or a classifier of the zoo or of a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sfumato.classifier import find, load_classifier
from sfumato.metrics.efficientnet import efficientnet_lite0
from sfumato.metrics.features import FeatureNetwork, Seen, fingerprint
from sfumato.metrics.inception import inception_fid

NETWORKS: dict[str, Callable[[Path | None], FeatureNetwork]] = {
    "inception-fid": inception_fid,
    "efficientnet-lite0": efficientnet_lite0,
}


def feature_network(name: str | Path, weights: str | Path | None = None) -> FeatureNetwork:
    """A row of NETWORKS, else the classifier of that name in the zoo, or in that folder.

    weights: a file, for inception-fid.  ValueError in one line for a name that is neither, and for weights or wheels
    that are not there.
    """
    if str(name) in NETWORKS:
        return NETWORKS[str(name)](None if weights is None else Path(weights))
    if weights is not None:
        raise ValueError(f"weights {weights} came with features {name}; only inception-fid takes a file of weights")
    return _classifier(name)


def _classifier(name: str | Path) -> FeatureNetwork:
    try:
        classifier = load_classifier(name)
    except ValueError as error:
        raise ValueError(f"features {name} are none of {', '.join(NETWORKS)}, and no classifier: {error}") from error

    def look(images: np.ndarray) -> Seen:
        features, log_probs = classifier.look(images)
        return Seen(features, log_probs)

    file = find(name) / "model.safetensors"
    weights = fingerprint(file.read_bytes()) if file.is_file() else ""  # its writer was killed between two renames
    about = classifier.config
    learned = f"the training part of {about.data.get('name', 'data unknown')}"
    accuracy = about.training.get("scores", {}).get("accuracy")
    if accuracy is not None:
        learned += f" (labels rightly named on the held-out part: {accuracy:.2%})"
    return FeatureNetwork(str(name), f"FD({name})", look, about.label_names, weights, learned)
