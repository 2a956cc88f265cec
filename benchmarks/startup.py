"""Seconds a user waits: import, help, the first sample; the least of five fresh processes each, torch beside them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

PYTHON = [sys.executable, "-c"]
COMMAND = [sys.executable, "-m", "sfumato.cli"]
ROWS = {
    "import torch": [*PYTHON, "import torch"],
    "import torch, sfumato": [*PYTHON, "import torch, sfumato"],
    "sfumato --help": [*COMMAND, "--help"],
    "sfumato train --help": [*COMMAND, "train", "--help"],
    "sfumato sample --help": [*COMMAND, "sample", "--help"],
    "sfumato evaluate --help": [*COMMAND, "evaluate", "--help"],
    "sfumato reproduce --help": [*COMMAND, "reproduce", "--help"],
    "sfumato sample digits": [*COMMAND, "sample", "digits"],
}


def seconds(command: list[str], folder: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for name, command in ROWS.items():
            print(f"{name:26} {min(seconds(command, folder) for _ in range(5)):6.2f} s", flush=True)
