"""The page of an evaluation: whole HTML that needs no other file, in which every number is the one in the JSON."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato.metrics import FeatureNetwork, Seen
from sfumato.tasks import page, plots
from sfumato.tasks.asked import Asked
from sfumato.tasks.examine import Evaluation, chosen, examine
from sfumato.tasks.records import best, cautions, side_by_side
from sfumato.tasks.subjects import Against, Lens, Pictures, scattered

VOID = {"meta", "img", "br", "path", "rect", "circle"}
NAMES = ("zero", "<one> & more", "two")


class Checker(HTMLParser):
    """Every tag closed in its turn, every picture whole and told, nothing fetched from elsewhere."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[np.ndarray] = []
        self.texts: list[str] = []
        self.count: dict[str, int] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        given = dict(attrs)
        assert tag not in ("script", "link", "iframe", "object", "base")
        assert not {"href", "srcset", "onload", "xlink:href", "style"} & given.keys()
        if tag == "img":
            assert given["alt"]
            kind, text = str(given["src"]).split(",", 1)
            assert kind == "data:image/png;base64"
            with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as picture:
                picture.load()
                assert (str(picture.width), str(picture.height)) == (given["width"], given["height"])
                self.pictures.append(np.asarray(picture))
        if tag == "svg":
            assert given["role"] == "img"
            assert given["aria-label"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def look(images: np.ndarray) -> Seen:
    """Six numbers of a picture, and how sure three classes are of it."""
    x = images.reshape(len(images), -1).astype(np.float64) / 255
    logits = 20 * x[:, :3]
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return Seen(np.stack([x[:, k::6].mean(1) for k in range(6)], 1).astype(np.float32), log_probs.astype(np.float32))


NETWORK = FeatureNetwork("stub", "FD(stub)", look, NAMES)


def drawn(n: int, seed: int, top: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, (n, 6, 6, 1), dtype=np.uint8)


@cache
def held() -> Against:
    train = drawn(80, 1)
    labels = np.arange(80) % 3
    reference, held_out = drawn(60, 2), drawn(30, 3)
    return Against("a test part", reference, lambda n: (train[:n], None), "training", held_out, train, labels, NAMES)


@cache
def evaluated(name: str, n: int = 40, top: int = 256, labelled: bool = True, real: int = 80) -> Evaluation:
    images = drawn(50, 9, top)
    images[scattered(50, n)[3]] = held().train[7]  # type: ignore[index]  # a copy
    labels = np.arange(50) % 3 if labelled else None
    pictures = Pictures(name, images, labels, NAMES if labelled else (), {"sampler": "ddim", "steps": 7, "seed": 1})
    train, asked = held().train, Asked(n=n)
    assert train is not None
    against = replace(held(), real=lambda n: (train[: min(n, real)], None))
    return examine(name, pictures, chosen(pictures, asked, against), asked, against, Lens(NETWORK, against))


def test_a_page_is_whole_and_needs_nothing_else() -> None:
    found = evaluated("<b>mine</b> & yours")
    text = page.html([found], "sfumato evaluate '<x>'")
    checked = Checker(text)
    said = " ".join(checked.texts)
    assert "<b>mine</b> & yours" in said  # as text, not as tags
    assert "<b>" not in text
    assert "sfumato evaluate '<x>'" in said
    assert "<one> & more" in said
    assert "http" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    assert checked.count["svg"] == 2
    assert "n = 40 is fewer than 50,000" in said
    classes, shown = 3, len(found.shown)
    assert checked.count["img"] == classes + 3 * shown  # each sample, its neighbours by pixels and by features
    for row in found.scores["records"]:
        assert row["name"] in said
        assert f"{row['value']:.4g}" in said
    for word in ("ddim", "7", "a test part", "stub"):
        assert word in said


def test_the_nearest_training_pictures_are_the_nearest() -> None:
    found = evaluated("a")
    train, images = held().train, found.samples.images()
    assert train is not None
    assert found.near is not None
    assert found.shown[:8] == list(range(8))  # unselected; sample 3, the copy, is among them
    pixels, features = found.neighbours
    for k, i in enumerate(found.shown):
        far = np.sqrt(((train.astype(float) - images[i]) ** 2).sum((1, 2, 3)))
        order = np.argsort(far)[:3]
        np.testing.assert_allclose(pixels.distances[k], far[order])
        assert np.array_equal(pixels.pictures[k], train[order])
        seen = look(train).features.astype(float) - look(images[i : i + 1]).features
        np.testing.assert_allclose(features.distances[k], np.sort(np.sqrt((seen**2).sum(1)))[:3], atol=1e-6)
    assert pixels.distances[3][0] == 0
    assert found.near.samples.min() == found.near.samples[3] == 0


def test_side_by_side_marks_the_best_and_says_what_is_not_alike(tmp_path: Path) -> None:
    good, bad = evaluated("good"), evaluated("bad", top=90)
    text = page.html([good, bad])
    checked = Checker(text)
    said = " ".join(checked.texts)
    assert "is not the same for all" not in said
    assert "good and bad compared" in said
    for name, rows in side_by_side([good.scores, bad.scores]):
        which = best(rows)
        assert all(row is not None for row in rows)
        values = [row["value"] for row in rows if row is not None]
        if name.startswith(("FD", "kernel")):
            assert which == 0
            assert values[0] < values[1]
        if name.startswith("distance"):
            assert which is None
    assert text.count('class="number best"') == sum(
        best(r) is not None for _, r in side_by_side([good.scores, bad.scores])
    )
    told = page.printed([good, bad])
    assert told.heads == ["score", "good", "bad"]
    assert next(row for row in told.rows if row[0] == "FD(stub)")[1].endswith(" *")
    page.write(tmp_path / "deep" / "page", [good, bad], "")
    stored = json.loads((tmp_path / "deep" / "page" / "scores.json").read_text())
    assert stored["compared"]["bad"] == json.loads(json.dumps(bad.scores))
    assert (tmp_path / "deep" / "page" / "index.html").read_text() == text


def test_what_is_measured_otherwise_is_said_and_no_one_is_best() -> None:
    good, fewer = evaluated("good"), evaluated("fewer", n=30, top=90)
    said = " ".join(Checker(page.html([good, fewer])).texts)
    assert "n is not the same for all (good: 40, fewer: 30)" in said
    assert any("n is not the same" in note for note in page.printed([good, fewer]).notes)
    for name, rows in side_by_side([good.scores, fewer.scores]):
        if name.startswith(("FD", "kernel", "precision")):
            assert best(rows) is None


def test_features_that_were_learned_from_the_floors_pictures_say_so() -> None:
    how = {**evaluated("good").scores["how"], "features_learned": "the training part of stubs"}
    (said,) = [line for line in cautions([how, how]) if "learned" in line]
    assert said.startswith("the features were learned from the training part of stubs: of training pictures")
    assert not any("learned" in line for line in cautions([evaluated("good").scores["how"]]))


def test_best_needs_two_that_differ() -> None:
    lower = {"better": "lower", "value": 1.0, "error": None, "n": 40, "reference": "a", "features": None}
    assert best([lower, {**lower, "value": 2.0, "reference": "b"}]) is None
    assert best([lower, None]) is None
    assert best([lower, {**lower, "value": 2.0}, None]) == 0
    assert best([{**lower, "better": "higher"}, {**lower, "better": "higher", "value": 2.0}]) == 1
    assert best([lower, lower]) is None
    assert best([{**lower, "better": None}, {**lower, "better": None, "value": 2.0}]) is None
    assert best([{**lower, "value": float("nan")}, lower]) is None


def test_best_leads_by_more_than_the_error() -> None:
    """Two standard errors of the difference, to each of the others: 0.05 beside 0.12 is 0.13, twice."""

    def kernel(*values: tuple[float, float]) -> list[dict[str, object]]:
        alike = {"better": "lower", "n": 40, "reference": "a", "features": None}
        return [{**alike, "value": value, "error": error} for value, error in values]

    assert best(kernel((-0.02, 0.05), (0.2, 0.12))) is None  # an estimate below 0 is none that wins
    assert best(kernel((-0.02, 0.05), (0.25, 0.12))) == 0
    assert best(kernel((0.25, 0.12), (-0.02, 0.05))) == 1
    assert best(kernel((0.0, 0.01), (0.1, 0.01), (0.2, 0.2))) is None  # the third may be better
    assert best(kernel((0.0, 0.01), (0.1, 0.01), (0.2, 0.05))) == 0


def test_density_and_coverage_are_best_near_the_real() -> None:
    rows = {row["name"]: row for row in evaluated("a").scores["records"]}
    assert [rows[f"{name} (stub)"]["better"] for name in ("precision", "recall", "density", "coverage")] == [
        *("higher", "higher", None, None)
    ]
    assert "near the real" in page.html([evaluated("a")])


def how(**changes: Any) -> dict[str, Any]:
    names = ("n", "reference", "sampler", "steps", "grid", "seed", "guidance", "features", "real_n")
    return {**dict.fromkeys(names, 60_000), "subject": "a", **changes}


def test_cautions() -> None:
    assert cautions([how(), how(subject="b")]) == []
    (said,) = cautions([how(), how(subject="b", guidance={"scale": 2.0})])
    assert said.startswith("guidance is not the same for all (a: 60,000, b: scale 2)")
    (said,) = cautions([how(n=10, real_n=10)])
    assert said.startswith("n = 10 is fewer than 50,000")
    assert "Frechet" in said
    (said,) = cautions([how(n=10, real_n=None, features=None)])  # where nothing was measured by features
    assert said.startswith("n = 10 is fewer than 50,000")
    assert "Frechet" not in said
    assert cautions([how(real_n=None)]) == []
    (said,) = cautions([how(real_n=359)])
    assert said.startswith("the real data beside a are 359 pictures, all there are, and its samples 60,000")


def test_fewer_real_pictures_are_said_beside_their_score() -> None:
    few = evaluated("a", real=17)
    row = next(row for row in few.scores["records"] if row["name"] == "FD(stub)")
    assert row["real_n"] == 17
    text = page.html([few])
    assert f"{row['real']:.4g} (n = 17)" in text
    assert any("beside a are 17 pictures" in note for note in page.printed([few]).notes)
    assert "(n = " not in page.html([evaluated("a")])
    assert not page.printed([evaluated("a")]).notes  # the caution stands in the table


def test_that_nothing_was_measured_by_features_is_said() -> None:
    found = evaluated("a")
    bare = {key: value for key, value in found.scores.items() if key != "by_features"}
    bare["how"] = {**bare["how"], "features": None, "real_n": None}
    none = replace(found, scores=bare)
    assert any("no scores by features: --features efficientnet-lite0" in note for note in page.printed([none]).notes)
    assert "no scores by features" in page.html([none])
    assert "no scores by features" not in page.html([found])
    vectors = replace(none, samples=replace(found.samples, kind="vector"))
    assert not any("features" in note for note in page.printed([vectors]).notes)


def test_unlabelled_and_other_kinds_have_pages() -> None:
    plain = evaluated("plain", labelled=False)
    assert len(Checker(page.html([plain])).pictures) == 1 + 3 * len(plain.shown)
    vectors = replace(
        plain.samples, x=np.random.default_rng(0).standard_normal((20, 2)), kind="vector", levels=None, labels=None
    )
    checked = Checker(page.html([replace(plain, samples=vectors, neighbours=(), near=None)]))
    assert len(checked.pictures) == 1


def test_a_hundred_classes_are_not_all_shown() -> None:
    found = evaluated("a")
    many = replace(found.samples, labels=np.arange(40))
    text = page.html([replace(found, samples=many, neighbours=())])
    assert len(Checker(text).pictures) == page.CLASSES
    assert "20 more classes" in text


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["digits"], "digits"),
        (["runs/mine"], "mine"),
        (["runs/mine/model"], "mine"),
        (["/a/runs/mine/best"], "mine-best"),
        (["../x/s.npz:train_images"], "s"),
        (["digits", "b/s.npz"], "digits-vs-s"),
        (["."], "pictures"),
    ],
)
def test_where_a_page_goes(names: list[str], expected: str) -> None:
    assert page.folder_of(names) == Path("evaluations") / expected


def test_a_page_that_cannot_be_written_is_said_before(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write .*file/page: .* choose another --page"):
        page.check_folder(tmp_path / "file" / "page")
    page.check_folder(tmp_path / "new" / "page")


# plots ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (3.0, 47.0, [10, 20, 30, 40]), (-0.02, 0.05, [-0.02, 0, 0.02, 0.04])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    np.testing.assert_allclose(plots.ticks(low, high), expected, atol=1e-12)


def test_lines_stand_where_their_values_are() -> None:
    """Read back from the SVG: y is linear between two ticks, and x is linear or logarithmic."""
    points = [(5, 4.0), (10, 2.0), (50, 1.0), (100, float("nan"))]
    for log_x in (True, False):
        real = {"real data": [(5, 0.5), (100, 0.5)]}
        text = plots.lines({"a": points}, "x", "y", "told", real=real, log_x=log_x)
        Checker(text)
        path = re.search(r'class="line c0" d="M([^"h]+)"', text)
        assert path is not None
        where = np.array([[float(v) for v in pair.split()] for pair in path[1].split("L")])
        assert len(where) == 3  # what is not finite is left out
        labels = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="end">([\d.]+)</text>', text)
        (y0, v0), (y1, v1) = ((float(y) - 4, float(value)) for _, y, value in (labels[0], labels[-1]))
        np.testing.assert_allclose(v0 + (where[:, 1] - y0) / (y1 - y0) * (v1 - v0), [4, 2, 1], atol=0.02)
        x = np.log([5, 10, 50]) if log_x else np.array([5.0, 10, 50])
        np.testing.assert_allclose(
            np.diff(where[:, 0])[1] / np.diff(where[:, 0])[0], np.diff(x)[1] / np.diff(x)[0], 0.01
        )
        assert 'class="line real"' in text


def test_what_is_real_is_told_and_not_read_from_a_name() -> None:
    """A subject may be called what it likes: it has its own colour, and hides no real data."""
    text = plots.lines({"real data": [(5, 4.0), (9, 3.0)]}, "x", "y", "told", real={"real data": [(5, 1.0), (9, 1.0)]})
    assert len(re.findall('class="line c0"', text)) == 2  # the line, and its piece in the key
    assert len(re.findall('class="line real"', text)) == 2
    text = plots.bars({"recall": {"real pictures": 0.4, "b": 0.3}}, "told", {"recall": 0.9}, "real pictures")
    assert re.findall(r'class="bar (\w+)"', text) == ["c0", "c1", "real"]
    assert [value for value in ("0.400", "0.300", "0.900") if value in text] == ["0.400", "0.300", "0.900"]
    text = plots.histogram({"really": np.arange(4.0)}, "x", "told", {"rows": np.arange(4.0)})
    assert {"line c0", "line real"} <= set(re.findall(r'class="(line \w+)"', text))


def test_a_subject_named_as_the_real_data_is_drawn_beside_them() -> None:
    points = [{"steps": 5, "value": 4.0}, {"steps": 9, "value": 3.0}]
    by_steps = {"score": "FD", "n": 40, "reference": "r", "real": 1.0, "real_n": 17, "points": points}
    found = evaluated("a")
    named = [replace(found, name=name, scores={**found.scores, "by_steps": by_steps}) for name in ("real data", "b")]
    text = page.html(named)
    plot = text[text.index("FD by number of steps") :].partition("</svg>")[0]
    assert [len(re.findall(f'class="line {colour}"', plot)) for colour in ("c0", "c1", "real")] == [2, 2, 2]
    assert "real data, n = 17" in plot


def test_degenerate_plots_are_drawn() -> None:
    for text in (
        plots.lines({"a": [(5, 1.0)]}, "x", "y", "one point", log_x=True),
        plots.lines({"a": [(5, float("nan"))]}, "x", "y", "nothing finite"),
        plots.histogram({"a": np.zeros(4)}, "x", "all alike", {"b": np.zeros(0)}),
        plots.bars({"precision": {"a": float("nan")}}, "nan", {"precision": 0.3}, "real"),
        plots.bars({"precision": {"a": 0.5}}, "nothing real", {}, "real"),
    ):
        Checker(text)
        assert not re.search(r'(?:d|x|y|width|cx|cy)="[^"]*(nan|inf)', text)
