"""The time embedding against its formula in float64, and the sum that every block is told."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from sfumato.nn import Conditions
from sfumato.nn.embedding import Embedding, time_features

from .perturbed import perturbed


@given(t=st.floats(-20, 1000, width=32), half=st.integers(2, 40), shift=st.sampled_from([0.0, 1.0]))
def test_time_features_are_sines_then_cosines(t, half, shift):
    features = time_features(torch.tensor([t]), 2 * half, shift)[0]
    angles = [t * 10_000 ** (-k / (half - shift)) for k in range(half)]
    expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    # a float32 angle near 1000 is known to 6e-5, and its frequency to about 1e-6 relative
    torch.testing.assert_close(features.double(), torch.tensor(expected, dtype=torch.float64), atol=2e-3, rtol=0)


def test_time_features_of_small_times_are_exact():
    t = torch.tensor([0.0, 1e-3, 0.5, 1.0])
    slow = t.double()[:, None] * torch.tensor([1.0, 1e-4], dtype=torch.float64)
    expected = torch.cat([slow.sin(), slow.cos()], dim=1)
    torch.testing.assert_close(time_features(t, 4).double(), expected, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.float32])
def test_times_are_embedded_in_float32_also_under_autocast(dtype):
    t = torch.tensor([1, 500, 999], dtype=dtype)
    net = Embedding(16, 16, Conditions(), time_scale=0.7)
    seen = []
    net.time.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(t, {})
    with torch.autocast("cpu", torch.bfloat16):
        net(t, {})
    net.bfloat16()(t, {})
    expected = time_features(t.float() * 0.7, 16)
    assert expected.dtype == torch.float32
    assert torch.equal(seen[0], expected)
    assert torch.equal(seen[1], expected)
    assert torch.equal(seen[2], expected.bfloat16())


def test_a_float64_network_embeds_its_times_in_float64():
    t = torch.tensor([0.1, 999.9], dtype=torch.float64)
    net = Embedding(4, 4, Conditions(), time_scale=1.5).double()
    seen = []
    net.time.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(t, {})
    angles = 1.5 * t[:, None] * torch.tensor([1.0, 1e-4], dtype=torch.float64)
    torch.testing.assert_close(seen[0], torch.cat([angles.sin(), angles.cos()], dim=1), atol=1e-12, rtol=0)


def test_the_embedding_is_the_sum_of_what_is_told():
    torch.manual_seed(0)
    net = Embedding(8, 12, Conditions(classes=3, vector=2), time_scale=100.0, shift=0.0)
    t, label, vector = torch.tensor([0.25, 1.0]), torch.tensor([3, 1]), torch.randn(2, 2)
    first, _, second = net.time
    time = second(F.silu(first(time_features(100 * t, 8, 0.0))))
    expected = time + net.label.weight[label] + vector @ net.vector.weight.T + net.vector.bias
    torch.testing.assert_close(net(t, {"label": label, "vector": vector}), expected)
    assert net.label.weight.shape == (4, 12)


def test_the_span_is_a_second_time_behind_a_map_that_starts_at_zero():
    torch.manual_seed(1)
    net = Embedding(8, 12, Conditions(span=1), time_scale=100.0, shift=0.0)
    t, span = torch.tensor([0.25, 1.0]), torch.tensor([0.0, 0.125])
    time = net.time(time_features(100 * t, 8, 0.0))
    torch.testing.assert_close(net(t, {"span": span}), time)
    perturbed(net.span)
    first, _, second = net.span
    expected = time + second(F.silu(first(time_features(100 * span, 8, 0.0))))
    torch.testing.assert_close(net(t, {"span": span}), expected)
    assert not any(key.startswith("span") for key in Embedding(8, 12, Conditions(), 1.0).state_dict())
