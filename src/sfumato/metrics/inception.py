"""Inception-v3 with the FID weights: the one network whose Frechet distance is called FID.

Network and preprocessing (TensorFlow 1's bilinear enlargement to 299 x 299, (x - 128)/128, average pooling without the
padding) are torch-fidelity's, which reproduces the original graph.  Features are the 2048 pooled ones; the
log-probabilities are those of "logits_unbiased", the 1008 outputs without their bias, as the Inception Score's original
code and torch-fidelity have them.

Nothing is fetched: the weights are read from torch's cache, $TORCH_HOME/hub/checkpoints, or from a given file, and only
as tensors.  Whether they are the FID weights is told by the file's SHA-256, and by nothing else: with any other file
the network has another name, and its distance is no FID.

M. Heusel et al., arXiv:1706.08500; T. Salimans et al., arXiv:1606.03498
A. Obukhov et al., "High-fidelity performance metrics for generative models in PyTorch" (torch-fidelity, 2020)
"""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

from sfumato.metrics.features import FID, FeatureNetwork, Seen, fingerprint, look_in_batches
from sfumato.options import install

NAME = "inception-fid"
SHA256 = "6726825d"  # of the FID weights, its beginning, which their file name bears
FILE = f"weights-inception-2015-12-05-{SHA256}.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
LAYERS = ["2048", "logits_unbiased"]
BATCH = 32


def weights_file(weights: Path | None) -> Path:
    """The given file, else the cache's.  ValueError, naming file and url, if it is not there."""
    import torch

    cached = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    file = cached if weights is None else Path(weights)
    if not file.is_file():
        raise ValueError(
            f"features {NAME} need the weights {file}, which is not there; fetch {URL} to {cached}, or give its file"
        )
    return file


def _network(content: bytes, file: Path) -> Any:
    """torch-fidelity's network with the weights in `content`, the bytes of `file`."""
    import torch

    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ValueError(f"features {NAME} need {error.name}, which is missing; {install('features')}") from None
    # torch-fidelity unpickles what it is given without restraint, so it is given tensors that were read with restraint.
    safe = io.BytesIO()
    try:
        torch.save(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), safe)
        safe.seek(0)
        return FeatureExtractorInceptionV3(NAME, LAYERS, feature_extractor_weights_path=safe)
    except (RuntimeError, TypeError, AttributeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{file} holds no weights of torch-fidelity's Inception-v3 ({reason}); fetch {URL}") from None


def inception_fid(weights: Path | None = None) -> FeatureNetwork:
    """The FeatureNetwork with the FID weights; with others in the file it is inception-<their SHA-256>, and no FID."""
    import torch

    file = weights_file(weights)
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = _network(content, file).to(device)

    def forward(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features, logits = net(pictures.to(device))
        return features, logits

    def look(images: Any) -> Seen:
        return look_in_batches(forward, images, BATCH)

    if digest.startswith(SHA256):
        return FeatureNetwork(NAME, FID, look, weights=fingerprint(content))
    other = f"inception-{digest[:8]}"
    return FeatureNetwork(other, f"FD({other})", look, weights=fingerprint(content))
