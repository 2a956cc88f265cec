"""The code blocks of README.md and of the pages in docs/ run as written.

Shell blocks run in a fresh folder with a HOME that holds `my-pictures`; a full training or evaluation is cut short by
flags appended to its line.  Each page stands alone; Python blocks run in order, in one process.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

README = Path(__file__).parents[1] / "README.md"
SHORT = " --steps 2 --batch 4 --samples 20 --network.channels 8 --network.groups 4"


PAGES = [README, *sorted((README.parent / "docs").glob("*.md"))]


def blocks(language: str, page: Path) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks; `make` is what CI itself runs."""
    lines = [line for block in blocks("bash", page) for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("make")]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for kind in ("cats", "dogs"):
        folder = tmp_path / "my-pictures" / kind
        folder.mkdir(parents=True)
        for i in range(12):
            Image.fromarray(draw.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path


def environment(home: Path) -> dict[str, str]:
    tools = str(Path(sys.executable).parent)
    return {**os.environ, "HOME": str(home), "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "MPLBACKEND": "Agg"}


def run(command: list[str], home: Path) -> str:
    done = subprocess.run(command, cwd=home, env=environment(home), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def shortened(line: str) -> str:
    if line.startswith("sfumato evaluate"):
        return line + " -n 20 --ode 2"
    return line + SHORT if line.startswith("sfumato train") and "--dry-run" not in line else line


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.stem)
def test_shell_blocks(page: Path, home: Path) -> None:
    run(["bash", "-euo", "pipefail", "-c", "\n".join(map(shortened, commands(page)))], home)
    if page == README:
        assert (home / "digits.png").exists()
        assert np.load(home / "sevens.npz")["images"].shape == (16, 8, 8, 1)
        assert (home / "mine.png").exists()


@pytest.mark.slow
def test_python_blocks(home: Path) -> None:
    found = [block for page in PAGES for block in blocks("python", page)]
    assert len(found) >= 4
    run([sys.executable, "-c", "\n".join(found)], home)
    assert (home / "runs" / "tiny" / "model" / "model.safetensors").exists()


def test_pictures_and_links_exist() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            if not link.startswith("http"):
                assert (page.parent / link.partition("#")[0]).exists(), f"{page.name} links to {link}"
