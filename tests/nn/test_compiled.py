"""Compiling at first use: once, kept, whole or not at all, and never needed."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sfumato.nn import compiled, filters

needs_compiler = pytest.mark.skipif(compiled.compiler() is None, reason="no C compiler here")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiled._built.cache_clear()
    path = tmp_path / "answer.c"
    path.write_text("int answer(void) { return 42; }\n")
    return path


@needs_compiler
def test_it_is_compiled_once_and_again_when_it_changes(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = compiled.library(source)
    assert isinstance(found, ctypes.CDLL)
    assert found.answer() == 42
    (kept,) = compiled.cache().iterdir()
    written = kept.stat().st_mtime_ns
    compiled._built.cache_clear()
    assert compiled.library(source) is not None
    assert [kept] == list(compiled.cache().iterdir())
    assert kept.stat().st_mtime_ns == written
    source.write_text("int answer(void) { return 43; }\n")
    compiled._built.cache_clear()
    changed = compiled.library(source)
    assert changed is not None
    assert changed.answer() == 43


@needs_compiler
def test_what_does_not_compile_is_said_in_a_line(source: Path) -> None:
    source.write_text("int answer(void) { return fourtytwo; }\n")
    assert compiled.library(source) is None
    why = compiled.why_not(source)
    assert why is not None
    assert "error" in why
    assert "\n" not in why


def test_without_a_compiler_or_a_cache_there_is_none(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert compiled.library(source) is None
    assert "compiler" in str(compiled.why_not(source))
    monkeypatch.undo()
    compiled._built.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(source))  # a file
    assert compiled.library(source) is None


@needs_compiler
@pytest.mark.slow
def test_two_processes_at_once(source: Path) -> None:
    answer = f"compiled.library(Path({str(source)!r})).answer()"
    code = f"from pathlib import Path; from sfumato.nn import compiled; print({answer})"
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in started] == ["42", "42"]
    assert len(list(compiled.cache().iterdir())) == 1


@needs_compiler
def test_ours_compiles_without_a_warning(tmp_path: Path) -> None:
    cc = compiled.compiler()
    assert cc is not None
    flags = [*compiled.FLAGS, "-Wall", "-Wextra", "-Werror"]
    done = subprocess.run(
        [cc, *flags, str(filters.SOURCE), "-o", str(tmp_path / "w.so")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
