"""Generate, write, film and evaluate: files that open, of the sizes and in the order they should have."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from sfumato import data
from sfumato.data import Info
from sfumato.metrics import FeatureNetwork, HistogramBits, Seen
from sfumato.nn import MLPConfig
from sfumato.tasks import Samples, check_out, evaluate, film, generate, write
from sfumato.tasks import scores as by_features
from sfumato.tasks.evaluate import table
from sfumato.tasks.examine import Asked, Evaluation, examine, examine_all, reference_of
from sfumato.tasks.generate import Share, joined, launched
from sfumato.tasks.pictures import FILMED, layout, sheet, tile
from sfumato.tasks.subjects import Lens

from ..tiny import random_model, trained


def samples(x: np.ndarray, labels: np.ndarray | None = None, kind: str = "picture", levels: int | None = 17) -> Samples:
    return Samples(x, labels, {"seed": 0}, 1.0, kind, levels)


def test_levels_are_spread_over_all_of_uint8() -> None:
    x = np.arange(17, dtype=np.uint8).reshape(17, 1, 1, 1)
    images = samples(x).images()
    assert images.shape == (17, 1, 1, 1)
    assert images.flatten().tolist() == [round(k * 255 / 16) for k in range(17)]


@pytest.mark.parametrize(("n", "columns", "size"), [(1, 1, 8), (5, 2, 8), (6, 3, 64)])
def test_a_sheet_holds_every_picture_enlarged_by_a_whole_factor(n: int, columns: int, size: int) -> None:
    images = np.random.default_rng(0).integers(0, 255, (n, size, size, 3), dtype=np.uint8)
    page = tile(images, columns)
    factor = -(-48 // size)
    step = size * factor + 2
    assert page.shape == (-(-n // columns) * step + 2, columns * step + 2, 3)
    for i, image in enumerate(images):
        y, x = 2 + i // columns * step, 2 + i % columns * step
        assert np.array_equal(page[y : y + size * factor : factor, x : x + size * factor : factor], image)


def test_classes_in_turn_are_a_row_each() -> None:
    labels = np.arange(30) % 10
    order, columns = layout(samples(np.zeros((30, 1, 8, 8), np.uint8), labels))
    assert columns == 3
    assert labels[order].reshape(10, 3).tolist() == [[k] * 3 for k in range(10)]
    order, columns = layout(samples(np.zeros((30, 1, 8, 8), np.uint8), np.zeros(30, int)))
    assert order.tolist() == list(range(30))
    assert columns == 5


@pytest.mark.parametrize(
    ("shape", "kind"), [((6, 2), "vector"), ((6, 1), "vector"), ((6, 2, 30), "signal"), ((6, 1, 5, 8, 8), "volume")]
)
def test_all_kinds_have_a_picture_and_an_npz_and_none_a_folder(
    shape: tuple[int, ...], kind: str, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    given = samples(x, None, kind, None)
    assert sheet(given).dtype == np.uint8
    write(given, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert len(np.unique(np.asarray(picture))) > 1
    write(given, tmp_path / "a.npz")
    assert np.array_equal(np.load(tmp_path / "a.npz")["samples"], x)
    with pytest.raises(ValueError, match=f"these samples are {kind}s; write FILE.npz or FILE.png"):
        write(given, tmp_path / "folder")


def test_written_pictures_are_the_samples(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 17, (12, 1, 8, 8), dtype=np.uint8)
    given = samples(x, np.arange(12) % 3)
    write(given, tmp_path / "folder")
    for i, image in enumerate(given.images()):
        with Image.open(tmp_path / "folder" / str(i % 3) / f"{i:06d}.png") as picture:
            assert np.array_equal(np.asarray(picture), image[..., 0])
    assert json.loads((tmp_path / "folder" / "settings.json").read_text()) == {"seed": 0}
    write(given, tmp_path / "a.npz")
    stored = np.load(tmp_path / "a.npz", allow_pickle=False)
    assert np.array_equal(stored["images"], given.images())
    assert stored["labels"].tolist() == [i % 3 for i in range(12)]
    assert json.loads(str(stored["settings"])) == {"seed": 0}


def test_what_cannot_be_written_is_said_before(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot write '\.jpg'; allowed are FILE\.png, FILE\.npz or a folder"):
        check_out(tmp_path / "a.jpg", "picture")
    (tmp_path / "b.png").mkdir()
    with pytest.raises(ValueError, match=r"b\.png is a folder"):
        check_out(tmp_path / "b.png", "picture")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write .*file/a\.png: .*; choose another --out"):
        write(samples(np.zeros((1, 1, 8, 8), np.uint8)), tmp_path / "file" / "a.png")


def test_a_film_has_its_frames_and_ends_at_the_samples(tmp_path: Path) -> None:
    model = random_model()
    film(model, tmp_path / "deep" / "film.gif", n=20, seed=3)
    with Image.open(tmp_path / "deep" / "film.gif") as picture:
        assert picture.n_frames == 5  # type: ignore[attr-defined]  # four steps and the end
        assert picture.info["loop"] == 0
        picture.seek(4)
        assert picture.info["duration"] == 2500
        last = np.asarray(picture.convert("L")).astype(int)
    expected = sheet(generate(model, 20, seed=3), FILMED)[..., 0].astype(int)
    assert last.shape == expected.shape
    assert np.abs(last - expected).max() <= 8  # of 32 greys


@pytest.mark.slow
def test_scores_are_what_they_say() -> None:
    model, splits = sfumato.load(trained()), data.load(data.Data("digits"))
    said: list[str] = []
    scores = evaluate(model, splits, 20, seed=7, say=said.append)
    again = evaluate(model, splits, 20, seed=7)
    for name in ("bits_per_dim", "agreement", "nearest", "histogram_bits_per_dim"):
        assert scores[name] == again[name]
    assert scores["uniform_bits_per_dim"]["value"] == pytest.approx(np.log2(17))
    held_out = splits.held_out.take(np.arange(len(splits.held_out)))["x"].numpy()  # type: ignore[union-attr]
    train = splits.train.take(np.arange(len(splits.train)))["x"].numpy()  # type: ignore[union-attr]
    histogram = HistogramBits(train, 17)
    histogram.update(held_out)
    assert scores["histogram_bits_per_dim"]["value"] == pytest.approx(histogram.compute())
    assert scores["sampling"]["seed"] == 7
    assert scores["reference"]["held_out"] == splits.info.rule
    assert scores["agreement"]["judge_held_out_accuracy"] >= 0.98
    assert json.loads(json.dumps(scores))
    assert said[0] == "20 samples"
    words = " ".join(what for what, _ in table(scores))
    assert all(word in words for word in ("bits/dim", "histogram", "uniform", "agreement", "nearest", "sampling"))


def test_evaluate_refuses_before_it_measures() -> None:
    model, splits = random_model(), data.load(data.Data("digits"))
    said: list[str] = []
    with pytest.raises(ValueError, match="n must be a whole number"):
        evaluate(model, splits, 0, say=said.append)
    with pytest.raises(ValueError, match="unknown sampler 'foo'"):
        evaluate(model, splits, 5, sampler="foo", say=said.append)
    assert not [text for text in said if "bits" in text]


class Gathered:
    """One process of several: `gather` is given what the others would have sent."""

    def __init__(self, others: list[torch.Tensor]):
        self.others = others

    def __call__(self, mine: torch.Tensor) -> torch.Tensor:
        return torch.cat([mine, *self.others])


@pytest.mark.parametrize(("n", "world"), [(7, 3), (6, 3), (2, 3), (1, 2)])
def test_rows_of_several_processes_come_in_order(n: int, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.arange(n)[:, None].expand(n, 2) + 1
    most = -(-n // world)
    padded = [torch.cat([rows[r::world], torch.zeros(most - len(rows[r::world]), 2).long()]) for r in range(1, world)]
    monkeypatch.setattr("accelerate.utils.gather", Gathered(padded))
    assert torch.equal(joined(rows[0::world], n, Share(0, world)), rows)


def test_a_process_makes_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they make what one makes, and none more than its part; one of them may have none."""
    model = random_model()
    whole, seen = generate(model, 5, seed=3, guidance=1.5), list[torch.Tensor]()
    monkeypatch.setattr(sys.modules[Share.__module__], "joined", lambda mine, n, share: seen.append(mine) or mine)
    for rank in range(6):
        generate(model, 5, seed=3, guidance=1.5, batch=2, share=Share(rank, 6))
    assert [len(part) for part in seen] == [1, 1, 1, 1, 1, 0]
    assert np.array_equal(torch.cat(seen).numpy(), whole.x)
    seen.clear()
    for rank in range(2):
        generate(model, 5, seed=3, guidance=1.5, batch=2, share=Share(rank, 2))
    assert np.array_equal(seen[0].numpy(), whole.x[0::2])
    assert np.array_equal(seen[1].numpy(), whole.x[1::2])
    assert launched() == Share(0, 1)


# examine: the model, its features and its steps -----------------------------------------------------------------------


def stub(images: np.ndarray) -> Seen:
    x = images.reshape(len(images), -1).astype(np.float32) / 255
    return Seen(np.stack([x[:, k::5].mean(1) for k in range(5)], 1), None)


@cache
def examined() -> Evaluation:
    asked = Asked(n=24, seed=5, ode=0, by_steps=(2, 7))
    model = sfumato.load(trained())
    held = reference_of(model, asked)
    assert held is not None
    found = examine("tiny", model, asked, held, Lens(FeatureNetwork("stub", "FD(stub)", stub), held))
    assert found is not None
    return found


@pytest.mark.slow
def test_every_score_is_stored_with_all_that_says_how_it_was_measured() -> None:
    scores = json.loads(json.dumps(examined().scores))
    names = [row["name"] for row in scores["records"]]
    for wanted in ("bits/dim", "FD(stub)", "kernel", "precision", "recall", "density", "coverage", "label agreement"):
        assert any(name.startswith(wanted) for name in names), wanted
    for row in scores["records"]:
        assert row.keys() == {
            *("name", "value", "error", "real", "better", "n", "reference", "features", "seconds"),
            *("sampler", "steps", "grid", "seed", "guidance", "ema", "sampling_seconds"),
        }
        assert row["n"] > 0
        assert row["reference"]
        assert (row["sampler"], row["steps"], row["seed"], row["guidance"]) == ("ddim", 4, 5, 1.0)
        assert row["ema"] == 0.05
        assert row["seconds"] >= 0
        assert row["sampling_seconds"] > 0
    fd = scores["records"][names.index("FD(stub)")]
    assert (fd["n"], fd["features"], fd["reference"]) == (24, "stub", "test split of digits, 179 rows")
    assert fd["value"] == scores["by_features"]["frechet"]
    assert fd["real"] == scores["by_features"]["floor"]["frechet"]
    assert scores["by_features"]["floor"]["n"] == 24
    how = scores["how"]
    assert (how["threads"], how["processes"], how["n"], how["features"]) == (torch.get_num_threads(), 1, 24, "stub")
    assert how["sfumato"] == "0.1.0"


@pytest.mark.slow
def test_scores_by_features_and_by_steps_are_those_of_the_samples() -> None:
    """The same as asked of `scores` directly, with samples made anew."""
    found, model = examined(), sfumato.load(trained())
    splits = data.load(model.config.trained_on)
    network = FeatureNetwork("stub", "FD(stub)", stub)
    held_out = by_features.pictures_of(splits.held_out, len(splits.held_out), 17)
    seen = by_features.reference(held_out, "r", network)
    for steps, n in ((4, 24), (2, 24), (7, 24)):
        samples = generate(model, n, seed=5, steps=steps)
        direct = by_features.score(samples.images(), seen, network)["frechet"]
        points = {p["steps"]: p["value"] for p in found.scores["by_steps"]["points"]}
        assert direct == pytest.approx(
            found.scores["by_features"]["frechet"] if steps == 4 else points[steps], rel=1e-9
        )
    floor = by_features.floor(by_features.pictures_of(splits.train, 24, 17), seen, network)
    assert found.scores["by_features"]["floor"]["frechet"] == pytest.approx(floor["frechet"])
    assert found.scores["by_steps"]["real"] == pytest.approx(floor["frechet"])
    words = dict(table(found.scores))
    assert words["FD(stub), n = 24"] == f"{found.scores['by_features']['frechet']:.4g}"
    assert "fewer than 50,000" in words["note"]
    assert "  of 24 real training pictures" in words


def test_what_cannot_be_asked_is_said_before_sampling(tmp_path: Path) -> None:
    np.savez(tmp_path / "big.npz", images=np.zeros((20, 9, 9), np.uint8))
    np.savez(tmp_path / "a.npz", images=np.zeros((20, 8, 8), np.uint8))
    random_model(info=Info((2,), "vector", None), network=MLPConfig(width=16, depth=1)).save(tmp_path / "vectors")
    run, a, big, vectors = str(trained()), *(str(tmp_path / name) for name in ("a.npz", "big.npz", "vectors"))
    said: list[str] = []
    for names, asked, expected in (
        ([run], Asked(by_steps=(5, 21)), "steps must be a whole number from 1 to 20; got 21"),
        ([run], Asked(weights="w.pt"), "--weights w.pt came without --features"),
        ([run], Asked(features="nothing"), "features nothing are none of"),
        ([run], Asked(reference="nothing"), "unknown reference 'nothing'"),
        ([run], Asked(reference=big), "pictures of 8x8 came, and .* has 9x9"),
        ([run, big], Asked(), "pictures of 9x9 came, and test split of digits, 179 rows has 8x8"),
        ([run, run], Asked(), "each named once"),
        ([run, vectors], Asked(), "makes vectors; only models of one kind can be compared"),
        ([a], Asked(), "pictures do not say which data they are like"),
        ([a], Asked(reference="digits", steps=5), "--steps is for models, and only pictures came"),
        ([vectors], Asked(features="mnist"), "--features is for pictures, and this model makes vectors"),
    ):
        with pytest.raises(ValueError, match=expected) as told:
            examine_all(names, asked, say=said.append)
        assert "\n" not in str(told.value)
    assert not said
