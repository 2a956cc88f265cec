"""What is measured: PARTS is the whole table.

A part is some measures; a measure is a task that several sides do in turn; a side is a library with its options.
"""

from __future__ import annotations

from dataclasses import replace

from .terms import Measure, Side, each

# (a) the 35.7M network of DDPM for CIFAR-10, made by diffusers, the same weights on every side ----------------------

DDPM = {"network": "ddpm-cifar10"}
DIFFUSERS_32 = Side("diffusers float32", "diffusers", {**DDPM, "precision": "float32"})
DIFFUSERS_16 = Side("diffusers bfloat16", "diffusers", {**DDPM, "precision": "bfloat16"})
SFUMATO_32 = Side("sfumato float32", "sfumato", {**DDPM, "precision": "float32"})
SFUMATO_FAST = Side("sfumato float32-fast", "sfumato", {**DDPM, "precision": "float32-fast"})
SFUMATO_AUTO = Side("sfumato auto", "sfumato", {**DDPM, "precision": "auto"})
OPENVINO_32 = Side("openvino float32", "openvino", {**DDPM, "precision": "float32"})
OPENVINO_AUTO = Side("openvino auto", "openvino", {**DDPM, "precision": "auto"})

SAME_WEIGHTS = (DIFFUSERS_32, SFUMATO_32, SFUMATO_FAST, SFUMATO_AUTO, DIFFUSERS_16)
OURS = (SFUMATO_32.name, SFUMATO_FAST.name, SFUMATO_AUTO.name)


def _forward(batch: int, calls: int) -> Measure:
    return Measure(
        f"forward, batch {batch}",
        "forward",
        "ms",
        "milliseconds a forward",
        each((*SAME_WEIGHTS, OPENVINO_32, OPENVINO_AUTO), batch=batch, calls=calls, warm=3),
        OURS,
        rounds=9,
        more=("error",),
        note="error: of the output, RMS over RMS, against diffusers in float32.",
    )


STEP = Measure(
    "training step, batch 16",
    "steps",
    "ms",
    "milliseconds a step",
    each(SAME_WEIGHTS, pictures="noise", batch=16, calls=2, warm=2),
    OURS,
    more=("parameters",),
    note="A whole step of each side's own trainer: next batch, noise, forward, MSE, backward, clipping, AdamW, EMA.",
)

# (b) a small network for MNIST --------------------------------------------------------------------------------------

SFUMATO = Side("sfumato", "sfumato", {"recipe": "mnist", "labels": True})
# the same pictures without their labels, which are all that the peers are given
UNLABELLED = Side("sfumato, unlabelled", "sfumato", {"recipe": "mnist", "labels": False})
# At our parameter count, batch and precision.  diffusers': the network of Hugging Face's diffusion course for MNIST;
# denoising-diffusion-pytorch's: widths that are multiples of 16, as processors like them, and a tenth more parameters.
DIFFUSERS_ALIKE = Side(
    "diffusers, our size",
    "diffusers",
    {"channels": (32, 64, 64), "attention": (1, 2), "groups": 32, "size": 28, "batch": 64, "precision": "auto"},
)
DDP_ALIKE = Side(
    "denoising-diffusion-pytorch, our size",
    "ddp",
    {"width": 32, "multipliers": (1, 2, 3), "size": 28, "batch": 64, "accumulate": 1, "precision": "auto"},
)
# As documented, but for the width: the defaults of diffusers' train_unconditional.py at an eighth of its channels, and
# the README of denoising-diffusion-pytorch at a quarter.  Both halve the size often: 28 pixels are padded to 32.
DIFFUSERS_DOCUMENTED = Side(
    "diffusers, documented",
    "diffusers",
    {
        "channels": (16, 16, 32, 32, 64, 64),
        "attention": (4,),
        "groups": 16,
        "size": 32,
        "batch": 16,
        "precision": "float32",
    },
)
DDP_DOCUMENTED = Side(
    "denoising-diffusion-pytorch, documented",
    "ddp",
    {"width": 16, "multipliers": (1, 2, 4, 8), "size": 32, "batch": 32, "accumulate": 2, "precision": "auto"},
)

TRAINING = Measure(
    "training on MNIST",
    "steps",
    "images_per_second",
    "images a second",
    each((SFUMATO, DIFFUSERS_ALIKE, DDP_ALIKE), pictures="mnist", calls=20, warm=10),
    (SFUMATO.name,),
    better="more",
    more=("parameters", "gflops"),
    note="The recipe `mnist` beside the peers at its parameter count, batch and precision. gflops: operations a "
    "second, of products and convolutions, both passes, counted as plain ones.",
)
PRODUCTS = Measure(
    "products of matrices",
    "product",
    "gflops",
    "GFLOP/s",
    tuple(
        Side(f"{precision}, 2048 x 2048", "real", {"precision": precision, "size": 2048, "calls": 3, "warm": 2})
        for precision in ("float32", "bfloat16")
    ),
    better="more",
    note="What PyTorch reaches on this machine at best.",
)

# (c) what a user waits for ------------------------------------------------------------------------------------------

TORCH = "import torch"
IMPORTS = {
    TORCH: TORCH,
    "import diffusers": "import torch, diffusers",
    "diffusers' UNet and DDPM": "from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel",
    "import denoising_diffusion_pytorch": "import denoising_diffusion_pytorch",
    "import sfumato": "import torch, sfumato",
    "sfumato.load": "from sfumato import load",
}
COMMANDS = ("--help", "train --help", "sample --help", "evaluate --help", "reproduce --help", "sample digits")

STARTUP = (
    Measure(
        "imports",
        "command",
        "seconds",
        "seconds",
        tuple(Side(name, "command", {"command": ("-c", code)}) for name, code in IMPORTS.items()),
        ("import sfumato", "sfumato.load"),
        note="Fresh processes; all import torch, whose own time is the first row.",
    ),
    Measure(
        "commands",
        "command",
        "seconds",
        "seconds",
        tuple(
            Side(f"sfumato {words}", "command", {"command": ("-m", "sfumato.cli", *words.split())})
            for words in COMMANDS
        ),
    ),
)

# (d) memory ---------------------------------------------------------------------------------------------------------

SMALL = (Side("sfumato", "sfumato", {"model": "mnist"}), DIFFUSERS_ALIKE, DDP_ALIKE)
SIZES = ((64, 10), (64, 100), (1024, 10))


def _peak(name: str, task: str, sides: tuple[Side, ...], columns: tuple[str, ...], note: str) -> Measure:
    return Measure(name, task, "peak_mib", "peak RSS, MiB", sides, columns, 5, word="small", fresh=True, note=note)


MEMORY = (
    _peak(
        "memory of sampling",
        "sample",
        tuple(
            replace(one, name=f"{one.name}: {n} pictures, {steps} steps")
            for side in SMALL
            for n, steps in SIZES
            for one in each((side,), n=n, sampler="ddim", steps=steps, rows=64)
        ),
        tuple(f"{side.name}: 64 pictures, 10 steps" for side in SMALL),
        "In batches of 64, written to disk. A side's column says how many times as much it needs as in its first row.",
    ),
    _peak(
        "memory of a training step, small",
        "steps",
        each((SFUMATO, DIFFUSERS_ALIKE, DDP_ALIKE), pictures="mnist", calls=3, warm=0),
        (SFUMATO.name,),
        "The networks of `training`, with the data.",
    ),
    _peak(
        "memory of a training step, 35.7M",
        "steps",
        each(SAME_WEIGHTS, pictures="noise", batch=16, calls=2, warm=0),
        OURS,
        "The network of `step`.",
    ),
)

# (e) seconds to 1,000 samples ---------------------------------------------------------------------------------------

REFERENCE = 10_000  # test pictures that samples are held against
# name -> sampler, steps, guidance; None is as the model's card says
SETTINGS: dict[str, tuple[str | None, int | None, float | None]] = {
    "ancestral, 1000 steps": ("ancestral", 1000, None),
    "ancestral, 1000 steps, w = 1": ("ancestral", 1000, 1.0),
    "the card's": (None, None, None),
    "the card's, w = 1": (None, None, 1.0),
    "dpmpp-2m, 8 steps": ("dpmpp-2m", 8, None),
    "unipc-3, 8 steps": ("unipc-3", 8, None),
}

SAMPLES = Measure(
    "seconds to 1,000 samples",
    "slices",
    "seconds",
    "seconds to 200 samples",
    tuple(
        Side(
            name,
            "sfumato",
            {
                "run": f"samples/{number}",
                "model": "mnist",
                "precision": "auto",
                "sampler": sampler,
                "steps": steps,
                "guidance": guidance,
                "rows": 200,
                "slices": 5,
                "reference": REFERENCE,
            },
        )
        for number, (name, (sampler, steps, guidance)) in enumerate(SETTINGS.items())
    ),
    tuple(name for name, (sampler, _, _) in SETTINGS.items() if sampler != "ancestral"),
    rounds=5,
    more=("frechet",),
    note="The zoo's `mnist`, 1,000 samples in five slices of 200, one a round; same seeds, batch, precision and engine."
    " frechet: FD(mnist) of all 1,000.",
)

# (f) Frechet distance after equal time ------------------------------------------------------------------------------

# side, where its training lies, and how it is sampled: (sampler, steps); None is as the recipe says
COMPARED: tuple[tuple[Side, str, tuple[tuple[str | None, int | None], ...]], ...] = (
    (SFUMATO, "sfumato", ((None, None),)),
    (UNLABELLED, "sfumato-unlabelled", ((None, None), ("dpmpp-2m", 20))),
    (DIFFUSERS_ALIKE, "diffusers", (("ddim", 50), ("ddim", 250), ("ddpm", 250), ("dpm-solver++", 25))),
    (DDP_ALIKE, "ddp", (("ddim", 250),)),
    (DIFFUSERS_DOCUMENTED, "diffusers-documented", (("ddim", 50), ("ddim", 250), ("ddpm", 1000))),
    (DDP_DOCUMENTED, "ddp-documented", (("ddim", 250),)),
)
MINUTES = 15


def _drawn(side: Side, folder: str, way: tuple[str | None, int | None]) -> Side:
    sampler, steps = way
    how = f"{sampler}, {steps} steps" if sampler else "its own sampler"
    told = {"run": f"frechet/{folder}", "sampler": sampler, "steps": steps, "rows": 100}
    return replace(side, name=f"{side.name}: {how}", options={**side.options, **told})


DRAWN = tuple(_drawn(side, folder, way) for side, folder, ways in COMPARED for way in ways)

FRECHET = (
    Measure(
        "training for 15 minutes",
        "train",
        "steps",
        "steps",
        tuple(
            one
            for side, folder, _ in COMPARED
            for one in each((side,), pictures="mnist", run=f"frechet/{folder}", minute=60.0, minutes=MINUTES)
        ),
        rounds=MINUTES,
        better="more",
        more=("trained_seconds", "images", "parameters"),
        note="In turn, a minute at a time, on all cores; drawing, scoring and saving are not counted.",
    ),
    Measure(
        "Frechet distance",
        "draw",
        "frechet",
        "FD(mnist)",
        each(
            (Side("real training pictures", "real", {}), *DRAWN), pictures="mnist", n=1000, reference=REFERENCE, seed=0
        ),
        tuple(side.name for side in DRAWN if side.library == "sfumato"),
        rounds=1,
        word="near",
        fresh=True,
        more=("seconds",),
        note="n = 1,000 (fewer than 50,000: biased upwards, compared at equal n only) against 10,000 test pictures; "
        "the first row is the floor. sfumato is told classes in turn, `unlabelled` and the peers are not.",
    ),
)

# (g) what the default precision costs in quality --------------------------------------------------------------------

# model of the zoo -> its data, and features that know its pictures, or all
JUDGED = {
    "mnist": ("mnist", "mnist"),
    "mnist-weak": ("mnist", "mnist"),
    "digits": ("digits", "efficientnet-lite0"),
    "cifar10": ("cifar10", "cifar10"),
}


def _by_precision(model: str, data: str, features: str) -> Measure:
    told = {"model": model, "seed": 0, "sampler": None, "steps": None, "n": 1000, "rows": 200, "reference": REFERENCE}
    return Measure(
        f"Frechet distance of `{model}` by precision",
        "draw",
        "frechet",
        f"FD({features})",
        tuple(
            Side(precision, "sfumato", {**told, "data": data, "features": features, "precision": precision})
            for precision in ("float32", "auto")
        ),
        ("auto",),
        rounds=3,
        word="near",
        fresh=True,
        more=("seconds",),
        note="As its card says, n = 1,000 (fewer than 50,000) against its test pictures, 10,000 at most; three seeds, "
        "the same for both.",
    )


PRECISION = tuple(_by_precision(model, *by) for model, by in JUDGED.items())

PARTS: dict[str, tuple[Measure, ...]] = {
    "forward": (_forward(1, 5), _forward(8, 5)),
    "step": (STEP,),
    "training": (PRODUCTS, TRAINING),
    "precision": PRECISION,
    "startup": STARTUP,
    "memory": MEMORY,
    "samples": (SAMPLES,),
    "frechet": FRECHET,
}
NEED_MNIST = ("training", "precision", "memory", "samples", "frechet")
