"""A picture is the same alone, in a batch of 7 and of 64, and in any order of the rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sfumato import samplers, schedules
from sfumato.denoiser import Cond, NetworkDenoiser
from sfumato.guidance import cfg, clip
from sfumato.noise import PRIOR, normal


class Tiny(nn.Module):
    """A float32 network of convolutions and a normalisation, told of time and of a class."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.label = nn.Linear(1, 16), nn.Embedding(11, 16)
        self.first, self.norm, self.last = (
            nn.Conv2d(1, 16, 3, padding=1),
            nn.GroupNorm(4, 16),
            nn.Conv2d(16, 1, 3, padding=1),
        )

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        assert cond is not None
        told = self.time(t[:, None] / 100) + self.label(cond["label"])
        return self.last(nn.functional.silu(self.norm(self.first(x)) + told[:, :, None, None]))


@pytest.fixture(scope="module")
def denoiser() -> NetworkDenoiser:
    torch.manual_seed(0)
    null = {"label": torch.tensor([10])}
    return NetworkDenoiser(Tiny().eval(), schedules.cosine(100), target="v", null_cond=null)


@pytest.mark.parametrize("sampler", ["ancestral", "ancestral:variance=large", "ddim:eta=0.7", "ddim", "ddim-sigma-hat"])
@pytest.mark.parametrize("guided", [False, True])
def test_an_image_does_not_depend_on_its_batch(denoiser: NetworkDenoiser, sampler: str, guided: bool) -> None:
    def draw(seeds: list[int]) -> Tensor:
        cond = {"label": torch.tensor([s % 10 for s in seeds])}
        if guided:
            cond["guidance"] = torch.tensor([1.0 + s % 3 for s in seeds])
        model = clip(cfg(denoiser)) if guided else denoiser
        return samplers.sample(model, normal(seeds, (1, 8, 8), PRIOR), sampler, steps=25, seeds=seeds, cond=cond)

    many = draw(list(range(100, 164)))
    assert (many[0] - many[1]).abs().max() > 0.1
    for row in (0, 1, 63):
        torch.testing.assert_close(draw([100 + row])[0], many[row], rtol=0, atol=1e-4)
    torch.testing.assert_close(draw(list(range(110, 117))), many[10:17], rtol=0, atol=1e-4)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0)).tolist()
    torch.testing.assert_close(draw([100 + k for k in order]), many[order], rtol=0, atol=1e-4)
