"""The DiT against diffusers' own, against its formulas written out, and against what its conditions promise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfumato.nn import Conditions, DiT, DiTConfig
from sfumato.nn.blocks import patchify, unpatchify
from sfumato.nn.dit import Block, grid_features

from .perturbed import perturbed
from .test_unet import ALL, told

TINY: dict[str, Any] = {"width": 12, "depth": 2, "heads": 3}
SHAPES = pytest.mark.parametrize("shape", [(2, 10), (1, 6, 4), (1, 2, 4, 6)], ids=["signal", "image", "volume"])


@pytest.mark.parametrize(
    ("depth", "width", "heads", "millions"),
    [(12, 384, 6, 33), (12, 768, 12, 130), (24, 1024, 16, 458), (28, 1152, 16, 675)],
    ids=["DiT-S/2", "DiT-B/2", "DiT-L/2", "DiT-XL/2"],
)
def test_the_papers_sizes_have_the_papers_parameters(depth, width, heads, millions):
    """On latents (4, 32, 32), 1,000 classes, learned variance."""
    with torch.device("meta"):
        net = DiT(DiTConfig(width=width, depth=depth, heads=heads), (4, 32, 32), Conditions(classes=1000), 8)
    count = sum(parameter.numel() for parameter in net.parameters())
    assert round(count / 1e6) == millions
    if millions == 675:
        assert (
            count + net.positions.numel() == 675_129_632
        )  # what the authors' training prints; their fixed positions are a parameter


def from_diffusers(state: Mapping[str, Tensor], depth: int, width: int) -> dict[str, Tensor]:
    """Diffusers' DiT as ours.  Theirs says shift before scale, cosines before sines, and embeds anew in each block."""

    def both(theirs: str) -> dict[str, Tensor]:
        return {kind: state[f"{theirs}.{kind}"] for kind in ("weight", "bias")}

    def reordered(told: dict[str, Tensor], order: list[int]) -> dict[str, Tensor]:
        return {kind: torch.cat([value.split(width)[i] for i in order]) for kind, value in told.items()}

    embedding, time = "transformer_blocks.0.norm1.emb", "timestep_embedder.linear_"
    films = [reordered(both(f"transformer_blocks.{i}.norm1.linear"), [1, 0, 2, 4, 3, 5]) for i in range(depth)]
    films.append(reordered(both("proj_out_1"), [1, 0]))
    ours = {
        "stem": both("pos_embed.proj"),
        "embedding.time.0": both(f"{embedding}.{time}1"),
        "embedding.time.2": both(f"{embedding}.{time}2"),
        "embedding.label": {"weight": state[f"{embedding}.class_embedder.embedding_table.weight"]},
        "film": {kind: torch.cat([film[kind] for film in films]) for kind in ("weight", "bias")},
        "out": both("proj_out_2"),
    }
    ours["stem"]["weight"] = ours["stem"]["weight"].permute(0, 2, 3, 1).flatten(1)
    ours["embedding.time.0"]["weight"] = ours["embedding.time.0"]["weight"].roll(128, dims=1)
    for i in range(depth):
        theirs = f"transformer_blocks.{i}"
        qkv = [both(f"{theirs}.attn1.to_{each}") for each in "qkv"]
        ours[f"blocks.{i}.qkv"] = {kind: torch.cat([each[kind] for each in qkv]) for kind in ("weight", "bias")}
        ours[f"blocks.{i}.seen"] = both(f"{theirs}.attn1.to_out.0")
        ours[f"blocks.{i}.inner"] = both(f"{theirs}.ff.net.0.proj")
        ours[f"blocks.{i}.outer"] = both(f"{theirs}.ff.net.2")
    return {f"{name}.{kind}": value for name, values in ours.items() for kind, value in values.items()}


@pytest.mark.slow
def test_mapped_weights_of_diffusers_dit_give_its_output():
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    depth, width, heads = 3, 24, 2
    theirs = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=3,
        out_channels=6,
        num_layers=depth,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
        norm_eps=1e-6,
    )
    perturbed(theirs, 0.1).eval()
    for block in theirs.transformer_blocks:
        block.norm1.emb = theirs.transformer_blocks[0].norm1.emb  # as in the paper and its weights
    ours = DiT(DiTConfig(width=width, depth=depth, heads=heads), (3, 8, 8), Conditions(classes=10), 6).eval()
    ours.load_state_dict(from_diffusers(theirs.state_dict(), depth, width))
    x, t, label = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 100, 400]), torch.tensor([0, 3, 9, 10])
    with torch.no_grad():
        expected = theirs(x, t, label).sample
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(x, t, {"label": label}), expected, atol=1e-5, rtol=1e-5)


def place_features(place: tuple[int, ...], width: int) -> Tensor:
    """Sines, then cosines, of one axis after the other, the last axis first."""
    share = width // len(place) // 2
    angles = [[n / 10_000 ** (k / share) for k in range(share)] for n in reversed(place)]
    return torch.tensor([f(a) for axis in angles for f in (math.sin, math.cos) for a in axis], dtype=torch.float64)


def normalised(h: Tensor) -> Tensor:
    return (h - h.mean()) / torch.sqrt(h.var(unbiased=False) + 1e-6)


def by_hand(net: DiT, x: Tensor, embedding: Tensor, context: Tensor) -> Tensor:
    """The module's formula for one row, one patch and one head at a time; context has its true tokens alone."""
    config, spatial = net.config, x.shape[1:]
    p, w = config.patch, config.width
    e = net.film.weight @ (embedding * torch.sigmoid(embedding)) + net.film.bias
    grid = list(itertools.product(*[range(n // p) for n in spatial]))
    inside = list(itertools.product(range(p), repeat=len(spatial)))

    def places(patch: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [tuple(p * n + i for n, i in zip(patch, each, strict=True)) for each in inside]

    h = [net.stem(torch.cat([x[(slice(None), *each)] for each in places(patch)])) for patch in grid]
    h = [token + place_features(patch, w) for token, patch in zip(h, grid, strict=True)]
    for index, block in enumerate(net.blocks):
        scale, shift, gate, scale2, shift2, gate2 = e[6 * w * index : 6 * w * (index + 1)].split(w)
        q, k, v = zip(*[block.qkv((1 + scale) * normalised(token) + shift).split(w) for token in h], strict=True)
        k, v = ([*each, *block.context(context)[:, part]] for each, part in ((k, slice(w)), (v, slice(w, 2 * w))))
        for i in range(len(h)):
            seen = []
            for head in torch.arange(w).chunk(config.heads):
                weight = torch.stack([(q[i][head] @ key[head] / math.sqrt(len(head))).exp() for key in k])
                seen.append(sum(a * value[head] for a, value in zip(weight / weight.sum(), v, strict=True)))
            h[i] = h[i] + gate * block.seen(torch.cat(seen))
            r = block.inner((1 + scale2) * normalised(h[i]) + shift2)
            r = 0.5 * r * (1 + torch.tanh(math.sqrt(2 / math.pi) * (r + 0.044715 * r**3)))
            h[i] = h[i] + gate2 * block.outer(r)
    scale, shift = e[-2 * w :].split(w)
    y = torch.full((net.out.out_features // len(inside), *spatial), torch.nan, dtype=torch.float64)
    for patch, token in zip(grid, h, strict=True):
        answers = net.out((1 + scale) * normalised(token) + shift).chunk(len(inside))
        for place, answer in zip(places(patch), answers, strict=True):
            y[(slice(None), *place)] = answer
    return y


@SHAPES
def test_the_dit_is_its_formula(shape):
    torch.manual_seed(1)
    net = perturbed(DiT(DiTConfig(**TINY), shape, ALL, 3)).double()
    x, t = torch.randn(2, *shape).double(), torch.rand(2)
    cond = {k: v.double() if v.is_floating_point() else v for k, v in told(2, *shape[1:]).items()}
    cond["context"][0, 1] = 0  # padding may stand anywhere
    embedding = net.embedding(t, cond)
    y = net(x, t, cond)
    for row in range(2):
        tokens = torch.stack([token for token in cond["context"][row] if token.any()])
        expected = by_hand(net, torch.cat([x[row], cond["image"][row]]), embedding[row], tokens)
        # the fixed positions are float32
        torch.testing.assert_close(y[row], expected, atol=1e-5, rtol=1e-5)


@given(
    grid=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    patch=st.integers(1, 3),
    channels=st.integers(1, 3),
)
def test_patches_are_cut_in_reading_order_and_put_back_exactly(grid, patch, channels):
    spatial = [n * patch for n in grid]
    x = torch.randn(2, channels, *spatial)
    tokens = patchify(x, patch)
    assert tokens.shape == (2, math.prod(grid), patch ** len(grid) * channels)
    for token, place in enumerate(itertools.product(*map(range, grid))):
        window = x[(slice(None), slice(None), *[slice(patch * n, patch * (n + 1)) for n in place])]
        assert torch.equal(tokens[:, token], window.movedim(1, -1).flatten(1))
    assert torch.equal(unpatchify(tokens, patch, spatial), x)


@pytest.mark.parametrize("grid", [(5,), (3, 4), (2, 3, 2)])
def test_positions_are_sines_and_cosines_of_the_place(grid):
    expected = torch.stack([place_features(place, 24) for place in itertools.product(*map(range, grid))])
    torch.testing.assert_close(grid_features(grid, 24).double(), expected, atol=1e-6, rtol=0)


def test_positions_are_all_that_tells_patches_apart():
    """With its positions moved along, a moved patch gives the moved answer; without, it does not."""
    torch.manual_seed(2)
    net = perturbed(DiT(DiTConfig(**TINY), (1, 6, 4), ALL))
    x, t, cond = torch.randn(3, 1, 6, 4), torch.rand(3), told(3, 6, 4)
    order = torch.randperm(6)

    def moved(picture: Tensor) -> Tensor:
        return unpatchify(patchify(picture, 2)[:, order], 2, (6, 4))

    expected = moved(net(x, t, cond))
    moved_cond = dict(cond, image=moved(cond["image"]))
    assert not torch.allclose(net(moved(x), t, moved_cond), expected, atol=1e-2)
    net.positions = net.positions[order]
    torch.testing.assert_close(net(moved(x), t, moved_cond), expected, atol=1e-5, rtol=1e-5)


@SHAPES
def test_a_new_dit_answers_zero_and_its_blocks_are_the_identity(shape):
    net = DiT(DiTConfig(**TINY, dropout=0.5), shape, ALL)
    x, t, cond = torch.randn(2, *shape), torch.rand(2), told(2, *shape[1:])
    assert not net(x, t, cond).any()
    film = net.film(torch.randn(2, 12))
    assert not film.any()
    h = torch.randn(2, 5, 12)
    block = net.blocks[1]
    assert isinstance(block, Block)
    assert torch.equal(block(h, film[:, None, :72], cond["context"]), h)


@SHAPES
def test_conditions_are_heard_and_null_is_silence(shape):
    torch.manual_seed(3)
    net = perturbed(DiT(DiTConfig(**TINY), shape, ALL))
    x, t, cond = torch.randn(3, *shape), torch.rand(3), told(3, *shape[1:])
    null = ALL.null(x) | {"context": torch.zeros(3, 7, 5)}
    silent = net(x, t)
    torch.testing.assert_close(net(x, t, null), silent, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(net(x, t, {"guidance": torch.ones(3)}), silent)
    assert not torch.allclose(net(x, t + 1), silent, atol=1e-3)
    for name, value in cond.items():
        heard = net(x, t, {name: value})
        for row in range(3):
            assert not torch.allclose(heard[row], silent[row], atol=1e-3), f"{name} is not heard in row {row}"
        torch.testing.assert_close(net(x, t, null | {name: value}), heard, atol=1e-5, rtol=1e-5)


def test_padding_is_never_looked_at():
    torch.manual_seed(4)
    net = perturbed(DiT(DiTConfig(**TINY), (1, 6, 4), ALL))
    x, t, tokens = torch.randn(3, 1, 6, 4), torch.rand(3), torch.randn(3, 2, 5)
    tokens[:, 0, 1:] = 0  # a single number makes a token
    expected = net(x, t, {"context": tokens})
    assert not torch.allclose(net(x, t, {"context": tokens[:, 1:]}), expected, atol=1e-3)
    padded = torch.zeros(3, 6, 5)
    padded[:, [1, 4]] = tokens
    torch.testing.assert_close(net(x, t, {"context": padded}), expected, atol=1e-5, rtol=1e-5)
    padded.requires_grad_()
    net(x, t, {"context": padded}).square().sum().backward()
    assert padded.grad is not None
    assert padded.grad[:, [1, 4]].any(dim=2).all()
    assert not padded.grad[:, [0, 2, 3, 5]].any()


@SHAPES
def test_a_row_is_the_same_alone_and_in_any_batch(shape):
    torch.manual_seed(5)
    net = perturbed(DiT(DiTConfig(**TINY), shape, ALL))
    x, t, cond = torch.randn(7, *shape), torch.rand(7), told(7, *shape[1:])
    cond["context"][0, 2:] = 0  # row 0 has two tokens, padded to its batch-mates' four
    together = net(x, t, cond)
    backwards = net(x.flip(0), t.flip(0), {name: value.flip(0) for name, value in cond.items()}).flip(0)
    torch.testing.assert_close(backwards, together, atol=1e-5, rtol=1e-5)
    for row in range(7):
        alone = {name: value[row : row + 1] for name, value in cond.items()}
        if row == 0:
            alone["context"] = alone["context"][:, :2]
        torch.testing.assert_close(
            net(x[row : row + 1], t[row : row + 1], alone)[0], together[row], atol=1e-5, rtol=1e-5
        )


@settings(max_examples=20, deadline=None)
@given(
    grid=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    patch=st.integers(1, 3),
    channels=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    out=st.sampled_from([None, 5]),
)
def test_any_multiple_of_the_patch_goes_in_and_comes_out(grid, patch, channels, dtype, out):
    shape = (channels, *[n * patch for n in grid])
    net = DiT(DiTConfig(patch=patch, width=12, depth=1, heads=2), shape, out_channels=out)
    x, t = torch.randn(2, *shape, dtype=dtype), torch.rand(2)
    y = net(x, t)
    assert y.shape == (2, out or channels, *shape[1:])
    assert y.dtype == dtype
    half = dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        y = perturbed(net).to(torch.float32 if half else dtype)(x, t)
    assert y.dtype == dtype
    assert y.isfinite().all()
    assert y.any()


def test_bfloat16_is_near_float32():
    torch.manual_seed(6)
    net = perturbed(DiT(DiTConfig(**TINY), (1, 6, 4), ALL))
    x, t, cond = torch.randn(5, 1, 6, 4), torch.rand(5), told(5, 6, 4)
    exact = net(x, t, cond)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(x, t, cond)
    assert (half - exact).norm() < 0.05 * exact.norm()
    torch.testing.assert_close(net.double()(x, t, cond), exact, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cond", [None, told(3, 6, 4)], ids=["silent", "told"])
def test_gradients_reach_every_parameter_and_the_input(cond):
    torch.manual_seed(7)
    net = perturbed(DiT(DiTConfig(**TINY), (1, 6, 4), ALL))
    x = torch.randn(3, 1, 6, 4, requires_grad=True)
    net(x, torch.rand(3), cond).square().sum().backward()
    assert x.grad is not None
    assert x.grad.any()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name  # what several processes wait for
        assert parameter.grad.isfinite().all(), name
        assert cond is None or parameter.grad.any(), name


def test_dropout_acts_in_training_alone():
    torch.manual_seed(8)
    net = perturbed(DiT(DiTConfig(**TINY, dropout=0.5), (1, 6, 4)))
    x, t = torch.randn(2, 1, 6, 4), torch.rand(2)
    assert not torch.allclose(net.train()(x, t), net(x, t), atol=1e-3)
    torch.testing.assert_close(net.eval()(x, t), net(x, t))


def test_time_scale_multiplies_the_time():
    torch.manual_seed(9)
    plain = perturbed(DiT(DiTConfig(**TINY), (1, 4, 4)))
    scaled = DiT(DiTConfig(**TINY, time_scale=1000.0), (1, 4, 4))
    scaled.load_state_dict(plain.state_dict())
    x, t = torch.randn(3, 1, 4, 4), torch.tensor([0.125, 0.5, 1.0])
    torch.testing.assert_close(scaled(x, t), plain(x, 1000 * t))


def test_a_new_dit_learns():
    """From its zero start, the blocks must come alive: a few steps on one batch more than halve its loss."""
    torch.manual_seed(10)
    net = DiT(DiTConfig(width=24, depth=2, heads=2), (1, 4, 4))
    x, t = torch.randn(8, 1, 4, 4), torch.rand(8)
    target = x.roll(2, dims=3)  # another patch's content: no patch can answer alone
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for _ in range(150):
        loss = (net(x, t) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DiTConfig(patch=0), "patch = 0; it must be at least 1"),
        (lambda: DiTConfig(depth=0), "depth = 0"),
        (lambda: DiTConfig(heads=0), "heads = 0"),
        (lambda: DiTConfig(mlp_ratio=0), "mlp_ratio = 0"),
        (lambda: DiTConfig(width=100), "width = 100.*multiple of heads = 6"),
        (lambda: DiTConfig(dropout=1.0), "dropout = 1.0"),
        (lambda: DiT(DiTConfig(), (3,)), "use mlp"),
        (lambda: DiT(DiTConfig(), (1, 2, 2, 2, 2)), "use mlp"),
        (lambda: DiT(DiTConfig(), (0, 8)), "use mlp"),
        (lambda: DiT(DiTConfig(), (1, 8, 7)), r"patch = 2 does not divide the sizes \(8, 7\); take patch 1,"),
        (lambda: DiT(DiTConfig(patch=4), (1, 6, 12)), r"patch = 4 does not divide.*take patch 1 or 2 or 3,"),
        (lambda: DiT(DiTConfig(width=6), (1, 8, 8)), "width = 6; with 2 axes it must be a multiple of 4"),
        (lambda: tiny()(torch.zeros(2, 1, 6, 8), torch.zeros(2)), r"\(2, 1, 6, 8\).*\(B, 1, 6, 4\)"),
        (lambda: tiny()(torch.zeros(1, 6, 4), torch.zeros(1)), r"\(1, 6, 4\).*\(B, 1, 6, 4\)"),
        (lambda: tiny()(torch.zeros(2, 1, 6, 4), torch.zeros(1)), r"t has shape \(1,\)"),
        (lambda: tiny()(torch.zeros(1, 1, 6, 4), torch.zeros(1), {"vector": torch.zeros(1, 4)}), "'vector' has shape"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make, says):
    with pytest.raises(ValueError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


def tiny() -> DiT:
    return DiT(DiTConfig(**TINY), (1, 6, 4), ALL)
