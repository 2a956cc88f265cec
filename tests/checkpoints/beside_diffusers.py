"""What the tests of diffusers' folders share: small networks of theirs and of ours, all of their numbers random."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sfumato
from sfumato import schedules
from sfumato.model import Model, ModelConfig, build_network
from sfumato.nn import Conditions

SMALL: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0,
    "attention_head_dim": None,
    "norm_num_groups": 8,
}
OURS: dict[str, Any] = {
    "shape": (3, 8, 8),
    "kind": "picture",
    "network": "unet",
    "options": {"channels": 16, "multipliers": (1, 2), "blocks": 1, "groups": 8},
    "conditions": Conditions(),
    "schedule": schedules.cosine().spec,
    "target": "eps",
    "time": "index",
    "learned_variance": False,
    "codec": {"name": "pixels", "levels": 256},
}
TIMES = (0, 1, 500, 999)


def randomised(net: torch.nn.Module) -> torch.nn.Module:
    """Every parameter random, those that start at zero or one too, so that all of the network speaks."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return net.eval()


def their_pipeline(folder: Path, schedule: dict[str, Any] | None = None, **options: Any) -> Any:
    """A DDPMPipeline with a random network, saved by itself."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    net = randomised(UNet2DModel(**{**SMALL, **options}))
    pipeline = DDPMPipeline(unet=net, scheduler=DDPMScheduler(**(schedule or {})))
    pipeline.save_pretrained(folder)
    return pipeline


def our_model(**changes: Any) -> Model:
    """A model with random weights; `changes` are fields of ModelConfig."""
    config = ModelConfig(**(OURS | changes))
    torch.manual_seed(1)
    return Model(config, randomised(build_network(config)), "# A card\n\nwith é.\n")


def answers(net: Any, shape: tuple[int, ...], classes: int, theirs: bool) -> Tensor:
    """What a network says of the same noise at several times, of several classes."""
    x = torch.randn(len(TIMES), *shape, generator=torch.Generator().manual_seed(3))
    t, label = torch.tensor(TIMES), torch.arange(len(TIMES)) % max(classes, 1)
    with torch.no_grad():
        if theirs:
            return net(x, t, class_labels=label if classes else None).sample
        return net(x, t, {"label": label} if classes else None)


def assert_same(ours: Model, theirs: Any) -> None:
    shape, classes = ours.config.shape, ours.config.conditions.classes
    expected = answers(theirs, shape, classes, theirs=True)
    assert expected.std() > 0.1
    largest_error = (answers(ours.net, shape, classes, theirs=False) - expected).abs().max()
    assert largest_error < 1e-5 * expected.abs().max()


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError, match="theirs") as caught:
        sfumato.load(folder)
    text = str(caught.value)
    assert "\n" not in text
    return text
