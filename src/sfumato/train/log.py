"""The log of a training: a line of JSON and a TensorBoard point for every `log_every` steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, final

from sfumato.checkpoints import native


@final
class Log:
    """OUT/log.jsonl and OUT/tensorboard; lines after `step`, of a run that was killed, are taken back."""

    def __init__(self, out: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.path = out / "log.jsonl"
        self.kept = kept = [line for line in read(self.path) if line["step"] <= step]
        native.write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def measured(self, step: int) -> bool:
        """Whether the held-out loss of a step was written before this run went on."""
        return any(line["step"] == step and "held_out_loss" in line for line in self.kept)

    def write(self, step: int, **values: float) -> None:
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        except OSError as error:
            raise ValueError(
                f"cannot write {self.path}: {error.strerror or error}; free space and give the same command to go on"
            ) from error

    def close(self) -> None:
        self.board.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; a torn last line is left out."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
