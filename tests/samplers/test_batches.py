"""A picture is the same alone, in a batch of 7 and of 64, and in any order of the rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sfumato import samplers, schedules
from sfumato.corruptions import Cold
from sfumato.denoiser import Cond, Denoiser, NetworkDenoiser
from sfumato.guidance import cfg, clip
from sfumato.noise import PRIOR, normal
from sfumato.options import split
from sfumato.samplers import SAMPLERS
from sfumato.samplers.refused import why
from sfumato.schedules import Schedule


class Tiny(nn.Module):
    """A network of convolutions and a normalisation, told of time and of a class."""

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
        told = self.time(t[:, None].to(x)) + self.label(cond["label"])
        return self.last(nn.functional.silu(self.norm(self.first(x)) + told[:, :, None, None]))


def denoiser(schedule: Schedule, dtype: torch.dtype) -> NetworkDenoiser:
    torch.manual_seed(0)
    null = {"label": torch.tensor([10])}
    return NetworkDenoiser(Tiny().eval().to(dtype), schedule, target="v", time="unit", null_cond=null)


def model_of(sampler: str, guided: bool) -> Denoiser:
    """On the first schedule with which the sampler is not refused; an adaptive row has a network in float64."""
    row = SAMPLERS[split(sampler)[0]]
    ends = torch.tensor([1.0, 0.0])
    schedule = next(s for s in SCHEDULES if not why(sampler, SAMPLERS, s, ends))
    model = denoiser(schedule, torch.float32 if row.calls else torch.float64)
    return clip(cfg(model)) if guided else model


SCHEDULES = (schedules.cosine_continuous(), schedules.rectified(), Cold())
OPTIONS = ["ancestral:variance=large", "ddim:eta=0.7", "heun:churn=20"]


@pytest.mark.parametrize(("sampler", "guided"), [*((s, True) for s in [*SAMPLERS, *OPTIONS]), ("ancestral", False)])
def test_an_image_does_not_depend_on_its_batch(sampler: str, guided: bool) -> None:
    model, row = model_of(sampler, guided), SAMPLERS[split(sampler)[0]]
    dtype, near = (torch.float32, 1e-4) if row.calls else (torch.float64, 1e-6)  # the network's time is float32
    text = sampler if row.calls else f"{sampler}:tolerance=0.01"

    def draw(seeds: list[int]) -> Tensor:
        cond = {"label": torch.tensor([s % 10 for s in seeds])}
        if guided:
            cond["guidance"] = torch.tensor([1.0 + s % 3 for s in seeds])
        x_T = normal(seeds, (1, 8, 8), PRIOR).to(dtype)
        return samplers.sample(model, x_T, text, steps=8, seeds=seeds, cond=cond)

    many = draw(list(range(100, 164)))
    assert (many[0] - many[1]).abs().max() > 0.1
    for i in (0, 63):
        torch.testing.assert_close(draw([100 + i])[0], many[i], rtol=0, atol=near)
    torch.testing.assert_close(draw(list(range(110, 117))), many[10:17], rtol=0, atol=near)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0)).tolist()
    torch.testing.assert_close(draw([100 + k for k in order]), many[order], rtol=0, atol=near)
