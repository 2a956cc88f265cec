"""What is evaluated, and what it is held against.

A subject is a MODEL (a zoo name, a model folder, a run) or pictures that someone made: a folder of them, with
sub-folders as labels, or an .npz.  Both are what `sfumato sample --out` writes, or what another program wrote:

    images, labels      of ours             arr_0, arr_1     of np.savez and of the usual sample files
    test_images, ...    train_images, ...   of data sets     FILE.npz:NAME   the array of that name

A reference is the test (held-out) or training part of a data set, or again a folder or a file:

    test  train         of the model's own data
    NAME  NAME:train    the test or training part of any data set, such as mnist
    FOLDER  FILE.npz

Pictures are uint8 (N, H, W, C), all grey levels spread over 0..255.  Beside a model whose data were read at a size or
in colours of its own, a folder is read alike; a file is taken as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sfumato import data
from sfumato.data import Data, Rows, arrays, folder, named
from sfumato.data.pictures import View, recolour
from sfumato.data.source import FROM_PATH
from sfumato.metrics import FeatureNetwork
from sfumato.model import Model, load, zoo
from sfumato.noise import ROWS, philox
from sfumato.tasks import scores
from sfumato.tasks.generate import spread
from sfumato.tasks.scores import pictures_of, real_pictures

ARRAYS = {"images": "labels", "arr_0": "arr_1", "test_images": "test_labels", "train_images": "train_labels"}
MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "run.json",
    "model/config.json",
    "model_index.json",
)  # what tells a model's folder from one of pictures
TRAIN_ROWS = 10_000  # training rows that scores look at, evenly spread over them
HELD_OUT_ROWS = 1_000  # held-out rows that they look at, likewise
REFERENCE_ROWS = 50_000  # of a reference, evenly spread over it
LEAST = 4  # pictures that scores by features are measured of: precision looks for the third neighbour of each
PARTS = ("test", "train")
PIXELS, VALUES = "pixels, 0 to 255", "values of the data"  # units of a distance: of pictures, and of all else


@dataclass(frozen=True)
class Pictures:
    """Pictures in a folder or an .npz: images uint8 (N, H, W, C), labels (N,) or None, and what was said of them."""

    name: str
    images: np.ndarray
    labels: np.ndarray | None
    label_names: tuple[str, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Against:
    """The reference's pictures, and other real ones of the same source where there are any.

    images: uint8 (N, H, W, C).  real(n): so many of the other part, or all of it, with their labels, whose score is
    what a model as good as its data would have; none beside a folder or a file, whose source has no other part.
    held_out, train, train_labels: some, evenly spread, for the distances to the nearest training picture.
    """

    name: str
    images: np.ndarray
    real: Callable[[int], tuple[np.ndarray, np.ndarray | None]] | None = None
    real_name: str = ""
    held_out: np.ndarray | None = None
    train: np.ndarray | None = None
    train_labels: np.ndarray | None = None
    label_names: tuple[str, ...] = ()
    data: str = ""


@dataclass(frozen=True)
class Lens:
    """A feature network, and the reference as it sees it."""

    network: FeatureNetwork
    held: Against

    @cached_property
    def seen(self) -> scores.Reference:
        """Looked at once, when it is first needed."""
        return scores.reference(self.held.images, self.held.name, self.network)


Subject = Model | Pictures


def subject(name: str, ema: float | None = None, own: Data | None = None) -> Subject:
    """The model or the pictures that a name or path means; ValueError if it is neither.

    own: the data of the model beside which pictures stand.
    """
    if means_pictures(name):
        if ema is not None:
            raise ValueError(f"--ema {ema:g} came for {name}, which is pictures and no run; leave it out")
        return read_pictures(name, own)
    return load(name, ema=ema)


def means_pictures(name: str) -> bool:
    path = Path(name)
    return ".npz" in path.suffix or (
        path.is_dir() and name not in zoo() and not any((path / one).exists() for one in MODEL_FILES)
    )


def read_pictures(name: str, own: Data | None = None) -> Pictures:
    """The pictures of a folder, FILE.npz or FILE.npz:ARRAY; ValueError says in one line what is wrong with them.

    A folder's are read at the size and in the colours of `own`.
    """
    return _read_folder(Path(name), own or Data("folder")) if Path(name).is_dir() else _read_npz(name)


def _read_npz(name: str) -> Pictures:
    path, _, wanted = name.partition(".npz:")
    file = Path(f"{path}.npz" if wanted else path)
    held = arrays.read_file(file)
    pictures = [key for key, x in held.items() if x.dtype == np.uint8 and x.ndim in (3, 4)]
    chosen = wanted or next((key for key in (*ARRAYS, *pictures) if key in held), "")
    if chosen not in held:
        allowed = f"an array of pictures, such as {' or '.join(ARRAYS)}"
        raise ValueError(f"{file}: holds {', '.join(held) or 'nothing'}; allowed is {allowed}, uint8 (N, H, W, C)")
    x = held[chosen]
    came = f"{file}, {chosen}: {x.dtype} of shape {x.shape} came"
    if x.dtype != np.uint8 or 0 in x.shape:
        raise ValueError(f"{came}; allowed are one or more uint8 pictures (N, H, W) or (N, H, W, 1 or 3), 0..255")
    images = folded(arrays.parse_pictures(x, came).transpose(0, 2, 3, 1))
    labels: np.ndarray | None = None
    names: tuple[str, ...] = ()
    if (key := ARRAYS.get(chosen, "")) in held:
        labels = arrays.column(held, key, {"": len(images)}, str(file), arrays.parse_labels)
        assert labels is not None
        names = arrays.class_names(held, labels, str(file))
    settings = _settings(str(held["settings"]), file) if "settings" in held else {}
    return Pictures(name, images, labels, names, settings)


def folded(images: np.ndarray) -> np.ndarray:
    """Pictures (N, H, W, C), without their colours if all of them are grey."""
    return images[..., :1] if (images == images[..., :1]).all() else images


def _read_folder(root: Path, own: Data) -> Pictures:
    listed, _, complaints = folder.listing(root)
    about = root / "settings.json"  # what `sfumato sample` leaves beside its pictures
    listed = [name for name in listed if name != about.name]
    channels = own.channels or 3
    names, shapes, cache = folder.examine(root, listed, channels, own.size, complaints)
    folder.settle(root, complaints, own.skip_broken)
    if own.size is None and len(set(shapes)) > 1:
        sizes = sorted({f"{shape[2]}x{shape[1]}" for shape in shapes})
        raise ValueError(f"{root}: pictures of {len(sizes)} sizes came ({', '.join(sizes[:4])}); allowed is one size")
    folder.common_shape(root, names, shapes, channels, own.size)
    read = folder.reader(root, names, channels, own.size, cache)
    images = folded(View(own.size)(read(np.arange(len(names)))).transpose(0, 2, 3, 1))
    labels, label_names = folder.classes(root, names)
    if labels is not None and all(name.isdecimal() for name in label_names):  # `10` is sorted before `2`
        labels = np.array([int(name) for name in label_names])[labels]
        label_names = tuple(str(k) for k in range(int(labels.max()) + 1))
    settings = _settings(about.read_text(), about) if about.is_file() else {}
    return Pictures(str(root), images, labels, label_names, settings)


def _settings(text: str, where: Path) -> dict[str, Any]:
    try:
        said = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: its settings are no JSON ({error}); remove or mend them") from None
    return said if isinstance(said, dict) else {}


# what a subject is held against ---------------------------------------------------------------------------------------


def against(reference: str, own: Data | None) -> Against:
    """The pictures that a reference means; own is the data a model was trained on, None for a subject of pictures."""
    name, _, part = reference.partition(":")
    if reference in PARTS:
        if own is None:
            ways = "a data set (mnist, mnist:train), a FOLDER or FILE.npz"
            raise ValueError(f"pictures do not say which data they are like: give --reference {ways}")
        return _of_data(own, reference)
    sets = sorted(data.DATASETS.keys() - FROM_PATH)
    if name in sets or named.stored(name) is not None:
        if part not in ("", *PARTS):
            raise ValueError(f"--reference {reference}: allowed is {name}, {name}:test or {name}:train")
        return _of_data(own if own is not None and own.name == name else Data(name), part or "test")
    if not Path(reference.partition(".npz:")[0]).exists() and not Path(reference).exists():
        known = ", ".join((*PARTS, *sets))
        raise ValueError(f"unknown reference {reference!r}; allowed are {known}, a FOLDER of pictures or FILE.npz")
    pictures = read_pictures(reference, own)
    how = f" read at --data.size {own.size}" if own and own.size and Path(reference).is_dir() else ""
    found = Against(f"{pictures.name}, {len(pictures.images):,} pictures{how}", pictures.images)
    if own is None:
        return found
    return replace(_of_data(own, "test"), name=found.name, images=found.images, real=None, real_name="")


def _of_data(own: Data, part: str) -> Against:
    splits = data.load(own)
    if splits.info.kind != "picture":
        raise ValueError(f"{own.name} holds {splits.info.kind}s; a reference is pictures")

    def pictures(rows: Rows, n: int) -> np.ndarray:
        return pictures_of(rows, n if rows.count is None else min(n, rows.count), splits.info.levels)

    rows, other, its = splits.held_out, splits.train, "training"
    if part == "train":
        rows, other, its = splits.train, splits.held_out, "held-out"
    images, first = pictures(rows, REFERENCE_ROWS), some_rows(splits.train, TRAIN_ROWS)
    enough = other.count is None or other.count >= LEAST
    return Against(
        name=f"{part} split of {own.name}, {len(images):,} rows",
        images=images,
        real=(lambda n: real_pictures(other, splits.info, n)[0]) if enough else None,
        real_name=its if enough else "",
        held_out=spread(some_rows(splits.held_out, HELD_OUT_ROWS)["x"].numpy(), splits.info.levels or 256),
        train=spread(first["x"].numpy(), splits.info.levels or 256),
        train_labels=first["label"].numpy() if "label" in first else None,
        label_names=splits.info.label_names,
        data=own.name,
    )


def some_rows(rows: Rows, most: int) -> dict[str, Any]:
    """At most so many rows, evenly spread; of a stream, whose end is unknown, the first shuffled ones."""
    if rows.count is None:
        return next(rows.batches(0, most, augment=False))
    return rows.take(scattered(rows.count, most))


def alike(images: np.ndarray, reference: np.ndarray, whose: str, name: str) -> np.ndarray:
    """The images in the reference's colours; ValueError if they are of another size, or coloured and it is grey."""
    came, wanted = images.shape[1:], reference.shape[1:]
    if came[:2] != wanted[:2]:
        sizes = f"its pictures are {came[1]}x{came[0]}, those of the reference ({name}) {wanted[1]}x{wanted[0]}"
        raise ValueError(f"{whose}: {sizes}; resize one, or choose another --reference")
    if came[2] > wanted[2]:
        grey = f"its pictures are in colour, those of the reference ({name}) grey"
        raise ValueError(f"{whose}: {grey}; choose another --reference")
    return recolour(images.transpose(0, 3, 1, 2), wanted[2]).transpose(0, 2, 3, 1)


def scattered(count: int, most: int) -> np.ndarray:
    """Numbers of at most so many rows of `count`, one drawn from each of as many equal parts.

    So every class is among them, whether they lie sorted by class, as in folders, or come in turn, as in samples.
    """
    few = min(most, count)
    ends = np.arange(few + 1) * count // few
    return ends[:-1] + (philox(0, ROWS).random(few) * np.diff(ends)).astype(np.int64)


def labels_as(pictures: Pictures, names: tuple[str, ...]) -> np.ndarray | None:
    """The labels (N,) as numbers of these classes: by name, or as they are if they are named by numbers; or None."""
    if pictures.labels is None or not names:
        return None
    if {pictures.label_names[k] for k in np.unique(pictures.labels)} <= set(names):
        return np.array([names.index(pictures.label_names[k]) for k in pictures.labels])
    numbers = all(name.isdecimal() for name in pictures.label_names)
    return pictures.labels if numbers and int(pictures.labels.max()) < len(names) else None
