"""OpenVINO on diffusers' network: converted once for the batch that is measured, compiled for latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import openvino
import torch
from torch import Tensor, nn

from .. import shared
from ..terms import Options
from .diffusers_side import loaded


@final
class Answer(nn.Module):
    """The network with a tensor as its answer."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        answer: Tensor = self.net(x, steps, return_dict=False)[0]
        return answer


def forward(options: Options, folder: Path) -> Any:
    net = Answer(loaded(folder).eval())
    precision = "bf16" if shared.half(options["precision"]) else "f32"
    threads = str(torch.get_num_threads())  # as all others
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
    core, compiled = openvino.Core(), {}

    def ask(x: Tensor, steps: Tensor) -> Tensor:
        if len(x) not in compiled:
            model = openvino.convert_model(net, example_input=(x, steps), input=[x.shape, steps.shape])
            compiled[len(x)] = core.compile_model(model, "CPU", hints)
        return torch.from_numpy(compiled[len(x)]((x.numpy(), steps.numpy()))[0])

    return ask
