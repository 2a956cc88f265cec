"""Generate, write, film and evaluate: files that open, of the sizes and in the order they should have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from sfumato import data, processes
from sfumato.metrics import HistogramBits
from sfumato.processes import Share
from sfumato.tasks import Samples, check_out, evaluate, film, generate, write
from sfumato.tasks.evaluate import table
from sfumato.tasks.pictures import FILMED, layout, sheet, tile

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


def test_a_process_makes_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they make what one makes, and none more than its part; one of them may have none."""
    model = random_model()
    whole, seen = generate(model, 5, seed=3, guidance=1.5), list[torch.Tensor]()
    monkeypatch.setattr(processes, "joined", lambda mine, n, share: seen.append(mine) or mine)
    for rank in range(6):
        generate(model, 5, seed=3, guidance=1.5, batch=2, share=Share(rank, 6))
    assert [len(part) for part in seen] == [1, 1, 1, 1, 1, 0]
    assert np.array_equal(torch.cat(seen).numpy(), whole.x)
    seen.clear()
    for rank in range(2):
        generate(model, 5, seed=3, guidance=1.5, batch=2, share=Share(rank, 2))
    parts = [whole.x[[0, 2]], whole.x[[4]], whole.x[[1, 3]], whole.x[:0]]  # two blocks, of four rows and of one
    assert all(np.array_equal(mine.numpy(), part) for mine, part in zip(seen, parts, strict=True))
