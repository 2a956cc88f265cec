"""The noise of a row is N(0, I), its own, and a function of (seed, stream, step) alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from sfumato import noise

STREAMS = [v for k, v in vars(noise).items() if k.isupper() and isinstance(v, int)]


def test_streams_are_distinct() -> None:
    assert len(STREAMS) >= 10
    assert len(set(STREAMS)) == len(STREAMS)


def test_a_row_does_not_depend_on_its_batch() -> None:
    seeds = [5, -3, 2**70 + 1, 0, 11]
    together = noise.normal(seeds, (3, 4), noise.SAMPLER, step=9)
    assert together.shape == (5, 3, 4)
    assert together.dtype == torch.float32
    for b, seed in enumerate(seeds):
        assert torch.equal(together[b], noise.normal([seed], (3, 4), noise.SAMPLER, step=9)[0])
    assert torch.equal(together.flip(0), noise.normal(seeds[::-1], (3, 4), noise.SAMPLER, step=9))


def test_seed_stream_and_step_each_change_the_draw() -> None:
    draws = [
        noise.normal([seed], (64,), stream, step).numpy().ravel()
        for seed in (0, 1, -1, 2**40)
        for stream in (noise.PRIOR, noise.SAMPLER, noise.EPS)
        for step in (0, 1, 2**33)
    ]
    correlation = np.corrcoef(np.stack(draws)) - np.eye(len(draws))
    # 630 pairs of 64 numbers: |r| of independent rows stays below 5/sqrt(64)
    assert np.abs(correlation).max() < 5 / 8


def test_steps_do_not_overlap() -> None:
    """A long draw at one step never runs into the next step's numbers, whose counter lies 2^192 away."""
    long = noise.philox(3, noise.EPS, 0).random(50_000)
    assert not np.isin(noise.philox(3, noise.EPS, 1).random(1000), long).any()


@pytest.mark.parametrize("shape", [(2, 5), (noise.FEW,), (3, 9, 8)])
def test_a_process_draws_the_rows_that_one_process_would(shape: tuple[int, ...]) -> None:
    whole = noise.training_noise(3, 7, 6, range(6), shape)
    assert torch.equal(whole[1::2], noise.training_noise(3, 7, 6, range(1, 6, 2), shape))
    assert torch.equal(whole[5:], noise.training_noise(3, 7, 6, range(5, 6, 9), shape))
    assert not torch.equal(whole, noise.training_noise(3, 8, 6, range(6), shape))
    assert not torch.equal(whole, noise.training_noise(4, 7, 6, range(6), shape))
    many = noise.training_noise(0, 1, 400, range(400), shape).numpy().reshape(400, -1)
    assert stats.kstest(many.ravel(), "norm").pvalue > 1e-5
    assert np.abs(np.corrcoef(many[:, :10]) - np.eye(400))[0].max() < 1  # no row is another's
    over = np.corrcoef(many.T)
    assert np.abs(over - np.eye(len(over))).max() < 6 / np.sqrt(400)


def test_rows_do_not_overlap() -> None:
    """A row's numbers, 2^128 counters from the next row's, are no other's; each is its own generator's."""
    long = noise.philox(3, noise.EPS, 7, 0).random(50_000)
    assert not np.isin(noise.philox(3, noise.EPS, 7, 1).random(1000), long).any()
    rows = noise.training_noise(3, 7, 4, range(4), (500,))
    for number, row in enumerate(rows):
        own = noise.philox(3, noise.EPS, 7, number).standard_normal(500, dtype=np.float32)
        assert np.array_equal(row.numpy(), own)


def test_it_is_standard_normal() -> None:
    """Kolmogorov-Smirnov along a row, across rows and across steps; ten tests, one in 10^4 would fail by chance."""
    along = [noise.normal([seed], (5000,), noise.SAMPLER).numpy().ravel() for seed in (0, 1, -7, 2**64 - 1)]
    across = [noise.normal(range(2000), (1,), stream, 3).numpy().ravel() for stream in (noise.PRIOR, noise.EPS)]
    over_steps = np.array([noise.normal([8], (1,), noise.SAMPLER, k).item() for k in range(2000)])
    for sample in [*along, *across, over_steps]:
        assert stats.kstest(sample, "norm").pvalue > 1e-5
    neighbours = noise.normal(range(2000), (2,), noise.SAMPLER).numpy()
    assert abs(np.corrcoef(neighbours[:-1, 0], neighbours[1:, 0])[0, 1]) < 4.5 / np.sqrt(2000)
    assert abs(np.corrcoef(over_steps[:-1], over_steps[1:])[0, 1]) < 4.5 / np.sqrt(2000)


def test_any_integer_is_a_seed() -> None:
    assert torch.equal(noise.normal([-1], (4,), 0), noise.normal([2**64 - 1], (4,), 0))
    assert torch.equal(noise.normal([2**64 + 5], (4,), 0), noise.normal([5], (4,), 0))
    assert torch.equal(noise.normal(torch.tensor([3, 4]), (4,), 0), noise.normal([3, 4], (4,), 0))
    assert torch.equal(noise.normal(np.array([3, 4]), (4,), 0), noise.normal([3, 4], (4,), 0))


def test_the_global_generators_play_no_part() -> None:
    before = torch.get_rng_state()
    first = noise.normal([1], (8,), 0)
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(first, noise.normal([1], (8,), 0))
    torch.set_rng_state(before)


def test_row_noise_is_the_samplers_stream() -> None:
    like = torch.zeros(3, 2, 2, dtype=torch.float64)
    source = noise.RowNoise([4, 5, 6], like)
    drawn = source(7)
    assert drawn.dtype == torch.float64
    assert torch.equal(drawn.float(), noise.normal([4, 5, 6], (2, 2), noise.SAMPLER, 7))
    assert torch.equal(drawn, source(7))
    with pytest.raises(ValueError, match="2 seeds for 3 rows"):
        noise.RowNoise([1, 2], like)
