"""Feature networks: what a picture is turned into before two sets of pictures are compared.

A score of pictures is a score of their features, and says nothing without the network's name.  By the field's usage

    FID             is the Frechet distance of Inception-v3 features with the FID weights, and of nothing else;
    FD(<features>)  is the same distance by any other network;
    Inception Score is that of the same Inception-v3's log-probabilities, else it is a "classifier score".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

FID = "FID"


@dataclass(frozen=True)
class Seen:
    """What a network makes of N pictures: features (N, D) and log_probs (N, K), both float32; None: no classes."""

    features: np.ndarray
    log_probs: np.ndarray | None


@dataclass(frozen=True)
class FeatureNetwork:
    """A name, how a Frechet distance by it is called, and `look(images uint8 (N, H, W, C in {1, 3})) -> Seen`.

    label_names: the data's own labels that the log_probs are about, in their order; none if they are about other
        classes (ImageNet's) or there are none.
    weights: the `fingerprint` of its weights, since a name may come to mean others; "" if not known.
    learned: what it was trained on, where that is data of ours, and what it is worth on the rest; else "".
    """

    name: str
    title: str
    look: Callable[[np.ndarray], Seen]
    label_names: tuple[str, ...] = ()
    weights: str = ""
    learned: str = ""

    @property
    def classes(self) -> int:
        """How many of the data's own labels it knows."""
        return len(self.label_names)

    def own_labels(self, labels: np.ndarray | None, names: Sequence[str]) -> np.ndarray | None:
        """Labels (N,) of classes of these names as numbers of its own classes; None if its classes are others."""
        if labels is None or not names or len(names) != self.classes or set(names) != set(self.label_names):
            return None
        return np.array([self.label_names.index(name) for name in names])[labels]

    @property
    def classifier_title(self) -> str:
        """How exp E KL(p(y|x) || p(y)) by this network is called."""
        return "Inception Score" if self.title == FID else f"classifier score ({self.name})"


def fingerprint(content: bytes) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a file of weights."""
    return hashlib.sha256(content).hexdigest()[:16]


def rgb(images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, C) with C = 1 or 3 -> (N, H, W, 3): grey pictures are repeated.  ValueError for anything else."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(
            f"pictures came as {images.dtype} {images.shape}; allowed is uint8 (N, H, W, C) with C = 1 or 3"
        )
    return np.array(np.broadcast_to(images, (*images.shape[:3], 3)))


def look_in_batches(forward: Callable[[Tensor], tuple[Tensor, Tensor]], images: np.ndarray, batch: int) -> Seen:
    """`forward(uint8 (B, 3, H, W)) -> (features (B, D), logits (B, K))` over all pictures, without gradients.

    The log-probabilities are the logits', normalised in float64.
    """
    import torch

    features, log_probs = [], []
    with torch.inference_mode():
        for start in range(0, max(len(images), 1), batch):
            part = rgb(images[start : start + batch])
            seen, logits = forward(torch.from_numpy(part).permute(0, 3, 1, 2))
            features.append(seen.float().cpu())
            log_probs.append(logits.double().log_softmax(1).float().cpu())
    return Seen(torch.cat(features).numpy(), torch.cat(log_probs).numpy())


def rows(features: np.ndarray, dimension: int | None = None) -> np.ndarray:
    """Features (N, D) as float64.  ValueError if they are no such rows, not of `dimension`, or not finite."""
    if features.ndim != 2 or not features.shape[1]:
        raise ValueError(f"features came as {features.shape}; allowed is (N, D)")
    if dimension is not None and features.shape[1] != dimension:
        raise ValueError(
            f"features have {features.shape[1]} dimensions, the reference's have {dimension}; use one network"
        )
    if not np.isfinite(features).all():
        raise ValueError("features have values that are not finite; look at the pictures, or at the network's weights")
    return features.astype(np.float64)


def gather(parts: list[np.ndarray], least: int) -> np.ndarray:
    """All updated rows in one array (N, D); ValueError if there are fewer than `least`."""
    found = sum(map(len, parts))
    if found < least:
        raise ValueError(f"{found} rows were given, at least {least} are needed; call update(features) with more")
    return np.concatenate(parts)
