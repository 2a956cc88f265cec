"""What `sfumato train RECIPE` takes: the run's own fields, and where and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from sfumato.train import Run


@dataclass(frozen=True)
class TrainArguments:
    run: Annotated[Run, tyro.conf.arg(name="")] = field(default_factory=Run)
    out: Path = Path("runs/run")
    """Where everything goes; give the same again to resume."""
    init: str | None = None
    """Start from the weights of this MODEL, whose network, schedule and target are taken over."""
    dry_run: bool = False
    """Print the plan (parameters, FLOPs, memory, images/s, ETA) and stop."""
    samples: int = 1000
    """Samples that the scores at the end are measured on."""
