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
def test_time_features_are_float32_also_under_autocast(dtype):
    t = torch.tensor([1, 500, 999], dtype=dtype)
    expected = time_features(t.float(), 16)
    with torch.autocast("cpu", torch.bfloat16):
        features = time_features(t, 16)
    assert features.dtype == torch.float32
    assert torch.equal(features, expected)


def test_the_embedding_is_the_sum_of_what_is_told():
    torch.manual_seed(0)
    net = Embedding(8, 12, Conditions(classes=3, vector=2), time_scale=100.0, shift=0.0)
    t, label, vector = torch.tensor([0.25, 1.0]), torch.tensor([3, 1]), torch.randn(2, 2)
    first, _, second = net.time
    time = second(F.silu(first(time_features(100 * t, 8, 0.0))))
    expected = time + net.label.weight[label] + vector @ net.vector.weight.T + net.vector.bias
    torch.testing.assert_close(net(t, {"label": label, "vector": vector}), expected)
    assert net.label.weight.shape == (4, 12)
