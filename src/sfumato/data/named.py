"""Data sets known by name.

Digits come with scikit-learn; all others are read from $SFUMATO_DATA/NAME.npz, else torchvision fetches those it has.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sfumato.data.arrays import from_arrays, read_file
from sfumato.data.source import Data, Splits

VARIABLE = "SFUMATO_DATA"


def home() -> Path | None:
    """The folder $SFUMATO_DATA, None if unset; ValueError if it is set and no folder."""
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    if not Path(text).is_dir():
        raise ValueError(f"{VARIABLE} is {text!r}, which is no folder; point it at a folder of .npz files, or unset it")
    return Path(text)


def stored(name: str) -> Path | None:
    """$SFUMATO_DATA/NAME.npz if it is there."""
    folder = home()
    path = None if folder is None else folder / f"{name}.npz"
    return path if path is not None and path.is_file() else None


def stored_names() -> list[str]:
    """The names of all .npz files in $SFUMATO_DATA."""
    folder = home()
    return [] if folder is None else [path.stem for path in folder.glob("*.npz")]


def mend(name: str) -> str:
    """How to make a data set of that name known."""
    folder = home()
    if folder is None:
        return f"set {VARIABLE} to a folder that holds {name}.npz"
    return f"put {name}.npz into {VARIABLE} ({folder})"


def digits(data: Data) -> Splits:
    """1,797 handwritten digits, 8x8, 17 grey levels; embedded in scikit-learn, so nothing is fetched."""
    from sklearn.datasets import load_digits

    _no_flip(data)
    bunch = load_digits()
    arrays = {
        "images": bunch.images.astype(np.uint8),
        "labels": bunch.target,
        "label_names": bunch.target_names.astype(str),
    }
    source = (
        "Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak, UCI 1998), CC BY 4.0, through scikit-learn"
    )
    return from_arrays(data, arrays, where="digits", source=source, order="scikit-learn's order", levels=17)


def mnist(data: Data) -> Splits:
    """70,000 handwritten digits, 28x28 grey."""
    _no_flip(data)
    source = "MNIST (Y. LeCun, C. Cortes, C. Burges), commonly given as CC BY-SA 3.0"
    return _stored_or_fetched(data, source, lambda: fetch("MNIST"))


def fashion(data: Data) -> Splits:
    """70,000 pieces of clothing, 28x28 grey."""
    source = "Fashion-MNIST (H. Xiao, K. Rasul, R. Vollgraf, arXiv:1708.07747), MIT"
    return _stored_or_fetched(data, source, lambda: fetch("FashionMNIST"))


def cifar10(data: Data) -> Splits:
    """60,000 photographs of ten classes, 32x32 RGB."""
    source = "CIFAR-10 (A. Krizhevsky, 2009), no licence stated"
    return _stored_or_fetched(data, source, lambda: fetch("CIFAR10"))


def emoji(data: Data) -> Splits:
    """6,972 emoji by two artists, 64x64 RGB on white, with captions and nine groups."""
    source = "Noto Emoji (Google, Apache-2.0) and Twemoji (Twitter, CC BY 4.0), names from Unicode (MIT)"
    return _stored_or_fetched(data, source, None)


def other(data: Data, path: Path) -> Splits:
    """Any other $SFUMATO_DATA/NAME.npz."""
    return from_arrays(data, read_file(path), where=str(path), source=f"{path.name} of {VARIABLE}")


def _no_flip(data: Data) -> None:
    if data.flip:
        raise ValueError(f"flip came for {data.name}: a mirrored digit is another sign; leave flip out")


def _stored_or_fetched(data: Data, source: str, fetched: Callable[[], dict[str, np.ndarray]] | None) -> Splits:
    path = stored(data.name)
    if path is not None:
        return from_arrays(data, read_file(path), where=str(path), source=source)
    if fetched is None:
        raise ValueError(f"{data.name}: no file, and no loader fetches this set; {mend(data.name)}")
    try:
        arrays = fetched()
    except (OSError, RuntimeError) as error:  # no network, a server that is down, a file that fails its checksum
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{data.name}: torchvision could not fetch it ({reason}); try again online, or {mend(data.name)}"
        ) from None
    return from_arrays(data, arrays, where=data.name, source=source)


def fetch(name: str) -> dict[str, np.ndarray]:
    """One of torchvision's sets, kept in ~/.cache/sfumato.  (CIFAR-10 there is a pickle, read after its checksum.)"""
    from torchvision import datasets

    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sfumato"
    folder.mkdir(parents=True, exist_ok=True)
    train, test = (getattr(datasets, name)(str(folder), train=part, download=True) for part in (True, False))
    return {
        "train_images": np.asarray(train.data),
        "train_labels": np.asarray(train.targets),
        "test_images": np.asarray(test.data),
        "test_labels": np.asarray(test.targets),
        "label_names": np.array(train.classes),
    }
