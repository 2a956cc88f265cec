"""Texts that name a row of a table: every mistake has an answer that names the nearest right thing."""

from __future__ import annotations

from functools import partial

import pytest

from sfumato import options


def walk(x: int, *, eta: float = 0.0, kind: str = "plain", betas: tuple[float, ...] = ()) -> tuple[object, ...]:
    return x, eta, kind, betas


def still(x: int) -> int:
    return x


TABLE = {"walk": walk, "still": still}


def test_split_reads_name_and_options() -> None:
    assert options.split("ddim") == ("ddim", {})
    assert options.split("ddim:eta=0.5,clip=True") == ("ddim", {"eta": 0.5, "clip": True})
    assert options.split(" ddim : eta = 1e-3 ") == ("ddim", {"eta": 1e-3})
    assert options.split("a:x=None,y=word,z=-2") == ("a", {"x": None, "y": "word", "z": -2})


def test_a_comma_inside_brackets_belongs_to_the_value() -> None:
    assert options.split("a:betas=(0.1,0.2),b=[1,2,3],c=4") == ("a", {"betas": (0.1, 0.2), "b": [1, 2, 3], "c": 4})


def test_value() -> None:
    given = ["1", "0.5", "(1, 2)", "None", "True", "cosine", "1 +", "__import__('os')"]
    assert [options.value(v) for v in given] == [1, 0.5, (1, 2), None, True, "cosine", "1 +", "__import__('os')"]


def test_call_with_fixes_options() -> None:
    assert options.call_with("sampler", "walk", TABLE) is walk
    chosen = options.call_with("sampler", "walk:eta=0.5,kind=long,betas=(1,2)", TABLE)
    assert isinstance(chosen, partial)
    assert chosen(3) == (3, 0.5, "long", (1, 2))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("wlak", ["unknown sampler 'wlak'", "did you mean 'walk'?", "still, walk"]),
        ("zzzz", ["unknown sampler 'zzzz' (allowed"]),
        ("walk:etta=1", ["unknown option of sampler walk 'etta'", "did you mean 'eta'?", "betas, eta, kind"]),
        ("walk:x=1", ["unknown option of sampler walk 'x'"]),
        ("walk:eta", ["option 'eta' has no value", "write walk:eta=VALUE"]),
        ("walk:eta=high", ["option eta of sampler walk is a number", "'high'"]),
    ],
)
def test_mistakes_are_answered(text: str, words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"option|unknown") as error:
        options.call_with("sampler", text, TABLE)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_whole_numbers() -> None:
    assert options.whole("steps", 1) == 1
    assert options.whole("steps", 7, 7) == 7
    for bad in (0, -1, 8, 1.5, 2.0, True, None, "3"):
        with pytest.raises(ValueError, match=r"steps must be a whole number from 1 to 7; got"):
            options.whole("steps", bad, 7)
    with pytest.raises(ValueError, match=r">= 1; got 0"):
        options.whole("steps", 0)
