"""Norm, told, SiLU and dropout as one map, against PyTorch's operations in float64, with all gradients."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from sfumato.nn import activated as file
from sfumato.nn import compiled
from sfumato.nn.activated import NOTHING, Told, activated, fits, normed, plain
from sfumato.nn.dropout import Dropout, kept
from sfumato.noise import philox

pytestmark = pytest.mark.skipif(compiled.library(file.SOURCE) is None, reason="no C compiler here")

WAYS = ("nothing", "film", "added")


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def case(rows: int, channels: int, height: int, width: int, groups: int, way: str) -> tuple[Tensor, nn.GroupNorm, Told]:
    """In float64; the picture's groups have other means and sizes, as after a convolution."""
    h = drawn(0, rows, channels, height, width) * drawn(1, rows, channels, 1, 1).exp() + 3 * drawn(2, channels, 1, 1)
    norm = nn.GroupNorm(groups, channels, eps=1e-6).double()
    with torch.no_grad():
        norm.weight += 0.3 * drawn(3, channels)
        norm.bias += 0.3 * drawn(4, channels)
    scale, shift, added = drawn(5, 3, rows, channels).unbind(0)
    return h, norm, {"nothing": NOTHING, "film": Told(scale, shift), "added": Told(added=3 * added)}[way]


def single(h: Tensor, norm: nn.GroupNorm, told: Told) -> tuple[Tensor, nn.GroupNorm, Told]:
    """The same in float32, channels last."""
    fast = nn.GroupNorm(norm.num_groups, norm.num_channels, eps=norm.eps)
    fast.load_state_dict(norm.state_dict())
    copies = (None if a is None else a.float() for a in (told.scale, told.shift, told.added))
    return h.float().contiguous(memory_format=torch.channels_last), fast, Told(*copies)


def off(found: Tensor, truth: Tensor) -> float:
    found, truth = found.detach().double(), truth.detach()
    return float((found - truth).abs().max() / truth.abs().max().clamp(min=1e-12))


@given(
    rows=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.sampled_from([(16, 16), (16, 1), (48, 6), (96, 32), (48, 16)]),
    way=st.sampled_from(WAYS),
)
def test_it_is_what_pytorch_makes(rows: int, height: int, width: int, channels: tuple[int, int], way: str) -> None:
    assume(height * width * channels[0] > channels[1])  # PyTorch refuses groups of one number
    truth = case(rows, channels[0], height, width, channels[1], way)
    found = single(*truth)
    assert fits(found[0])
    # two or three numbers may lie so close together that 1 / sqrt(variance + eps) makes much of their rounding
    most = 5e-6 if height * width * channels[0] > 8 * channels[1] else 1e-2
    assert off(activated(*found, None, True), plain(*truth)) < most


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_gradients_both_ways(way: str, p: float) -> None:
    h, norm, told = case(3, 48, 7, 5, 6, way)
    fast_h, fast_norm, fast_told = single(h, norm, told)
    keys = torch.from_numpy(philox(0, 1, 2).integers(-(2**31), 2**31, (3, 4, 2), dtype="int32"))[:, 2]
    dropout = Dropout(p).train()
    dropout.keys = keys if p else None
    mask = kept(keys, fast_h, 1 - p).double() / (1 - p) if p else torch.ones_like(h)

    def leaves(h: Tensor, norm: nn.GroupNorm, told: Told) -> list[Tensor]:
        given = [a for a in (told.scale, told.shift, told.added) if a is not None]
        return [h, norm.weight, norm.bias, *given]

    exact, asked = leaves(h, norm, told), leaves(fast_h, fast_norm, fast_told)
    for x in [*exact, *asked]:
        x.requires_grad_()
    truth, found = plain(h, norm, told) * mask, activated(fast_h, fast_norm, fast_told, dropout, True)
    assert off(found, truth) < 2e-6
    weights = drawn(9, *h.shape)
    right = torch.autograd.grad(truth, exact, weights)
    mine_all = torch.autograd.grad(found, asked, weights.float(), retain_graph=True)
    for mine, theirs in zip(mine_all, right, strict=True):
        assert off(mine, theirs) < 5e-6

    parts = [part.detach().requires_grad_() for part in fast_h.contiguous().split([16, 32], dim=1)]
    parts = [part.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for part in parts]
    apart = activated(parts[0], fast_norm, fast_told, dropout, True, parts[1])
    assert torch.equal(apart, found)
    whole = torch.autograd.grad(found, [fast_h, fast_norm.weight], weights.float(), retain_graph=True)
    *halves, by_weight = torch.autograd.grad(apart, [*parts, fast_norm.weight], weights.float())
    assert torch.equal(torch.cat(halves, dim=1), whole[0])
    assert torch.equal(by_weight, whole[1])

    def of(way: bool):  # type: ignore[no-untyped-def]
        def map_(h: Tensor, *told: Tensor) -> Tensor:
            given = Told(added=told[0]) if len(told) == 1 else Told(*told)
            if way:
                return activated(h, fast_norm, given, dropout, True)
            return plain(h, norm, given) * mask

        return map_

    inputs = [exact[0], *exact[3:]]
    tangents = [drawn(10 + i, *x.shape) for i, x in enumerate(inputs)]
    _, right_t = torch.func.jvp(of(False), tuple(x.detach() for x in inputs), tuple(tangents))
    lasts = [t.float() for t in tangents]
    lasts[0] = lasts[0].contiguous(memory_format=torch.channels_last)
    primals = tuple(x.detach() for x in (asked[0], *asked[3:]))
    _, found_t = torch.func.jvp(of(True), primals, tuple(lasts))
    assert off(found_t, right_t) < 5e-6


def test_means_far_from_zero_do_not_cancel() -> None:
    """A variance is that of the deviations, not a difference of two large numbers."""
    h, norm, told = case(2, 32, 8, 8, 4, "nothing")
    h = drawn(0, 2, 32, 8, 8) + 1000
    assert off(activated(*single(h, norm, told), None, True), plain(h.float().double(), norm, told)) < 2e-4
    torch_error = off(plain(*single(h, norm, told)), plain(h.float().double(), norm, told))
    assert off(activated(*single(h, norm, told), None, True), plain(h.float().double(), norm, told)) < 4 * torch_error


def test_the_ends_of_the_sigmoid() -> None:
    """exp neither overflows nor loses the far tails, and what is no number stays none."""
    x = torch.tensor([-1e4, -120.0, -87.0, -20.0, -1e-3, 0.0, 1e-3, 20.0, 88.0, 120.0, 1e4], dtype=torch.float64)
    norm = nn.GroupNorm(1, 16).double()
    z = x[:, None, None, None].expand(-1, 16, 1, 1)
    told = Told(torch.full((11, 16), -1.0).double(), z[:, :, 0, 0])  # scale -1: z is the shift
    h = drawn(0, 11, 16, 1, 1)
    found = activated(*single(h, norm, told), None, True)[:, 0, 0, 0].double()
    truth = x.sigmoid() * x
    torch.testing.assert_close(found, truth, rtol=5e-7, atol=1e-33)
    spoiled = single(h, norm, Told(told.scale, torch.full_like(z[:, :, 0, 0], math.nan)))
    assert activated(*spoiled, None, True).isnan().all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_pictures_in_bfloat16(way: str, p: float) -> None:
    """What is rounded is x, y and their gradients, once each; sums over a picture's places are not."""
    h, norm, told = case(3, 48, 7, 5, 6, way)
    h = h.bfloat16().double()
    fast_h, fast_norm, fast_told = single(h, norm, told)
    fast_h = fast_h.bfloat16()
    assert fits(fast_h)
    keys = torch.from_numpy(philox(0, 1, 2).integers(-(2**31), 2**31, (3, 2), dtype="int32"))
    dropout = Dropout(p).train()
    dropout.keys = keys if p else None
    mask = kept(keys, fast_h, 1 - p).double() / (1 - p) if p else torch.ones_like(h)
    exact, asked = [h, norm.weight, norm.bias], [fast_h, fast_norm.weight, fast_norm.bias]
    for x in [*exact, *asked]:
        x.requires_grad_()
    truth, found = plain(h, norm, told) * mask, activated(fast_h, fast_norm, fast_told, dropout, True)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), truth, rtol=2**-8, atol=1e-5)
    weights = drawn(9, *h.shape).bfloat16()
    right = torch.autograd.grad(truth, exact, weights.double())
    for mine, theirs in zip(torch.autograd.grad(found, asked, weights), right, strict=True):
        assert off(mine, theirs) < (5e-6 if mine.dtype == torch.float32 else 1e-2)
    parts = [part.contiguous(memory_format=torch.channels_last) for part in fast_h.detach().split([16, 32], dim=1)]
    assert torch.equal(activated(parts[0], fast_norm, fast_told, dropout, True, parts[1]), found)
    moved = fast_h.detach().roll(1, 0)
    _, right_t = torch.func.jvp(lambda h: plain(h, norm, told) * mask, (h.detach(),), (moved.double(),))
    _, found_t = torch.func.jvp(
        lambda h: activated(h, fast_norm, fast_told, dropout, True), (fast_h.detach(),), (moved,)
    )
    assert off(found_t, right_t) < 1e-2


def test_rows_do_not_know_each_other() -> None:
    h, norm, told = single(*case(5, 48, 6, 6, 6, "added"))
    assert told.added is not None
    whole = activated(h, norm, told, None, True)
    alone = [activated(h[i : i + 1], norm, Told(added=told.added[i : i + 1]), None, True) for i in range(5)]
    assert torch.equal(whole, torch.cat(alone))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_precisions_shapes_and_orders_are_left_to_pytorch(dtype: torch.dtype) -> None:
    h, norm, _ = single(*case(2, 16, 4, 4, 4, "nothing"))
    assert not fits(h.to(dtype))
    assert not fits(h.contiguous())
    assert not fits(h[:, :8].contiguous(memory_format=torch.channels_last))
    assert not fits(h.flatten(2))
    assert torch.equal(activated(h.contiguous(), norm, NOTHING, None, True), plain(h.contiguous(), norm))


@pytest.mark.parametrize("names", compiled.HALF.values())
def test_it_compiles_without_a_warning(tmp_path: Path, names: tuple[str, ...]) -> None:
    cc = compiled.compiler()
    assert cc is not None
    command = [
        cc,
        *compiled.FLAGS,
        *(f"-D{name}" for name in names),
        "-Wall",
        "-Wextra",
        "-Werror",
        str(file.SOURCE),
        "-lm",
        "-o",
        str(tmp_path / "a.so"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_norm_alone() -> None:
    h, norm, _ = case(3, 48, 7, 5, 6, "nothing")
    fast_h, fast_norm, _ = single(h, norm, NOTHING)
    exact, asked = [h, norm.weight, norm.bias], [fast_h, fast_norm.weight, fast_norm.bias]
    for x in [*exact, *asked]:
        x.requires_grad_()
    truth, found = norm(h), normed(fast_h, fast_norm, True)
    assert off(found, truth) < 2e-6
    weights = drawn(9, *h.shape)
    right = torch.autograd.grad(truth, exact, weights)
    for mine, theirs in zip(torch.autograd.grad(found, asked, weights.float()), right, strict=True):
        assert off(mine, theirs) < 5e-6
    _, right_t = torch.func.jvp(norm, (h.detach(),), (weights,))
    moved = weights.float().contiguous(memory_format=torch.channels_last)
    _, found_t = torch.func.jvp(lambda h: normed(h, fast_norm, True), (fast_h.detach(),), (moved,))
    assert off(found_t, right_t) < 5e-6


@pytest.mark.parametrize("way", WAYS)
def test_the_gradient_of_a_derivative(way: str) -> None:
    """Backwards through what goes forwards: none of its dependence on x is lost."""
    h, norm, told = case(2, 16, 5, 4, 4, way)
    fast_h, fast_norm, fast_told = single(h, norm, told)
    v = drawn(7, *h.shape)

    def bent(h: Tensor, v: Tensor, map_: Callable[[Tensor], Tensor]) -> Tensor:
        _, moved = torch.func.jvp(map_, (h,), (v,))
        return torch.autograd.grad(moved.square().sum(), h)[0]

    truth = bent(h.requires_grad_(), v, lambda h: plain(h, norm, told))
    moves = v.float().contiguous(memory_format=torch.channels_last)
    found = bent(fast_h.requires_grad_(), moves, lambda h: activated(h, fast_norm, fast_told, None, True))
    assert off(found, truth) < 2e-5
