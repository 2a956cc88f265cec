"""What the commands take, as typed dataclasses from which tyro derives the flags.

Training takes the run's own fields; what is None is as the model says.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sfumato.guidance import Guide
from sfumato.model import Model, ModelConfig
from sfumato.nn import NETWORKS
from sfumato.options import whole
from sfumato.tasks.guide import guide
from sfumato.train import Run
from sfumato.train.classifier import ClassifierRun


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


@dataclass(frozen=True)
class ClassifierArguments:
    run: Annotated[ClassifierRun, tyro.conf.arg(name="")] = field(default_factory=ClassifierRun)
    out: Path = Path("runs/classifier")
    """Where everything goes; give the same again to resume."""


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


@dataclass(frozen=True)
class GuideArguments:
    guidance: float | None = None
    """Scale w of classifier-free guidance, or of --weak; 1 is the plain conditional model, 0 the unconditional
    one, below 0 it leads away from the label."""
    interval: tuple[float, float] = (0.0, 1.0)
    """The times LOW HIGH between which w acts, 0 being data and 1 noise."""
    mix: str = "cfg"
    """How the two predictions are mixed: cfg, rescale:phi=0.7, apg:eta=0,norm=15."""
    weak: str | None = None
    """A weaker MODEL, from which to be guided away (autoguidance), instead of the unconditional prediction."""
    classifier: str | None = None
    """A noise-aware classifier that steers towards the label: mnist-noisy, or a folder."""
    classifier_scale: float = 1.0
    """How strongly it steers."""
    algorithm: Literal[1, 2] = 2
    """Of classifier guidance: 1 for sampler ancestral alone, 2 for every sampler."""
    dynamic: float | None = None
    """Dynamic thresholding at this percentile, such as 0.995, instead of clipping."""

    def guide(self, model: Model) -> Guide:
        """The guidance of these names for a model."""
        told = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "guidance"}
        return guide(model, self.guidance, **told)


@dataclass(frozen=True)
class SampleArguments:
    n: Annotated[int, tyro.conf.arg(aliases=("-n",))] = 64
    """How many; row i is drawn from seed + i and its label alone."""
    sampler: str | None = None
    """A row of SAMPLERS, with options (ddim:eta=0.5); by default the model's own."""
    steps: int | None = None
    """Steps of the sampler; by default the model's own."""
    grid: str | None = None
    """Which times it visits, a row of GRIDS; by default the model's own."""
    seed: int = 0
    """The same seed gives the same samples."""
    label: str | None = None
    """A class, by number or name; without it the classes come in turn."""
    guide: Annotated[GuideArguments, tyro.conf.arg(name="")] = GuideArguments()
    schedule: str | None = None
    """Walk along another schedule than that of the training, such as rectified."""
    ema: float | None = None
    """Another EMA length, a share of the training such as 0.05 (MODEL must be a run)."""
    precision: str = "auto"
    """Inside the network: auto is the fastest way here, float32 the exact one, bfloat16 where a GPU has it."""
    reuse: int = 1
    """Ask the lower levels of a UNet at every so many calls alone: faster, and an approximation."""
    batch: int = 256
    """Rows of one call; pictures are the same, to float32's rounding."""
    out: Path = Path("samples.png")
    """FILE.png (a grid), FILE.npz (images N,H,W,C; labels; settings), or a folder; what is there is replaced."""


@dataclass(frozen=True)
class EvaluateArguments:
    n: Annotated[int, tyro.conf.arg(aliases=("-n",))] = 1000
    """Samples, or pictures evenly spread over a folder or file, that are scored."""
    reference: str = "test"
    """What they are held against: test or train of the model's data, mnist or mnist:train, a FOLDER or FILE.npz."""
    features: str | None = None
    """efficientnet-lite0, inception-fid, a classifier; by default the zoo's classifier of the data, if there is one."""
    weights: str | None = None
    """The file of the FID weights for --features inception-fid."""
    compare: tuple[str, ...] = ()
    """Other models, folders or files, side by side with the first."""
    by_steps: tuple[int, ...] | None = None
    """Numbers of steps to be scored too, such as 5 10 20 50; nothing behind it leaves that out."""
    sampler: str | None = None
    """A row of SAMPLERS; by default the model's own."""
    steps: int | None = None
    """Steps of the sampler."""
    guide: Annotated[GuideArguments, tyro.conf.arg(name="")] = GuideArguments()
    seed: int = 0
    """The first sample's seed."""
    ode: int | None = None
    """Held-out rows of bits/dim by the probability-flow ODE; 0 for none, by default 100 of at most 256 values each."""
    ema: float | None = None
    """Another EMA length (MODEL must be a run)."""
    page: Path | None = None
    """The folder of the page index.html and of scores.json; by default evaluations/NAME."""
    out: Path | None = None
    """Also write the scores to this JSON file."""

    def __post_init__(self) -> None:
        whole("n", self.n)
        if self.ode is not None and self.ode < 0:
            raise ValueError(f"ode is a number of rows, 0 or more; got {self.ode}")


@dataclass(frozen=True)
class DoctorArguments:
    schedule: str = "linear_continuous"
    """A continuous row of SCHEDULES with options: linear_continuous, cosine_continuous, rectified, edm:sigma_max=5."""
    out: Path | None = None
    """Also write the measurements to this JSON file."""


@dataclass(frozen=True)
class ReproduceArguments:
    quick: bool = False
    """Fewer rows and steps: within 10 minutes on 2 cores; the page says so."""
    model: str | None = None
    """The trained model looked at: a zoo name, a model folder or a run; by default the experiment's own."""
    out: Path | None = None
    """The report's folder; by default reports/NAME."""
    seed: int = 0
    """The same seed gives the same numbers."""
