"""Where the time goes, by operator: a step of sampling and a step of training, before and after.

    python benchmarks/operators.py                 docs/profile.md and its picture
    python benchmarks/operators.py --tiny --out DIR     sizes that mean nothing: does everything run?

Before is `precision="float32"`, PyTorch's own operations, with clipping, AdamW and the averages one after the other;
after is `precision="auto"` on this machine.  Each pair is measured in turn, ROUNDS times, and the middle one of each
is shown.  An operation's time is its own, without what it calls; what the profiler does not see (Python, and calls of
compiled maps by their names) is `the rest`.  The profiler itself costs a few microseconds an operation.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from sfumato import engine
from sfumato.data import Data
from sfumato.model import Sampling
from sfumato.nn import UNetConfig, activated, compiled, filters
from sfumato.noise import philox
from sfumato.recipes import RECIPES
from sfumato.train import Loss, Run, Training, adamw, train

ROUNDS = 5
PAIR = ("float32", "auto")

# what an operator's name begins with -> what it is for; the first that fits
KINDS = (
    ("ours: cut", "tiles of convolutions, in C"),
    ("ours: join", "tiles of convolutions, in C"),
    ("ours: spread", "tiles of convolutions, in C"),
    ("ours: weigh", "weights of convolutions, in C"),
    ("ours: unweigh", "weights of convolutions, in C"),
    ("ours: activate", "norm, activation, dropout"),
    ("ours: descend", "optimiser, clipping, averages"),
    ("aten::mkldnn_convolution", "convolutions"),
    ("aten::convolution_backward", "convolutions"),
    ("aten::_convolution", "convolutions"),
    ("mkldnn", "convolutions"),
    ("aten::bmm", "products of matrices"),
    ("aten::baddbmm", "products of matrices"),
    ("aten::addmm", "products of matrices"),
    ("aten::mm", "products of matrices"),
    ("aten::linear", "products of matrices"),
    ("aten::_scaled_dot_product", "attention"),
    ("aten::native_group_norm", "norm, activation, dropout"),
    ("aten::native_layer_norm", "norm, activation, dropout"),
    ("aten::silu", "norm, activation, dropout"),
    ("aten::native_dropout", "norm, activation, dropout"),
    ("aten::bernoulli", "norm, activation, dropout"),
    ("aten::_fused_adamw", "optimiser, clipping, averages"),
    ("aten::_foreach", "optimiser, clipping, averages"),
    ("aten::lerp_", "optimiser, clipping, averages"),
    ("aten::linalg_vector_norm", "optimiser, clipping, averages"),
    ("aten::copy_", "copies"),
    ("aten::cat", "copies"),
    ("aten::fill_", "copies"),
    ("aten::zero_", "copies"),
    ("aten::", "sums and all else"),
)
REST = "the rest"

Step = Callable[[], None]


def kind(name: str) -> str:
    """What an operator of the profiler is for."""
    return next((what for start, what in KINDS if name.startswith(start)), REST)


class Named:
    """A function of a compiled library that the profiler sees."""

    def __init__(self, function: Any, name: str):
        self.__dict__.update(function=function, name=name, __name__=name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.function, name, value)

    def __call__(self, *given: Any) -> Any:
        with record_function(f"ours: {self.name}"):
            return self.function(*given)


def name_compiled() -> None:
    """Let the profiler see what is compiled here; before anything of it is used."""
    for source, defined, names in (
        *((filters.SOURCE, half, ("cut", "join", "spread", "weigh", "unweigh")) for half in compiled.HALF.values()),
        *((activated.SOURCE, half, ("activate", "activate_back")) for half in compiled.HALF.values()),
        (adamw.SOURCE, (), ("descend",)),
    ):
        library = compiled.library(source, *defined)
        for name in names if library is not None else ():
            setattr(library, name, Named(getattr(library, name), name))


@dataclass(frozen=True)
class Subject:
    """A network, as a run that trains it; rows of a batch."""

    name: str
    run: Run
    rows: int


def subjects(folder: Path, tiny: bool) -> list[Subject]:
    """DDPM's network for CIFAR-10 (35.7M) on noise, and the recipe `mnist` on noise of its shape."""
    channels, calls = (32, 8) if tiny else (128, 8)
    ddpm = UNetConfig(
        channels=channels,
        multipliers=(1, 2, 2, 2),
        attention=(1,),
        head_channels=0,
        adaptive=False,
        residual_resampling=False,
    )
    wide = Run(
        data=_noise(folder / "32.npz", (32, 32, 3)),
        network=ddpm,
        schedule="linear",
        loss=Loss(weighting="simple"),
        sampling=Sampling(steps=50),
        batch=calls,
        ema=(0.05,),
    )
    small = RECIPES["mnist"]()
    small = replace(small, data=_noise(folder / "28.npz", (28, 28, 1)), features="")
    small = replace(small, batch=16, network=replace(small.network, channels=32)) if tiny else small
    return [Subject("DDPM's network for CIFAR-10, 35.7M", wide, calls), Subject("the recipe mnist", small, small.batch)]


def _noise(path: Path, shape: tuple[int, ...]) -> Data:
    import numpy as np

    n = 256
    images = philox(0, 0, 0).integers(0, 256, (n, *shape), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(n) % 10)
    return Data("file", path=str(path))


def prepared(subject: Subject, precision: str, folder: Path) -> tuple[Step, Step]:
    """A step of sampling (one call of the averaged network) and one of training."""
    run = replace(subject.run, precision=precision, steps=1_000_000)  # type: ignore[arg-type]
    training = Training(run, folder / f"{precision}-{abs(hash(subject.name))}", say=lambda text: None, resume=False)
    steps = train(training)
    model = training.model()
    engine.prepare(model.net, precision)
    x = torch.randn(subject.rows, *model.config.shape)
    t = torch.linspace(0.1, 1, subject.rows, dtype=torch.float64)
    labels = {"label": torch.arange(subject.rows) % 10} if model.config.conditions.classes else None

    def sampling() -> None:
        with torch.no_grad():
            model.denoiser(x, t, labels)

    def learning() -> None:
        if precision == "float32":
            with _apart():
                next(steps)
        else:
            next(steps)

    return sampling, learning


class _apart:
    """Within, clipping, AdamW and averages are PyTorch's, one after the other."""

    def __enter__(self) -> None:
        self.kept, adamw._compiled = adamw._compiled, lambda: None  # type: ignore[assignment]

    def __exit__(self, *_: Any) -> None:
        adamw._compiled = self.kept  # type: ignore[assignment]


def measured(step: Step) -> dict[str, float]:
    """Milliseconds by kind of one step, and of all of it."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        start = time.perf_counter()
        step()
        whole = 1000 * (time.perf_counter() - start)
    found: dict[str, float] = {}
    for event in seen.key_averages():
        what = kind(event.key)
        if what != REST:
            found[what] = found.get(what, 0.0) + event.self_cpu_time_total / 1000
    return {**found, REST: max(0.0, whole - sum(found.values())), "all": whole}


def compared(pair: dict[str, Step]) -> dict[str, dict[str, float]]:
    """Of each precision, by kind, the middle one of ROUNDS steps; and by "alone" the time without the profiler."""
    for step in pair.values():
        step()
        step()
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in pair}
    for _ in range(ROUNDS):
        for name, step in pair.items():
            start = time.perf_counter()
            step()
            alone = 1000 * (time.perf_counter() - start)
            rounds[name].append({**measured(step), "alone": alone})
    return {
        name: {key: median(one.get(key, 0.0) for one in found) for key in {key for one in found for key in one}}
        for name, found in rounds.items()
    }


def lines(title: str, found: dict[str, dict[str, float]]) -> list[str]:
    """A table of Markdown: a kind a row."""
    before, after = (found[name] for name in PAIR)
    kinds = [what for what in dict.fromkeys(what for _, what in KINDS) if before.get(what) or after.get(what)]
    rows = [f"| {what} | {before.get(what, 0):.1f} | {after.get(what, 0):.1f} |" for what in [*kinds, REST]]
    ratio = before["alone"] / after["alone"]
    total = f"| **whole step, without the profiler** | **{before['alone']:.1f}** | **{after['alone']:.1f}** |"
    head = f"| ms | {PAIR[0]} | {PAIR[1]} |"
    return [f"## {title}", "", f"{ratio:.2f} times as fast.", "", head, "|---|---|---|", *rows, total, ""]


def draw(every: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """A bar before and one after, of the kinds one upon the other, for every table."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = [*dict.fromkeys(what for _, what in KINDS), REST]
    figure = Figure(figsize=(9, 1.3 * len(every) + 1.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(every), 1, squeeze=False)[:, 0]
    for axis, (title, found) in zip(axes, every.items(), strict=True):
        left = dict.fromkeys(PAIR, 0.0)
        for number, what in enumerate(kinds):
            widths = [found[name].get(what, 0.0) for name in PAIR]
            axis.barh(PAIR, widths, left=[left[name] for name in PAIR], color=f"C{number}", label=what)
            left = {name: left[name] + width for name, width in zip(PAIR, widths, strict=True)}
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
    axes[-1].set_xlabel("milliseconds a step, under the profiler", fontsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
    figure.savefig(path)


def main() -> None:
    """The page, its picture and its numbers."""
    parser = argparse.ArgumentParser(prog="python benchmarks/operators.py", description="where the time goes")
    parser.add_argument("--tiny", action="store_true", help="sizes that mean nothing: does everything run?")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="the page's folder")
    given = parser.parse_args()
    name_compiled()
    every: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for subject in subjects(Path(scratch), given.tiny):
            steps = {precision: prepared(subject, precision, Path(scratch)) for precision in PAIR}
            for number, what in enumerate(("sampling step", "training step")):
                title = f"{what[0].upper()}{what[1:]}, {subject.rows} rows: {subject.name}"
                every[title] = compared({precision: pair[number] for precision, pair in steps.items()})
                print("\n".join(lines(title, every[title])), flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    page = ["# Where the time goes", "", *(__doc__ or "").split("\n\n", 2)[2].strip().splitlines(), ""]
    page += [f"*torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()};*"]
    page += ["*`python benchmarks/operators.py` measures it again.*", "", "![by operator](profile.png)", ""]
    page += [line for title, found in every.items() for line in lines(title, found)]
    (given.out / "profile.md").write_text("\n".join(page))
    (given.out / "profile.json").write_text(json.dumps(every, indent=1) + "\n")
    draw(every, given.out / "profile.png")


if __name__ == "__main__":
    main()
