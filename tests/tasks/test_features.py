"""Feature networks by name: the table, a classifier's folder, and what a wrong name is told."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.classifier import Classifier, ClassifierConfig, build_classifier, classifiers
from sfumato.tasks.features import NETWORKS, feature_network


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    options = {"channels": 8, "multipliers": [1, 2], "blocks": 1}
    config = ClassifierConfig((1, 8, 8), ("a", "b", "c"), {"name": "pixels", "levels": 256}, options)
    net = build_classifier(config)
    torch.nn.init.normal_(net.out.weight)
    Classifier(config, net, "a card").save(tmp_path / "judge", half=False)
    return tmp_path / "judge"


def test_a_folder_of_a_classifier(folder: Path) -> None:
    network = feature_network(folder)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    seen = network.look(images)
    assert (network.name, network.title, network.label_names) == (str(folder), f"FD({folder})", ("a", "b", "c"))
    assert network.weights == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]
    assert seen.features.shape[0] == 5
    assert seen.features.std() > 0
    np.testing.assert_allclose(np.exp(seen.log_probs).sum(1), 1, rtol=1e-5)


def test_a_name_of_the_zoo_is_the_zoos_whatever_lies_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, folder.parent / "mnist")
    shipped = hashlib.sha256((classifiers()["mnist"] / "model.safetensors").read_bytes()).hexdigest()[:16]
    monkeypatch.chdir(folder.parent)
    assert feature_network("mnist").weights == shipped
    assert len(feature_network("mnist").label_names) == 10
    assert feature_network("./mnist").weights == feature_network(folder).weights != shipped


def test_the_table_names_its_networks() -> None:
    assert sorted(NETWORKS) == ["efficientnet-lite0", "inception-fid"]
    assert feature_network("efficientnet-lite0").name == "efficientnet-lite0"


def test_wrong_names_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        ValueError, match="features eficientnet are none of inception-fid, efficientnet-lite0, and no clas"
    ):
        feature_network("eficientnet")
    with pytest.raises(ValueError, match="only inception-fid takes a file of weights"):
        feature_network("mnist", weights="w.pth")
    with pytest.raises(ValueError, match="have their own weights"):
        feature_network("efficientnet-lite0", weights="w.pth")
    with pytest.raises(ValueError, match=r"w\.pth, which is not there; fetch https://"):
        feature_network("inception-fid", weights="w.pth")
