"""A tiny untrained model of the digits, and a reader of CSVs."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from sfumato import data
from sfumato.experiments.report import Request
from sfumato.model import Model, ModelConfig, build_network
from sfumato.nn import Conditions

STEPS = 20


def tiny(seed: int) -> Model:
    """Weights drawn from the seed, T = 20 steps; it knows ten classes."""
    source = data.Data("digits", held_out=5)
    info = data.load(source).info
    config = ModelConfig(
        shape=info.shape,
        kind=info.kind,
        network="unet",
        options={"channels": 8, "multipliers": (1,), "blocks": 1, "groups": 4},
        conditions=Conditions(classes=10),
        schedule={"name": "cosine", "steps": STEPS, "s": 0.008},
        target="v",
        time="index",
        learned_variance=False,
        codec={"name": "pixels", "levels": 17},
        label_names=info.label_names,
        data={**asdict(source), "source": info.source, "rule": info.rule},
    )
    net = build_network(config)
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.data = 0.2 * torch.randn(p.shape, generator=generator)
    return Model(config, net)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[int], str]:
    """saved(seed) is the folder of the tiny model of that seed; always the same folder."""

    def save(seed: int) -> str:
        tiny(seed).save(tmp_path / "model")
        return str(tmp_path / "model")

    return save


@pytest.fixture
def request_of(tmp_path: Path, saved: Callable[[int], str]) -> Callable[..., Request]:
    """request_of(name) asks for a quick report of the tiny model under tmp_path."""
    return lambda name, seed=0: Request(name, tmp_path / name, quick=True, model=saved(seed))


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
