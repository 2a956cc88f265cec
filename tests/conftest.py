"""What all tests share: a settled Hypothesis, the schedules by name, and small distributions whose truth is known."""

from __future__ import annotations

import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"  # two workers on two cores, and what they start: one thread each; before torch

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from sfumato import schedules
from sfumato.schedules import SCHEDULES, Schedule
from sfumato.testbed import GaussianMixture

# What is started behind `nohup .. &` ignores Ctrl-C, and so do the commands that it starts; tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples every time: a failure seen once is seen again.
settings.register_profile("sfumato", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("sfumato")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first, so that no worker is left with a long one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def one_of_each(name: str) -> Schedule:
    """The schedule of a row of SCHEDULES with its own defaults; from_betas has none."""
    if name == "from_betas":
        return schedules.from_betas([0.001, 0.01, 0.05, 0.2, 0.1, 0.5])
    return SCHEDULES[name]()


@pytest.fixture(params=sorted(SCHEDULES))
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return one_of_each(request.param)


def _random_covariance(generator: torch.Generator, dimension: int) -> Tensor:
    a = torch.randn(dimension, dimension, dtype=torch.float64, generator=generator)
    return 0.3 * a @ a.T + 0.05 * torch.eye(dimension, dtype=torch.float64)


@pytest.fixture(scope="session")
def gaussian_2d() -> GaussianMixture:
    """One Gaussian with correlated coordinates."""
    covariance = torch.tensor([[0.8, 0.35], [0.35, 0.3]])
    return GaussianMixture(torch.ones(1), torch.tensor([[0.6, -0.4]]), covariance[None])


@pytest.fixture(scope="session")
def mixture_2d() -> GaussianMixture:
    """Three Gaussians with full covariances."""
    generator = torch.Generator().manual_seed(0)
    covariances = torch.stack([_random_covariance(generator, 2) for _ in range(3)])
    means = torch.tensor([[1.2, 0.3], [-0.9, 0.8], [0.1, -1.3]])
    return GaussianMixture(torch.tensor([0.5, 0.2, 0.3]), means, covariances)


@pytest.fixture(scope="session")
def mixture_1d() -> GaussianMixture:
    """Two separate bumps on a line."""
    return GaussianMixture(torch.tensor([0.3, 0.7]), torch.tensor([[-0.8], [0.6]]), torch.tensor([[[0.02]], [[0.09]]]))
