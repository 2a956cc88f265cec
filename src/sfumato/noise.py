"""One reproducible stream of random numbers for every row.

Every number that sfumato draws is a function of ``(seed, stream, step, row)`` and of nothing else: not of the batch a
row travels in, not of what was drawn before, not of the device.  The generator is counter-based (Philox 4x64-10),

    key = (seed, stream),    counter = (0, 0, row, step),

so any draw can be repeated, skipped to, or made alone.  The same seed therefore gives the same sample alone, in a
batch of 64 or on a server, and a training that resumes at step k draws what it would have drawn.  Numbers are made
on the CPU, so that a seed means the same on every device.

Reference: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# The streams.  A new use of randomness is a new row here: two uses never share a stream.
PRIOR = 0  # x_T, the first state of a sample
SAMPLER = 1  # what a stochastic sampler adds on its way
ROWS = 2  # the order in which training rows come, one permutation an epoch
TIMES = 3  # the training times t
EPS = 4  # the training noise
DROP = 5  # which rows lose their condition
AUGMENT = 6  # crops and flips
NETWORK = 7  # dropout inside the network
DATA = 8  # testbed samples
BOUND = 9  # Monte-Carlo draws of the likelihood bound
HUTCHINSON = 10  # the probes of a divergence
DEQUANTISE = 11  # uniform noise within a bin
SPANS = 12  # the training's second time s < t, for average velocities

FEW = 200  # numbers of a row that are drawn in the time that a new counter takes


def philox(seed: int, stream: int, step: int = 0, row: int = 0) -> np.random.Generator:
    """The generator of ``(seed, stream, step, row)``; a seed is any integer, taken modulo 2^64."""
    key = np.array([int(seed) % 2**64, stream], dtype=np.uint64)  # a list would pass through float64 above 2^63
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, row, step], dtype=np.uint64)))


def normal(seeds: Sequence[int] | Tensor, shape: Sequence[int], stream: int, step: int = 0) -> Tensor:
    """N(0, I) of shape ``(B, *shape)`` in float32: row b is drawn from ``(seeds[b], stream, step)`` alone."""
    rows = np.empty((len(seeds), *shape), dtype=np.float32)
    for row, seed in zip(rows, seeds, strict=True):
        row[...] = philox(int(seed), stream, step).standard_normal(tuple(shape), dtype=np.float32)
    return torch.from_numpy(rows)


def training_noise(seed: int, step: int, batch: int, rows: range, shape: Sequence[int]) -> Tensor:
    """N(0, I) of shape ``(len(rows), *shape)`` in float32 for these rows of a step's batch.

    Each row has its own counter, so that a process draws its own rows alone; rows of FEW numbers or less, which cost
    less than a counter does, are drawn for the whole batch.
    """
    generator = philox(seed, EPS, step)
    if math.prod(shape) <= FEW:
        whole = generator.standard_normal((batch, *shape), dtype=np.float32)
        return torch.from_numpy(whole[rows.start : rows.stop : rows.step])
    eps = np.empty((len(rows), *shape), dtype=np.float32)
    state = generator.bit_generator.state
    for one, row in zip(eps, rows, strict=True):
        state["state"]["counter"][2] = row
        generator.bit_generator.state = state  # philox(seed, EPS, step, row), five times as fast
        generator.standard_normal(dtype=np.float32, out=one)
    return torch.from_numpy(eps)


class RowNoise:
    """The noise argument of a sampler: ``noise(k)`` is step k's N(0, I), (B, ...), the same whatever the batch.

    A sampler takes any callable of this shape, so a test may send basis vectors through it instead.
    """

    def __init__(self, seeds: Sequence[int] | Tensor, like: Tensor):
        if len(seeds) != like.shape[0]:
            raise ValueError(f"{len(seeds)} seeds for {like.shape[0]} rows: give one integer a row")
        self.seeds = [int(seed) for seed in seeds]
        self.shape, self.dtype, self.device = like.shape[1:], like.dtype, like.device

    def __call__(self, step: int) -> Tensor:
        return normal(self.seeds, self.shape, SAMPLER, step).to(self.device, self.dtype)
