"""The options of diffusers beside diffusers itself: its defaults, its betas, its tensors; and all that is refused."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato import schedules
from sfumato.checkpoints import diffusers, diffusers_keys, diffusers_options
from sfumato.model import ModelConfig, build_network
from sfumato.nn import Conditions, UNetConfig

from .beside_diffusers import OURS, SMALL

NETWORK = diffusers_options.UNET | SMALL | {"_class_name": "UNet2DModel"}
# google/ddpm-cifar10-32's own file, which knows nothing of later options
CIFAR10: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}


def test_the_network_of_ddpm_for_cifar10_by_name_and_number() -> None:
    from diffusers import UNet2DModel

    document = diffusers_options.document(diffusers_options.UNET | CIFAR10, diffusers_options.SCHEDULE)
    document = {**document, "sampling": {"clip": True}}
    ours = UNetConfig(
        channels=128,
        multipliers=(1, 2, 2, 2),
        attention=(1,),
        head_channels=0,
        adaptive=False,
        residual_resampling=False,
    )
    assert UNetConfig(**document["options"]) == ours
    with torch.device("meta"):
        net = build_network(ModelConfig.read(document, "here"))
        theirs = UNet2DModel(**{key: x for key, x in CIFAR10.items() if key[0] != "_"}).state_dict()
    made = diffusers_keys.to_theirs(net.state_dict(), net)  # type: ignore[arg-type]
    assert {key: x.shape for key, x in made.items()} == {key: x.shape for key, x in theirs.items()}
    assert sum(x.numel() for x in made.values()) == sum(p.numel() for p in net.parameters()) == 35_746_307


def test_the_defaults_are_those_of_the_installed_diffusers() -> None:
    import diffusers as theirs

    known = inspect.signature(theirs.UNet2DModel.__init__).parameters
    listed = {name: list(p.default) if isinstance(p.default, tuple) else p.default for name, p in known.items()}
    listed.pop("self")
    assert listed == diffusers_options.UNET
    for kind in diffusers_options.KINDS:
        options = inspect.signature(getattr(theirs, kind).__init__).parameters
        for name, default in diffusers_options.SCHEDULE.items():
            if name in options and name != "variance_type":
                assert options[name].default == default, (kind, name)


@pytest.mark.parametrize("kind", diffusers_options.KINDS)
def test_the_betas_of_every_kind_of_file(kind: str) -> None:
    import diffusers as theirs

    named = [betas for betas in diffusers_options.BETAS if betas != "sigmoid" or kind == "DDPMScheduler"]
    ends = {"beta_start": 0.001, "beta_end": 0.03}
    rows = [{"beta_schedule": betas, "num_train_timesteps": steps, **ends} for betas in named for steps in (1000, 40)]
    for options in [*rows, {"trained_betas": [0.01, 0.5, 0.2] * 4, "num_train_timesteps": 12}]:
        schedule = getattr(theirs, kind)(**options)
        told = diffusers_options.SCHEDULE | json.loads(schedule.to_json_string())
        ours = schedules.from_spec(diffusers_options.document(NETWORK, told)["schedule"])
        assert isinstance(ours, schedules.Discrete)
        torch.testing.assert_close(ours.alphas_cumprod.float(), schedule.alphas_cumprod, rtol=2e-5, atol=1e-7)


UNET_REFUSED: list[dict[str, Any]] = [
    {"_class_name": "UNet2DConditionModel"},
    {"center_input_sample": True},
    {"time_embedding_type": "fourier"},
    {"mid_block_type": None},
    {"mid_block_scale_factor": 2},
    {"downsample_type": "fir"},
    {"upsample_type": "resnet"},
    {"act_fn": "gelu"},
    {"resnet_time_scale_shift": "spatial"},
    {"add_attention": False},
    {"class_embed_type": "timestep"},
    {"downsample_padding": 2},
    {"down_block_types": ["SkipDownBlock2D", "AttnDownBlock2D"]},
    {"down_block_types": ["AttnDownBlock2D", "AttnDownBlock2D"]},
    {"up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"], "down_block_types": ["DownBlock2D"]},
    {"block_out_channels": [16, 24]},
    {"attention_head_dim": 5},
    {"time_embedding_dim": 128},
    {"attn_norm_num_groups": 4},
    {"sample_size": None},
    {"in_channels": 4},
    {"out_channels": 6},
    {"dual_attention": True},
]
SCHEDULE_REFUSED: list[dict[str, Any]] = [
    {"_class_name": "FlowMatchEulerDiscreteScheduler"},
    {"prediction_type": "flow_prediction"},
    {"use_flow_sigmas": True},
    {"beta_schedule": "laplace"},
    {"num_train_timesteps": 1},
    {"num_train_timesteps": 5, "trained_betas": [0.1, 0.2]},
    {"rescale_betas_zero_snr": True, "trained_betas": [0.1] * 1000},
    {"rescale_betas_zero_snr": True, "beta_end": 0.012},
]


def refusal(network: dict[str, Any], schedule: dict[str, Any]) -> str:
    with pytest.raises(ValueError, match="came") as caught:
        diffusers_options.document(NETWORK | network, diffusers_options.SCHEDULE | schedule)
    return str(caught.value)


@pytest.mark.parametrize("changes", UNET_REFUSED, ids=str)
def test_what_is_not_our_network_is_refused_by_its_option(changes: dict[str, Any]) -> None:
    text = refusal(changes, {})
    assert next(iter(changes)) in text
    assert ("allowed" in text and "; " in text) or "take it out of config.json" in text


@pytest.mark.parametrize("changes", SCHEDULE_REFUSED, ids=str)
def test_what_is_not_our_schedule_is_refused_by_its_option(changes: dict[str, Any]) -> None:
    text = refusal({}, changes)
    assert next(iter(changes)) in text
    assert "allowed" in text
    assert "; " in text


def test_the_numbers_of_a_refusal() -> None:
    assert "pictures of 9 x 9 came, allowed are multiples of 2 with 2 levels" in refusal({"sample_size": 9}, {})
    adaptive = {"resnet_time_scale_shift": "scale_shift"}  # a middle without a norm
    assert "attn_norm_num_groups = None came, allowed is 8" in refusal(adaptive, {})
    zero = {"rescale_betas_zero_snr": True, "num_train_timesteps": 100}
    assert "betas from 0.0001 to 0.02, allowed with it are 0.001 to 0.2 for 100 steps" in refusal({}, zero)
    right = diffusers_options.SCHEDULE | zero | {"beta_start": 0.001, "beta_end": 0.2}
    assert diffusers_options.document(NETWORK, right)["schedule"] == schedules.zero_terminal("linear", 100).spec


@st.composite
def betas(draw: st.DrawFn) -> dict[str, Any]:
    """The spec of a T-step schedule of ours."""
    name = draw(st.sampled_from(["linear", "quadratic", "sigmoid", "cosine", "from_betas", "zero_terminal"]))
    steps = draw(st.integers(1, 60))
    if name == "cosine":
        return {"name": name, "steps": steps, "s": draw(st.sampled_from([0.008, 0.2]))}
    if name == "from_betas":
        return {"name": name, "betas": draw(st.lists(st.floats(1e-4, 0.9), min_size=1, max_size=20))}
    if name == "zero_terminal":
        return {"name": name, "of": draw(st.sampled_from(["linear", "quadratic", "cosine"])), "steps": 40 + steps}
    scale = steps / 1000
    start, end = draw(st.floats(1e-4, 0.4)) * scale, draw(st.floats(0.4, 0.9)) * scale
    return {"name": name, "steps": steps, "beta_start": start, "beta_end": end}


@given(betas())
def test_their_schedule_has_our_alphas_and_reads_back_as_ours(spec: dict[str, Any]) -> None:
    from diffusers import DDPMScheduler

    ours = schedules.from_spec(spec)
    document = {"schedule": ours.spec, "learned_variance": False, "target": "v", "codec": {"name": "pixels"}}
    written = json.loads(json.dumps(diffusers_options.schedule_config(document)))
    theirs = DDPMScheduler.from_config(written)
    # float32 products of 1 - beta, where 1 - beta is rounded to 6e-8: least exact where beta is near 1
    torch.testing.assert_close(theirs.alphas_cumprod.double(), ours.alphas_cumprod, rtol=2e-3, atol=2e-6)
    if spec["name"] == "zero_terminal" and spec["steps"] == 1:
        return
    back = schedules.from_spec(diffusers_options.document(NETWORK, written)["schedule"])
    torch.testing.assert_close(back.betas, ours.betas, rtol=1e-12, atol=0)  # type: ignore[attr-defined]


@settings(max_examples=15)
@given(
    multipliers=st.lists(st.integers(1, 3), max_size=2).map(lambda more: (1, *more)),
    attention=st.sets(st.integers(0, 2)),
    blocks=st.integers(1, 2),
    adaptive=st.booleans(),
    residual_resampling=st.booleans(),
    pad_both=st.booleans(),
    head_channels=st.sampled_from([0, 4, 8]),
    groups=st.sampled_from([1, 4, 8]),
    classes=st.sampled_from([0, 4]),
)
def test_any_config_of_ours_is_a_network_of_theirs(attention: set[int], classes: int, **options: Any) -> None:
    """Names and shapes of all tensors, without their numbers; and their options read back are the same ones."""
    from diffusers import UNet2DModel

    levels = tuple(sorted(level for level in attention if level < len(options["multipliers"])))
    config = UNetConfig(channels=8, attention=levels, **options)
    document = {
        "network": "unet",
        "shape": [1, 4, 8],
        "options": vars(config),
        "conditions": {"classes": classes},
        "schedule": schedules.linear().spec,
        "target": "x0",
        "time": "index",
        "learned_variance": False,
        "codec": {"name": "pixels"},
    }
    net = diffusers_options.network(document)
    written = json.loads(json.dumps(diffusers_options.unet_config(document, net)))
    with torch.device("meta"):
        theirs = UNet2DModel.from_config(written).state_dict()
    made = diffusers_keys.to_theirs(net.state_dict(), net)
    assert {key: x.shape for key, x in made.items()} == {key: x.shape for key, x in theirs.items()}
    read = diffusers_options.document(diffusers_options.UNET | written, diffusers_options.SCHEDULE)["options"]
    heads = {"head_channels": config.head_channels}
    single = written["attention_head_dim"] is None
    resampling = {"residual_resampling": config.residual_resampling} if len(config.multipliers) == 1 else {}
    pads = len(config.multipliers) > 1 and not config.residual_resampling
    padding = {} if pads else {"pad_both": config.pad_both}
    assert UNetConfig(**{**read, **(heads if single else {}), **resampling, **padding}) == config


OURS_REFUSED: dict[str, dict[str, Any]] = {
    "network = 'mlp'": {"network": "mlp", "options": {}},
    "network = 'dit'": {"network": "dit", "options": {}},
    "number of axes (C, H, W) = 2": {"shape": (3, 8)},
    "number of axes (C, H, W) = 4": {"shape": (3, 8, 8, 8)},
    "patch = 2": {"options": {**OURS["options"], "patch": 2}},
    "time_scale = 1000.0": {"options": {**OURS["options"], "time_scale": 1000.0}},
    "the first of multipliers = 2": {"options": {**OURS["options"], "multipliers": (2, 4)}},
    "condition vector = 3": {"conditions": Conditions(vector=3)},
    "condition context = 3": {"conditions": Conditions(context=3)},
    "condition concat = 3": {"conditions": Conditions(concat=3)},
    "condition span = 1": {"conditions": Conditions(span=1)},
    "schedule = 'rectified'": {"schedule": {"name": "rectified"}},
    "schedule = 'cold'": {"schedule": {"name": "cold"}},
    "target = 'flow'": {"target": "flow"},
    "time = 'unit'": {"time": "unit"},
    "codec = 'dct'": {"codec": {"name": "dct", "levels": 256}},
    "source (a bridge's)": {"source": {"name": "mnist"}},
    "multiples of 4 with 3 levels": {"shape": (3, 28, 30), "options": {**OURS["options"], "multipliers": (1, 1, 1)}},
    "group norms of 24 and 32 groups": {
        "options": {**OURS["options"], "multipliers": (1,), "channels": 48, "groups": 32}
    },
    "attention heads of 16 and 24 channels": {
        "options": {**OURS["options"], "channels": 24, "multipliers": (1, 2), "attention": (0,), "head_channels": 15}
    },
}


@pytest.mark.parametrize("words", OURS_REFUSED)
def test_what_diffusers_has_not_is_refused_by_name(words: str, tmp_path: Path) -> None:
    config = ModelConfig(**(OURS | OURS_REFUSED[words]))
    with pytest.raises(ValueError, match="allowed") as caught:
        diffusers.write(tmp_path / "out", config.document(), {})
    text = str(caught.value)
    assert words in text
    assert "keep this model in a folder of ours" in text
    assert not list(tmp_path.iterdir())
