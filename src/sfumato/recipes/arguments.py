"""What `sfumato train RECIPE` takes: the run's own fields, and where and how."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from sfumato.model import ModelConfig
from sfumato.nn import NETWORKS
from sfumato.options import whole
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

    def __post_init__(self) -> None:
        whole("samples", self.samples)


def run_like(run: Run, config: ModelConfig) -> Run:
    """The run with the network, schedule and target of a model, so that its weights fit."""
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in config.options.items()}
    spec = dict(config.schedule)
    name = spec.pop("name")
    schedule = f"{name}:{','.join(f'{key}={value}' for key, value in spec.items())}" if spec else name
    return replace(
        run,
        network=NETWORKS[config.network].config(**options),
        schedule=schedule,
        target=config.target,
        time=config.time,  # type: ignore[arg-type]
        learned_variance=config.learned_variance,
    )
