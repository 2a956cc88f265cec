"""A folder of pictures: any sizes and modes, classes, captions, held-out part, and every unusable file named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.data import Data, Splits, folder, load


def picture(path: Path, value: int = 0, size: tuple[int, int] = (8, 6), mode: str = "RGB") -> None:
    """A plain picture of grey `value`, so that a row tells which file it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).convert(mode).save(path)


def pictures(root: Path, names: list[str], **options: object) -> None:
    for value, name in enumerate(names):
        picture(root / name, value, **options)


def of(root: Path, **options: object) -> Splits:
    return load(Data("folder", path=str(root), **options))


def values(splits: Splits) -> tuple[list[int], list[int]]:
    """The grey values of the rows to train on, and of those held out."""
    train, held_out = (part.take(np.arange(len(part)))["x"] for part in (splits.train, splits.held_out))
    return train[:, 0, 0, 0].tolist(), held_out[:, 0, 0, 0].tolist()


NAMES = [f"p{i:02}.png" for i in range(20)]


def test_sorted_paths_and_the_rule(tmp_path: Path) -> None:
    pictures(tmp_path, NAMES)
    splits = of(tmp_path, held_out=5)
    assert values(splits) == ([i for i in range(20) if i % 5 != 4], [4, 9, 14, 19])
    info = splits.info
    assert (info.shape, info.kind, info.levels, info.label_names) == ((3, 6, 8), "picture", 256, ())
    assert info.rule == "rows with index % 5 == 4 of the sorted paths"
    assert splits.train.take([0]).keys() == {"x", "index"}
    assert of(tmp_path, channels=1).info.shape == (1, 6, 8)


def test_any_sizes_modes_and_formats(tmp_path: Path) -> None:
    cases = {"a.png": "LA", "b.jpg": "CMYK", "c.gif": "P", "d.png": "RGBA", "e.tif": "F", "f.png": "I;16", "g.bmp": "1"}
    for k, (name, mode) in enumerate(cases.items()):
        picture(tmp_path / "x" / name, 255 if mode != "I;16" else 0, (10 + 3 * k, 30 - 2 * k), mode)
    with pytest.raises(
        ValueError, match=r"pictures of 7 sizes came, from 10x30 to 28x18; allowed is one size; set size"
    ):
        of(tmp_path, held_out=3)
    splits = of(tmp_path, held_out=3, size=8)
    assert splits.info.shape == (3, 8, 8)
    assert next(splits.train.batches(0, 9))["x"].shape == (9, 3, 8, 8)
    assert values(splits) == ([255, 255, 255, 255, 255], [255, 0])


def test_the_center_is_kept(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    for name in NAMES[:4]:
        Image.fromarray(wide).save(tmp_path / name)
    splits = of(tmp_path, size=8, held_out=2, crop="random")
    assert splits.held_out.take([0])["x"].unique().tolist() == [200]
    assert next(splits.train.batches(0, 50))["x"].float().mean() < 190


def test_classes_are_the_sub_folders(tmp_path: Path) -> None:
    pictures(tmp_path, ["dog/a.png", "dog/deep/b.png", "cat/a.png", "ant/a.png"])
    splits = of(tmp_path, held_out=4)
    assert splits.info.label_names == ("ant", "cat", "dog")
    assert splits.train.take([0, 1, 2])["label"].tolist() == [0, 1, 2]
    assert values(splits) == ([3, 2, 0], [1])
    picture(tmp_path / "loose.png")
    with pytest.raises(
        ValueError, match=r"1 pictures, e\.g\. loose\.png, lie beside the class folders ant, cat, dog; allowed"
    ):
        of(tmp_path, held_out=4)


def test_one_sub_folder_is_no_class(tmp_path: Path) -> None:
    pictures(tmp_path, ["all/" + name for name in NAMES])
    assert of(tmp_path).info.label_names == ()


def test_a_test_part_of_its_own(tmp_path: Path) -> None:
    pictures(tmp_path, ["train/b/0.png", "train/a/1.png", "train/b/2.png", "test/b/3.png"])
    splits = of(tmp_path)
    assert values(splits) == ([1, 0, 2], [3])
    assert splits.info.label_names == ("a", "b")
    assert splits.held_out.take([0])["label"].tolist() == [1]
    assert splits.info.rule == "the pictures of the sub-folder test"


def test_captions_beside_the_picture(tmp_path: Path) -> None:
    pictures(tmp_path, ["a.png", "b.jpg", "sub/c.webp", "sub/d.png"])
    for name, text in {"a.txt": "an a\n", "b.txt": "", "sub/c.txt": "c, été", "sub/d.txt": "d"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    splits = of(tmp_path, held_out=4)
    assert splits.train.take([2, 0, 1])["caption"] == ["c, été", "an a", ""]
    (tmp_path / "sub/d.txt").unlink()
    with pytest.raises(
        ValueError, match=r"1 of 4 pictures have no caption, e\.g\. sub/d\.png; allowed is all or none; add"
    ):
        of(tmp_path, held_out=4)
    (tmp_path / "sub/d.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match=r"d\.txt: is not UTF-8 text"):
        of(tmp_path, held_out=4)


def metadata(folder: Path, *lines: dict[str, object]) -> None:
    """Lines may be blank, and a caption may hold a character that Python, unlike JSON, takes for an end of line."""
    (folder / "metadata.jsonl").write_text("\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n")


def test_captions_from_metadata(tmp_path: Path) -> None:
    """metadata.jsonl is stronger than a text beside the picture, the nearer one stronger than one above."""
    pictures(tmp_path, ["a.png", "b.png", "z/c.png", "z/d.png"])
    (tmp_path / "a.txt").write_text("a beside")
    (tmp_path / "b.txt").write_text("b beside")
    far = [{"file_name": "z/c.png", "caption": "c above"}, {"file_name": "z/d.png", "caption": "d above"}]
    metadata(tmp_path, {"file_name": "a.png", "text": "a\u2028line"}, {"file_name": "b.png", "other": 1}, *far)
    metadata(tmp_path / "z", {"file_name": "d.png", "text": "d near"})
    splits = of(tmp_path, held_out=4)
    assert splits.train.take([0, 1, 2])["caption"] == ["a\u2028line", "b beside", "c above"]
    assert splits.held_out.take([0])["caption"] == ["d near"]


def test_the_nearest_metadata_wins_whatever_the_folders_name(tmp_path: Path) -> None:
    pictures(tmp_path, ["a/0.png", "z/0.png"])
    metadata(tmp_path, {"file_name": "a/0.png", "text": "above"}, {"file_name": "z/0.png", "text": "above"})
    for name in "az":
        metadata(tmp_path / name, {"file_name": "0.png", "text": "near"})
    splits = of(tmp_path, held_out=2)
    assert splits.train.take([0])["caption"] == splits.held_out.take([0])["caption"] == ["near"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"metadata\.jsonl, line 2: no JSON"),
        ("[1]", r"line 2: \[1\] came; allowed is"),
        ('{"text": "x"}', "line 2: .* came; allowed is"),
        ('{"file_name": "p01.png", "text": 3}', "line 2: .* came; allowed is"),
        ('{"file_name": "gone.png", "text": "x"}', r"gone\.png \(named in metadata\.jsonl, line 2, but not there\)"),
    ],
)
def test_wrong_metadata(line: str, message: str, tmp_path: Path) -> None:
    pictures(tmp_path, NAMES)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "p00.png", "text": "x"}\n' + line)
    with pytest.raises(ValueError, match=message) as caught:
        of(tmp_path)
    assert "\n" not in str(caught.value)


def spoil(root: Path) -> dict[str, str]:
    """Every bad kind of file, and what is said of it."""
    noisy = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for name in ("torn.png", "torn.jpg", "torn.gif", "torn.webp", "torn.tif", "torn.bmp"):
        Image.fromarray(noisy).save(root / name)
        (root / name).write_bytes((root / name).read_bytes()[:-700])
    (root / "empty.png").touch()
    picture(root / "dot.png", size=(1, 1))
    picture(root / "sub/line.png", size=(9, 1))
    (root / "notes.md").write_text("no picture")
    (root / "words.png").write_text("no picture")
    (root / "lonely.txt").write_text("a caption of nothing")
    picture(root / "range.tif", mode="F")
    Image.fromarray(np.full((4, 4), -5, np.float32)).save(root / "range.tif")
    (root / "dangling.png").symlink_to(root / "nowhere.png")
    said = dict.fromkeys(("torn.png", "torn.jpg", "torn.gif", "torn.webp", "torn.tif", "torn.bmp"), "broken")
    said |= {"empty.png": "empty", "dot.png": "one pixel: 1x1", "sub/line.png": "one pixel: 9x1"}
    said |= {"notes.md": "not a picture", "words.png": "not a picture", "lonely.txt": "text without a picture"}
    return said | {"range.tif": "values from -5 to -5", "dangling.png": "No such file"}


def test_every_unusable_file_is_named_in_one_line(tmp_path: Path) -> None:
    pictures(tmp_path, NAMES)
    said = spoil(tmp_path)
    for hidden in (".DS_Store", ".cache/x.png", "sub/.hidden"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_text("ignored")
    with pytest.raises(
        ValueError,
        match=f"cannot use {len(said)} files: .*mend or remove these, or set skip_broken .*--data.skip-broken",
    ) as caught:
        of(tmp_path)
    line = str(caught.value)
    assert "\n" not in line
    for name, wrong in said.items():
        assert f" {name} ({wrong}" in line or f"{name} ([Errno 2] {wrong}" in line, (name, line)
    assert not any(name in line for name in [*NAMES, ".DS_Store", ".cache", ".hidden"])

    with pytest.warns(UserWarning, match=f"cannot use {len(said)} files: .*left out"):
        splits = of(tmp_path, skip_broken=True)
    assert values(splits) == ([i for i in range(20) if i % 10 != 9], [9, 19])


def test_nothing_to_use(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no picture in this folder"):
        of(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        of(tmp_path / "gone")
    pictures(tmp_path, NAMES[:5])
    with pytest.raises(ValueError, match=r"5 pictures are too few to hold out .*lower held_out"):
        of(tmp_path)


def test_decoded_on_demand_as_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(tmp_path / name)
    kept = of(tmp_path, size=8, flip=True, crop="random")
    monkeypatch.setattr(folder, "CACHE_BYTES", 1000)
    lazy = of(tmp_path, size=8, flip=True, crop="random")
    for a, b in zip(kept.train.batches(3, 25), lazy.train.batches(3, 25), strict=False):
        assert torch.equal(a["x"], b["x"])
        if a["index"][0] == 0:
            break
    (tmp_path / NAMES[0]).write_bytes(b"")
    kept.train.take([0])
    with pytest.raises(ValueError, match=r"p00\.png: not a picture; it was a good picture when the run began"):
        lazy.train.take([0])


def test_decoded_once_into_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of memory; nothing is decoded again until a file changes; what is torn is not taken."""
    root, cache = tmp_path / "p", tmp_path / "cache"
    rng = np.random.default_rng(0)
    root.mkdir()
    for i, name in enumerate(NAMES):
        Image.fromarray(rng.integers(0, 256, (9, 12 + i % 3, 3), dtype=np.uint8)).save(root / name)
    (root / "bad.png").write_bytes(b"no")
    told = {"size": 8, "flip": True, "crop": "random", "skip_broken": True}
    real, decoding = folder.decode, []
    monkeypatch.setattr(folder, "decode", lambda *given: (decoding.append(given[0]), real(*given))[1])

    def kept() -> Splits:
        decoding.clear()
        with pytest.warns(UserWarning, match=r"cannot use 1 file: bad\.png"):
            return of(root, **told, cache=str(cache))

    with pytest.warns(UserWarning, match=r"bad\.png"):
        plain = of(root, **told)
    for again in (False, True):
        splits = kept()
        assert len(decoding) == (0 if again else 21)
        batches = zip(plain.train.batches(3, 25), splits.train.batches(3, 25), strict=False)
        assert all(torch.equal(a["x"], b["x"]) for (a, b), _ in zip(batches, range(3), strict=False))
        assert len(decoding) == (0 if again else 21)
    (pixels,) = cache.glob("*.pixels")
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".pixels"]
    pixels.write_bytes(pixels.read_bytes()[:-1])
    assert torch.equal(kept().train.take([3])["x"], plain.train.take([3])["x"])
    assert len(decoding) == 21
    Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(root / NAMES[3])
    assert not torch.equal(kept().train.take([3])["x"], plain.train.take([3])["x"])
    assert len(decoding) == 21
    assert len(list(cache.glob("*.json"))) == 2


def test_what_cannot_be_kept_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "p", NAMES)
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"cannot keep decoded pictures in .*file.*; give another --data\.cache or none"
    ):
        of(tmp_path / "p", cache=str(tmp_path / "file" / "within"))
    with pytest.raises(ValueError, match="'digits' has no pictures to decode once, but cache 'x' came"):
        load(Data("digits", cache="x"))
    calls = iter(range(100))

    def stopped(*given: object) -> np.ndarray:
        if next(calls) > 5:
            raise KeyboardInterrupt
        return np.zeros((3, 6, 8), np.uint8)

    monkeypatch.setattr(folder, "decode", stopped)
    with pytest.raises(KeyboardInterrupt):
        of(tmp_path / "p", cache=str(tmp_path / "cache"))
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")
def test_linked_class_folders_count(tmp_path: Path) -> None:
    pictures(tmp_path / "far", ["a/0.png", "b/1.png"])
    (tmp_path / "near").mkdir()
    for name in "ab":
        (tmp_path / "near" / name).symlink_to(tmp_path / "far" / name)
    assert of(tmp_path / "near", held_out=2).info.label_names == ("a", "b")
