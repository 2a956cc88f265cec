"""`make bench`: sfumato beside diffusers and denoising-diffusion-pytorch, measured in one run.

    python benchmarks/bench.py                      all parts; a bench that was stopped goes on
    python benchmarks/bench.py forward startup      these parts
    python benchmarks/bench.py forward --again      measured anew
    python benchmarks/bench.py --tiny               all parts at sizes that mean nothing: does everything run?

This file makes the environment `.venv-bench` and hands over to `benchmarks.measure` in it; it needs a Python alone.
Results go to reports/bench.json, reports/bench.md and its plots.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".venv-bench"
REQUIREMENTS = "benchmarks/requirements.txt"
MADE_FROM = (REQUIREMENTS, "constraints-dev.txt", "pyproject.toml")


def fingerprint(root: Path) -> str:
    """What the environment is made from."""
    return hashlib.sha256(b"\0".join((root / file).read_bytes() for file in MADE_FROM)).hexdigest()


def environment(root: Path = ROOT, home: Path = HOME) -> Path:
    """The Python of the bench's environment, which is installed once, and again when what it is made from changes."""
    python, stamp = home / "bin" / "python", home / ".installed"
    if stamp.exists() and stamp.read_text() == fingerprint(root):
        return python
    print(f"installing the peers into {home.name} (a few minutes the first time)", flush=True)
    if not python.exists():
        venv.create(home, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    if subprocess.run([*pip, "-r", REQUIREMENTS], cwd=root).returncode:
        sys.exit(f"pip could not install {REQUIREMENTS} into {home.name}; what it said stands above")
    stamp.write_text(fingerprint(root))
    return python


if __name__ == "__main__":
    try:
        sys.exit(subprocess.run([environment(), "-m", "benchmarks.measure", *sys.argv[1:]], cwd=ROOT).returncode)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
