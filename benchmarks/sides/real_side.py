"""Real training pictures in the place of samples: the floor, fixed before anything is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sfumato.tasks.scores import real_pictures

from .. import shared
from ..terms import Options


def drawn(options: Options, folder: Path) -> np.ndarray:
    """Classes in turn, as samples have them."""
    splits = shared.pictures("mnist")
    ((images, _),) = real_pictures(splits.train, splits.info, options["n"])
    return images
