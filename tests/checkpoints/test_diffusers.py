"""Folders of diffusers beside diffusers itself: what it saves is read, what we write it reads, and all say the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import sfumato
from sfumato import cli, schedules
from sfumato.checkpoints import diffusers
from sfumato.model import Sampling
from sfumato.nn import Conditions
from sfumato.variances import VARIANCES

from .beside_diffusers import answers, assert_same, edit, our_model, refusal, their_pipeline

ATTEND = {"down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D",) * 2}
RESNETS = {"downsample_type": "resnet", "upsample_type": "resnet", "downsample_padding": 1}
ADAPTIVE = {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8}
# every way in which their network is a function of ours
SAME: dict[str, dict[str, Any]] = {
    "ddpm": {"flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6},
    "their defaults": {},
    "padded at both ends": {"downsample_padding": 1},
    "heads": {"attention_head_dim": 8, "act_fn": "swish", "dropout": 0.3},
    "attention everywhere": {**ATTEND, "attention_head_dim": 16},
    "attention everywhere, resnets": {**ATTEND, **RESNETS},
    "resnet blocks": {
        "down_block_types": ("ResnetDownsampleBlock2D", "DownBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "UpBlock2D"),
        "downsample_padding": 1,
    },
    "adaptive": {**ADAPTIVE, "flip_sin_to_cos": False},
    "adm": {
        **ADAPTIVE,
        **RESNETS,
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "block_out_channels": (16, 16, 48),
        "layers_per_block": 2,
        "attention_head_dim": 8,
    },
    "classes": {"num_class_embeds": 5},
    "learned variance": {"out_channels": 6},
    "one level": {
        "block_out_channels": (16,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "downsample_padding": 1,
    },
    "grey, not square": {"in_channels": 1, "out_channels": 1, "sample_size": (8, 4)},
    "old names of blocks": {
        "down_block_types": ("UNetResDownBlock2D", "UNetResAttnDownBlock2D"),
        "up_block_types": ("UNetResAttnUpBlock2D", "UNetResUpBlock2D"),
    },
}

# theirs as ours -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", SAME.values(), ids=SAME.keys())
def test_a_network_that_diffusers_saved_answers_as_there(options: dict[str, Any], tmp_path: Path) -> None:
    learned = {"variance_type": "learned_range"} if "out_channels" in options and options["out_channels"] == 6 else {}
    pipeline = their_pipeline(tmp_path / "theirs", learned, **options)
    model = sfumato.load(tmp_path / "theirs")
    assert_same(model, pipeline.unet)
    assert model.config.learned_variance == bool(learned)
    assert model.config.conditions.classes == options.get("num_class_embeds", 0)
    model.export(tmp_path / "ours")  # and back again
    from diffusers import UNet2DModel

    assert_same(model, UNet2DModel.from_pretrained(tmp_path / "ours", subfolder="unet"))


PREDICTED = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


@pytest.mark.parametrize("prediction", PREDICTED)
def test_what_is_predicted_at_every_step_is_what_their_step_takes(prediction: str, tmp_path: Path) -> None:
    """x_0 and the learned log variance, for an odd number of steps and every one of them."""
    schedule = {
        "num_train_timesteps": 7,
        "beta_start": 0.05,
        "beta_end": 0.5,
        "prediction_type": prediction,
        "variance_type": "learned_range",
        "clip_sample": False,
    }
    pipeline = their_pipeline(tmp_path, schedule, out_channels=6)
    model = sfumato.load(tmp_path, precision="float32-fast")
    assert model.config.target == PREDICTED[prediction]
    assert not model.config.sampling.clip
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    own = model.denoiser.schedule
    for i in range(7):
        t = torch.full((2,), (i + 1) / 7, dtype=torch.float64)
        ours = model.denoiser(x, t)
        with torch.no_grad():
            said = pipeline.unet(x, i).sample
            step = pipeline.scheduler.step(said, i, x, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(ours.x0, step.pred_original_sample, atol=1e-4, rtol=1e-4)
        if i > 0:  # at the last step they clip the variance at 1e-20, we as Improved DDPM does
            expected = pipeline.scheduler._get_variance(i, predicted_variance=said[:, 3:])
            log_variance = VARIANCES["learned"](own, t, t - 1 / 7, ours)
            torch.testing.assert_close(log_variance.float(), expected, atol=1e-3, rtol=1e-3)


def test_the_network_alone_is_read_with_ddpms_betas_and_the_card_says_so(tmp_path: Path) -> None:
    pipeline = their_pipeline(tmp_path / "whole", {"beta_schedule": "squaredcos_cap_v2"}, num_class_embeds=4)
    pipeline.unet.save_pretrained(tmp_path / "alone")
    (tmp_path / "alone" / "README.md").write_text("# What they say\n")
    model = sfumato.load(tmp_path / "alone")
    assert_same(model, pipeline.unet)
    assert model.config.schedule == schedules.linear().spec
    assert "1,000 linear betas and the target eps are assumed" in model.card
    assert "classes have no names" in model.card
    assert model.card.endswith("# What they say\n")
    inside = sfumato.load(tmp_path / "whole" / "unet")  # the pipeline around it is seen
    assert inside.config.schedule["name"] == "cosine"
    assert "assumed" not in inside.card


def test_without_a_label_the_embedding_of_the_time_is_all(tmp_path: Path) -> None:
    pipeline = their_pipeline(tmp_path, num_class_embeds=5)
    model = sfumato.load(tmp_path)
    with torch.no_grad():
        pipeline.unet.class_embedding.weight[2] = 0
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        expected = pipeline.unet(x, t, class_labels=torch.tensor([2, 2])).sample
    torch.testing.assert_close(model.net(x, t, None), expected, atol=1e-5, rtol=1e-5)


def test_an_old_folder_with_all_files_in_one_place_and_old_names_of_attention(tmp_path: Path) -> None:
    """As google/ddpm-cifar10-32 has them."""
    pipeline = their_pipeline(tmp_path / "new", {"beta_end": 0.01})
    old = tmp_path / "old"
    old.mkdir()
    for path in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        shutil.copy(tmp_path / "new" / path, old)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(tmp_path / "new" / "unet" / diffusers.WEIGHTS)
    for new, name in names.items():
        tensors = {key.replace(f".{new}.", f".{name}."): x for key, x in tensors.items()}
    assert any("proj_attn" in key for key in tensors)
    save_file(tensors, old / diffusers.WEIGHTS)
    model = sfumato.load(old)
    assert_same(model, pipeline.unet)
    assert model.config.schedule["beta_end"] == 0.01


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diffusers") / "saved"
    their_pipeline(folder)
    return folder


@pytest.fixture
def theirs(saved: Path, tmp_path: Path) -> Path:
    """A folder of theirs to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "theirs"))


def test_folders_that_are_edited_or_of_another_pipeline(theirs: Path) -> None:
    network, schedule = theirs / "unet" / "config.json", theirs / "scheduler" / "scheduler_config.json"
    edit(network, act_fn="gelu")
    assert "act_fn = 'gelu' came, allowed is 'silu' or 'swish'" in refusal(theirs)
    edit(network, act_fn="silu", block_out_channels=None)
    assert "a file of it was edited" in refusal(theirs)
    edit(network, block_out_channels=[16, 32])
    edit(schedule, rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="eps"):  # alpha = 0 at t = 1, where eps says nothing of x_0
        sfumato.load(theirs)
    edit(schedule, prediction_type="v_prediction")
    assert sfumato.load(theirs).config.schedule == {"name": "zero_terminal", "of": "linear", "steps": 1000}
    edit(theirs / "model_index.json", vqvae=["diffusers", "VQModel"])
    assert "unet and vqvae" in refusal(theirs)


WEIGHTS_SPOILT: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda x: x.pop("mid_block.attentions.0.to_k.bias"), "to_k.bias is missing, wanted is (32,)"),
    "foreign": (lambda x: x.update(more=torch.zeros(2)), "more is (2,), wanted is nothing"),
    "misshapen": (lambda x: x.update({"conv_in.bias": torch.zeros(9)}), "conv_in.bias is (9,), wanted is (16,)"),
}


@pytest.mark.parametrize("how", WEIGHTS_SPOILT)
def test_weights_of_another_network_are_named(how: str, theirs: Path) -> None:
    path = theirs / "unet" / diffusers.WEIGHTS
    tensors = load_file(path)
    spoil, words = WEIGHTS_SPOILT[how]
    spoil(tensors)
    save_file(tensors, path)
    text = refusal(theirs)
    assert words in text
    assert "take the pair" in text


def test_files_that_are_torn_or_missing_are_named(theirs: Path) -> None:
    weights = theirs / "unet" / diffusers.WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-9])
    assert "torn" in refusal(theirs)
    weights.unlink()
    assert "nothing like it" in refusal(theirs)
    (weights.parent / "diffusion_pytorch_model.fp16.safetensors").write_bytes(whole)
    assert "without a variant" in refusal(theirs)
    (weights.parent / "diffusion_pytorch_model.bin").write_bytes(b"not opened")
    text = refusal(theirs)
    assert "pickle" in text
    assert "safe_serialization=True" in text
    weights.write_bytes(whole)
    assert sfumato.load(theirs).config.kind == "picture"  # a pickle beside the tensors is left alone
    (theirs / "scheduler" / "scheduler_config.json").unlink()
    assert "scheduler_config.json is missing" in refusal(theirs)
    (theirs / "unet" / "config.json").write_text('{"_class_name": ')
    assert "torn or was edited" in refusal(theirs)


# ours as theirs -------------------------------------------------------------------------------------------------------

STYLES: dict[str, dict[str, Any]] = {
    "adm": {},
    "ddpm": {"adaptive": False, "residual_resampling": False, "head_channels": 0},
    "added, resampled by resnets": {"adaptive": False, "attention": (0, 1), "head_channels": 8},
    "adaptive, convolutions": {"residual_resampling": False, "attention": (1,), "freq_shift": 0.0, "norm_eps": 1e-5},
}


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES.keys())
@pytest.mark.parametrize("classes", [0, 3])
def test_diffusers_reads_what_we_write_and_so_do_we(style: dict[str, Any], classes: int, tmp_path: Path) -> None:
    from diffusers import DDPMPipeline, UNet2DModel

    model = our_model(
        options={"channels": 16, "multipliers": (1, 2), "blocks": 2, "groups": 8, "dropout": 0.1, **style},
        conditions=Conditions(classes=classes),
        codec={"name": "pixels", "levels": 17},
        label_names=("a", "b", "ç")[:classes],
        sampling=Sampling(sampler="ancestral", steps=9, guidance=2.0, clip=False),
        learned_variance=classes == 3,
        target="v",
        data={"name": "digits", "source": "x"},
        training={"step": 7, "scores": {"loss": 1 / 3}},
    )
    model.export(tmp_path / "out")
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "out")
    assert_same(model, pipeline.unet)
    _, told = UNet2DModel.from_pretrained(tmp_path / "out", subfolder="unet", output_loading_info=True)
    assert not any(told.values()), told
    if classes:  # the last row is no label
        x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
        with torch.no_grad():
            expected = pipeline.unet(x, t, class_labels=torch.tensor([3, 3])).sample
        torch.testing.assert_close(model.net(x, t, None), expected, atol=1e-5, rtol=1e-5)
    expected = model.denoiser.schedule.alphas_cumprod.float()  # type: ignore[attr-defined]
    torch.testing.assert_close(pipeline.scheduler.alphas_cumprod, expected, rtol=2e-5, atol=1e-7)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.scheduler.config.clip_sample is False

    again = sfumato.load(tmp_path / "out")
    assert json.dumps(again.config.document()) == json.dumps(model.config.document())
    assert again.card == model.card
    state = model.net.state_dict()
    assert state.keys() == again.net.state_dict().keys()
    assert all(torch.equal(x, state[key]) for key, x in again.net.state_dict().items())


def test_without_our_file_the_function_is_still_the_same(tmp_path: Path) -> None:
    model = our_model(learned_variance=True, schedule=schedules.quadratic(steps=60).spec)
    model.export(tmp_path / "out")
    (tmp_path / "out" / "sfumato.json").unlink()
    again = sfumato.load(tmp_path / "out")
    expected = answers(model.net, (3, 8, 8), 0, theirs=False)
    torch.testing.assert_close(answers(again.net, (3, 8, 8), 0, theirs=False), expected, rtol=0, atol=0)
    torch.testing.assert_close(again.denoiser.schedule.betas, model.denoiser.schedule.betas, rtol=1e-12, atol=0)  # type: ignore[attr-defined]


def test_our_file_must_fit_theirs(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    our_model().export(folder)
    edit(folder / "scheduler" / "scheduler_config.json", clip_sample=False, timestep_spacing="leading")
    sfumato.load(folder)  # which is about sampling
    edit(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    text = refusal(folder)
    assert "prediction_type = 'v_prediction' came, allowed is 'epsilon'" in text
    assert "delete sfumato.json" in text
    edit(folder / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    edit(folder / "unet" / "config.json", norm_eps=0.1)
    assert "norm_eps = 0.1 came" in refusal(folder)
    edit(folder / "unet" / "config.json", norm_eps=1e-6)
    edit(folder / "sfumato.json", options={"channel": 3})
    assert "was edited" in refusal(folder)
    edit(folder / "sfumato.json", network="mlp")
    assert "network = 'mlp' came, allowed is 'unet'" in refusal(folder)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = our_model()

    def full(*anything: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(diffusers, "save_file", full)
        with pytest.raises(ValueError, match=r"cannot write .*out: No space left on device; free space"):
            model.export(tmp_path / "out")
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()  # an empty folder is as good as none
    model.export(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(ValueError, match="is there already"):
        model.export(tmp_path / "out")
    assert ((tmp_path / "out" / "unet" / diffusers.WEIGHTS).stat().st_mode & 0o777) == 0o644


def test_the_command_exports_a_model_of_the_zoo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "digits", str(tmp_path / "out")]) == 0
    assert "DDPMPipeline" in capsys.readouterr().out
    model, again = sfumato.load("digits"), sfumato.load(tmp_path / "out")
    assert again.config == model.config
    assert torch.equal(again.sample(2, label="3", steps=3), model.sample(2, label="3", steps=3))
    assert cli.main(["export", "digits"]) == 2
    assert "takes a MODEL and a FOLDER" in capsys.readouterr().err
    assert cli.main(["export", "--help"]) == 0
