"""What diffusers' two JSON files say, as our config.json, and back: the options that are the same function.

A told network is ``UNet2DModel``'s config.json, a told schedule is scheduler_config.json, both with every option in
place.  Ours is the document that `model.ModelConfig` reads.  In theirs,

    timestep               i - 1 at t = i/T: our time "index"
    prediction_type        epsilon, sample, v_prediction: the rows eps, x0, v of `parameterization`
    variance_type          learned_range: half of the channels is our learned variance; the others are ways of sampling
    beta_start, beta_end   are meant as they are, whatever T is; ours for 1,000 steps: theirs times T/1000
    num_class_embeds       rows of the table of labels; our last row is "no label"

Every other option has the one value, or the few, that make it our function; the rest is refused by name.

https://github.com/huggingface/diffusers: models/unets/unet_2d.py, unet_2d_blocks.py, schedulers/scheduling_ddpm.py
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from sfumato import schedules
from sfumato.nn import Conditions, UNet, UNetConfig
from sfumato.nn.blocks import Attention
from sfumato.schedules import Discrete

# options of UNet2DModel that ours has in one way, or two: what makes it our function; the first is diffusers' default
ONE: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_type": ("conv", "resnet", None),
    "upsample_type": ("conv", "resnet", None),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "add_attention": (True,),
    "class_embed_type": (None,),
}
# all its options, with diffusers' defaults: old folders leave out what came later
UNET: dict[str, Any] = {option: allowed[0] for option, allowed in ONE.items()} | {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "downsample_padding": 1,
    "dropout": 0.0,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
# kind of block -> whether it attends, and how it changes the size; None is as {down,up}sample_type says
BLOCKS: dict[str, dict[str, tuple[bool, str | None]]] = {
    "down": {
        "DownBlock2D": (False, "conv"),
        "ResnetDownsampleBlock2D": (False, "resnet"),
        "AttnDownBlock2D": (True, None),
    },
    "up": {
        "UpBlock2D": (False, "conv"),
        "ResnetUpsampleBlock2D": (False, "resnet"),
        "AttnUpBlock2D": (True, None),
    },
}
# what a schedule's file says of the training, with diffusers' defaults; all else in it is about sampling
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "variance_type": "fixed_small",
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
}
# the files that mean these options so
KINDS = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)
BETAS = {"linear": "linear", "scaled_linear": "quadratic", "sigmoid": "sigmoid", "squaredcos_cap_v2": "cosine"}
TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}

IN = "our UNet has nothing else, so use this one in diffusers"
OUT = "diffusers has nothing else, so keep this model in a folder of ours (model.save)"


def _one_of(what: str, came: Any, allowed: Collection[Any], mend: str) -> None:
    if came not in allowed:
        raise ValueError(f"{what} = {came!r} came, allowed is {' or '.join(map(repr, allowed))}; {mend}")


def _check_sizes(sizes: Collection[int], levels: int, mend: str) -> None:
    if any(n % 2 ** (levels - 1) for n in sizes):
        raise ValueError(
            f"pictures of {' x '.join(map(str, sizes))} came, allowed are multiples of {2 ** (levels - 1)} with "
            f"{levels} levels, for diffusers' way up doubles each size where ours returns to it; {mend}"
        )


# theirs as ours -------------------------------------------------------------------------------------------------------


def document(told: Mapping[str, Any], schedule: Mapping[str, Any]) -> dict[str, Any]:
    """Our config.json of a told network and a told schedule."""
    options, spec = _options(told), _spec(schedule)
    size, channels = told["sample_size"], told["in_channels"]
    if size is None:
        raise ValueError("sample_size = None came, allowed are the pictures' sizes; write them into unet/config.json")
    sizes = [size, size] if isinstance(size, int) else list(size)
    _check_sizes(sizes, len(options["multipliers"]), IN)
    learned = schedule["variance_type"] == "learned_range"
    _one_of("in_channels", channels, (1, 3), "others are no pictures: latents need the codec they were made with")
    twice = "it is in_channels, or twice that with variance_type = 'learned_range'"
    _one_of("out_channels", told["out_channels"], (channels * (2 if learned else 1),), twice)
    return {
        "format": "sfumato 1",
        "shape": [channels, *sizes],
        "kind": "picture",
        "network": "unet",
        "options": options,
        "conditions": {"classes": told["num_class_embeds"] or 0},
        "schedule": spec,
        "target": TARGETS[schedule["prediction_type"]],
        "time": "index",
        "learned_variance": learned,
        "codec": {"name": "pixels", "levels": 256},
        "sampling": {"clip": bool(schedule.get("clip_sample", True))},
    }


def _options(told: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of UNetConfig."""
    _one_of("_class_name", told.get("_class_name"), ("UNet2DModel",), IN)
    foreign = sorted(key for key in told.keys() - UNET.keys() if not key.startswith("_"))
    if foreign:
        raise ValueError(
            f"{foreign[0]} = {told[foreign[0]]!r} came, which is no option of UNet2DModel known here; take it out of "
            "config.json if diffusers says that it ignores it"
        )
    for option, allowed in ONE.items():
        _one_of(option, told[option], allowed, IN)
    widths, groups, head = told["block_out_channels"], told["norm_num_groups"], told["attention_head_dim"]
    adaptive = told["resnet_time_scale_shift"] == "scale_shift"
    if any(width % widths[0] for width in widths):
        raise ValueError(f"block_out_channels = {widths} came, allowed are multiples of the first; {IN}")
    attention, resampling = _levels(told)
    _one_of("downsample_padding", told["downsample_padding"], (0, 1), IN)
    if head is not None and any(widths[level] % head for level in (*attention, -1)):
        raise ValueError(f"attention_head_dim = {head} came, allowed are divisors of the attending widths; {IN}")
    _one_of("time_embedding_dim", told["time_embedding_dim"], (None, 4 * widths[0]), IN)
    middle = told["attn_norm_num_groups"] or (None if adaptive else groups)
    _one_of("attn_norm_num_groups", middle, (groups,), f"the middle's attention is normalised as all else is; {IN}")
    config = UNetConfig(
        channels=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        blocks=told["layers_per_block"],
        attention=tuple(attention),
        head_channels=head or 0,
        dropout=told["dropout"],
        adaptive=adaptive,
        residual_resampling=resampling == "resnet",
        pad_both=resampling == "conv" and told["downsample_padding"] == 1,
        groups=groups,
        norm_eps=told["norm_eps"],
        freq_shift=told["freq_shift"],
    )
    return asdict(config)


def _levels(told: Mapping[str, Any]) -> tuple[list[int], str | None]:
    """The levels that attend, and how sizes change: conv, resnet, or None where there is one level alone."""
    ways: dict[str, list[tuple[bool, str]]] = {}
    for way, table in BLOCKS.items():
        kinds = [kind.removeprefix("UNetRes") for kind in told[f"{way}_block_types"]]
        for kind in kinds:
            _one_of(f"a block of {way}_block_types", kind, table, IN)
        usual = told[f"{way}sample_type"] or "conv"
        ways[way] = [(table[kind][0], table[kind][1] or usual) for kind in kinds]
    down, up = ways["down"], ways["up"][::-1]
    attends = [each for each, _ in down]
    if len(told["block_out_channels"]) != len(down) or attends != [each for each, _ in up]:
        raise ValueError(
            f"down_block_types = {told['down_block_types']} and up_block_types = {told['up_block_types']} came, "
            f"allowed are as many as block_out_channels, both attending at the same levels; {IN}"
        )
    resampling = {how for _, how in down[:-1] + up[1:]}  # the last level is not halved, so nor is it doubled
    if len(resampling) > 1:
        raise ValueError(
            "blocks that change sizes by convolutions and blocks that do by resnets came, allowed is one of the two in "
            f"all of down_block_types, up_block_types, downsample_type and upsample_type; {IN}"
        )
    return [level for level, each in enumerate(attends) if each], next(iter(resampling), None)


def _spec(told: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of our schedule with their betas."""
    _one_of("_class_name", told.get("_class_name", KINDS[0]), KINDS, "others mean another noise or time")
    _one_of("use_flow_sigmas", told.get("use_flow_sigmas", False), (False,), "save it as a DDPMScheduler")
    _one_of("prediction_type", told["prediction_type"], TARGETS, "others are no target of a model of ours")
    _one_of("beta_schedule", told["beta_schedule"], BETAS, "others can be given as trained_betas")
    steps, zero = told["num_train_timesteps"], told["rescale_betas_zero_snr"]
    if told["trained_betas"] is not None:
        _one_of("rescale_betas_zero_snr", zero, (False,), "with trained_betas there is nothing else")
        _one_of("num_train_timesteps", steps, (len(told["trained_betas"]),), "it is the number of trained_betas")
        return schedules.from_betas(told["trained_betas"]).spec
    if steps < 2:
        raise ValueError(f"num_train_timesteps = {steps} came, allowed are 2 and more; give one step as trained_betas")
    name = BETAS[told["beta_schedule"]]
    options = {} if name == "cosine" else {end: told[end] * (steps / 1000) for end in ("beta_start", "beta_end")}
    given = schedules.from_spec({"name": name, "steps": steps, **options})
    if not zero:
        return given.spec
    usual = schedules.from_spec({"name": name, "steps": steps})
    if not all(math.isclose(given.spec[option], usual.spec[option]) for option in options):
        raise ValueError(
            f"rescale_betas_zero_snr = True came with betas from {told['beta_start']} to {told['beta_end']}, allowed "
            f"with it are {0.1 / steps:g} to {20 / steps:g} for {steps} steps; our zero_terminal has nothing else"
        )
    return schedules.zero_terminal(name, steps).spec


# ours as theirs -------------------------------------------------------------------------------------------------------


def network(document: Mapping[str, Any]) -> UNet:
    """The network of a document of ours, without its numbers; ValueError for the first thing that diffusers has not."""
    _one_of("network", document["network"], ("unet",), OUT)
    _one_of("the number of axes (C, H, W)", len(document["shape"]), (3,), OUT)
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in document["options"].items()}
    conditions, schedule = document["conditions"], document["schedule"]["name"]
    rows: list[tuple[str, Any, Collection[Any]]] = [
        ("patch", options.get("patch", 1), (1,)),
        ("time_scale", options.get("time_scale", 1), (1,)),
        ("the first of multipliers", options["multipliers"][0], (1,)),
        *((f"condition {name}", conditions.get(name, 0), (0,)) for name in ("vector", "context", "concat", "span")),
        ("schedule", schedule, (*BETAS.values(), "zero_terminal", "from_betas")),
        ("target", document["target"], tuple(TARGETS.values())),
        ("time", document["time"], ("index",)),
        ("codec", document["codec"]["name"], ("pixels", "standard")),
        ("source (a bridge's)", document.get("source") or None, (None,)),
    ]
    for what, came, allowed in rows:
        _one_of(what, came, allowed, OUT)
    shape = tuple(document["shape"])
    _check_sizes(shape[1:], len(options["multipliers"]), OUT)
    with torch.device("meta"):
        config, channels = UNetConfig(**options), shape[0] * (2 if document["learned_variance"] else 1)
        return UNet(config, shape, Conditions(**conditions), channels)


def unet_config(document: Mapping[str, Any], net: UNet) -> dict[str, Any]:
    """UNet2DModel's config.json for a document of ours and its `network`."""
    config, sizes = net.config, net.shape[1:]
    resampling = "resnet" if config.residual_resampling else "conv"
    levels = range(len(config.multipliers))

    def kind(way: str, level: int) -> str:
        row = (True, None) if level in config.attention else (False, resampling)
        return next(name for name, known in BLOCKS[way].items() if known == row)

    groups = {module.num_groups for module in net.modules() if isinstance(module, nn.GroupNorm)}
    if len(groups) > 1:
        raise ValueError(
            f"group norms of {' and '.join(map(str, sorted(groups)))} groups came, allowed is one number that divides "
            f"all widths (the option groups); {OUT}"
        )
    attending = [module for module in net.modules() if isinstance(module, Attention)]
    heads = {module.norm.num_channels // module.heads for module in attending}
    single = all(module.heads == 1 for module in attending)
    if len(heads) > 1 and not single:
        raise ValueError(
            f"attention heads of {' and '.join(map(str, sorted(heads)))} channels came, allowed is one number that "
            f"divides all attending widths (the option head_channels), or single heads; {OUT}"
        )
    classes = document["conditions"].get("classes", 0)
    return {
        **UNET,
        "_class_name": "UNet2DModel",
        "sample_size": sizes[0] if sizes[0] == sizes[1] else list(sizes),
        "in_channels": net.shape[0],
        "out_channels": net.out.out_channels,
        "freq_shift": config.freq_shift,
        "flip_sin_to_cos": False,
        "down_block_types": [kind("down", level) for level in levels],
        "up_block_types": [kind("up", level) for level in reversed(levels)],
        "block_out_channels": [multiplier * config.channels for multiplier in config.multipliers],
        "layers_per_block": config.blocks,
        "downsample_padding": int(config.pad_both),
        "downsample_type": resampling,
        "upsample_type": resampling,
        "dropout": config.dropout,
        "attention_head_dim": None if single else heads.pop(),
        "norm_num_groups": min(groups),
        "attn_norm_num_groups": min(groups),
        "norm_eps": config.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if config.adaptive else "default",
        "num_class_embeds": classes + 1 if classes else None,
    }


def schedule_config(document: Mapping[str, Any]) -> dict[str, Any]:
    """DDPMScheduler's scheduler_config.json for a document of ours, with alphas_cumprod as ours."""
    schedule = schedules.from_spec(document["schedule"])
    assert isinstance(schedule, Discrete)  # the time "index" needs one
    zero = schedule.name == "zero_terminal"
    spec = schedules.from_spec({"name": schedule.spec["of"], "steps": schedule.steps}).spec if zero else schedule.spec
    betas: dict[str, Any] = {"trained_betas": schedule.betas.tolist()}
    theirs = {ours: name for name, ours in BETAS.items()}.get(spec["name"])
    if theirs and schedule.steps > 1 and spec.get("s", 0.008) == 0.008:
        ends: dict[str, Any] = {
            end: spec[end] / (schedule.steps / 1000) for end in ("beta_start", "beta_end") if end in spec
        }
        betas = {"beta_schedule": theirs, **ends, "rescale_betas_zero_snr": zero}
    clips = document.get("sampling", {}).get("clip", True) and document["codec"]["name"] == "pixels"
    return {
        **SCHEDULE,
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": schedule.steps,
        **betas,
        "variance_type": "learned_range" if document["learned_variance"] else "fixed_small",
        "prediction_type": next(name for name, target in TARGETS.items() if target == document["target"]),
        "clip_sample": clips,
        "timestep_spacing": "trailing",
    }
