"""The house from outside: what the package ships, what importing it costs, and the budgets that keep it readable."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import sfumato

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "sfumato"
CORE = ["schedules.py", "gaussian.py", "parameterization.py", "denoiser.py", "losses.py", "grids.py"]
UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


FOREIGN = ("efficientnet.py", "inception.py")


def pickles(tree: ast.AST) -> list[int]:
    """The lines where a syntax tree imports a pickle module, calls torch.load or torch.save, or allows pickles."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                bad = any(name.name.partition(".")[0] in UNPICKLERS for name in names)
            case ast.ImportFrom(module=str(module)):
                bad = module.partition(".")[0] in UNPICKLERS
            case ast.Attribute(value=ast.Name(id="torch"), attr="load" | "save"):
                bad = True
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=allowed)):
                bad = bool(allowed)
            case _:
                bad = False
        if bad and isinstance(node, ast.stmt | ast.expr | ast.keyword):
            found.append(node.lineno)
    return found


def test_the_tests_run_against_this_tree() -> None:
    assert Path(sfumato.__file__).parent == PACKAGE


def test_licence_and_type_marker() -> None:
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence
    assert "Version 2.0, January 2004" in licence
    assert (PACKAGE / "py.typed").is_file()


def test_maths_core_is_readable_in_one_sitting() -> None:
    counted = {name: lines(PACKAGE / name) for name in CORE}
    assert sum(counted.values()) <= 1000, counted


def test_no_file_is_over_400_lines() -> None:
    over = {str(path.relative_to(ROOT)): lines(path) for path in sources() if lines(path) > 400}
    assert not over, f"split by idea: {over}"


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "import numpy, dill",
        "from joblib import load",
        "torch.load(path)",
        "torch.save(x, path)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_the_search_for_pickles_finds_them(text: str) -> None:
    assert pickles(ast.parse(text)) == [1]


def test_no_pickle_is_read_or_written() -> None:
    assert not pickles(ast.parse("np.load(path, allow_pickle=False)"))
    found = {str(p.relative_to(ROOT)): at for p in sources() if (at := pickles(ast.parse(p.read_bytes())))}
    assert set(found) == {f"src/sfumato/metrics/{name}" for name in FOREIGN}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_weights_are_read_as_tensors_alone(name: str) -> None:
    """Feature networks of others ship as .pth alone: torch's reader of tensors takes them, and no code in them runs."""
    calls = [node for node in ast.walk(ast.parse((PACKAGE / "metrics" / name).read_bytes())) if _loads(node)]
    assert calls
    for call in calls:
        assert any(k.arg == "weights_only" and ast.literal_eval(k.value) is True for k in call.keywords)


def _loads(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"


def test_the_folder_beside_the_clone_is_named_by_ci_alone() -> None:
    name = b"../" + b"shared"
    rooms = [ROOT / room for room in ("src", "tests", "docs", "examples", "benchmarks")]
    files = [path for path in ROOT.iterdir() if path.is_file()]
    files += [path for room in rooms for path in room.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert len(files) > len(sources())
    assert not [str(path.relative_to(ROOT)) for path in files if name in path.read_bytes()]


def test_floors() -> None:
    linter = Path(sysconfig.get_path("scripts")) / "lint-imports"
    if not linter.exists():
        pytest.skip("import-linter is not installed: pip install -e '.[dev]'")
    done = subprocess.run([str(linter), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_import_adds_nothing_to_torch() -> None:
    """At most 0.2 s over `import torch`; it loads one file of ours, and `make bench` prints the seconds."""
    code = "import sys, torch; before = set(sys.modules); import sfumato; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["sfumato"]


@pytest.mark.slow
def test_wheel_carries_all_that_is_needed(tmp_path: Path) -> None:
    """Built from a copy, without fetching anything, with one more zoo model planted in it."""
    tree, out = tmp_path / "tree", tmp_path / "out"
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    planted = tree / "src" / "sfumato" / "zoo" / "planted"
    planted.mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "card.md"):
        (planted / name).write_text("planted")
    package = tree / "src" / "sfumato"
    files = [path for path in package.rglob("*") if path.is_file()]
    needed = {path for path in files if path.suffix in (".py", ".c", ".h") or "zoo" in path.parts}

    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(out)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(tree)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("sfumato-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entries = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert "sfumato = sfumato.cli:main" in entries
    packed = {name for name in names if name.startswith("sfumato/")}
    assert packed == {path.relative_to(package.parent).as_posix() for path in needed} | {"sfumato/py.typed"}
