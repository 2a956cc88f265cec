"""The command as a user meets it: help, one clear line for a mistake, and train -> sample -> evaluate."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato import cli, console, data, grids, losses, metrics, nn, parameterization, recipes, samplers, times
from sfumato.checkpoints import native
from sfumato.cli import main
from sfumato.corruptions import PROCESSES
from sfumato.train import DECAYS
from sfumato.train.objectives import OBJECTIVES

from .tiny import checkpoint, different, random_model, trained

Capture = pytest.CaptureFixture[str]
SMALL = [
    *["--network.channels", "8", "--network.multipliers", "1", "--network.groups", "4", "--steps", "6", "--batch", "8"],
    *["--schedule", "cosine:steps=10", "--sampling.steps", "2", "--optimiser.warmup", "2", "--snapshots", "2"],
]
ENV = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def command(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own."""
    line = [sys.executable, "-m", "sfumato.cli", *args]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=ENV, **options)  # type: ignore[call-overload,no-any-return]


def refused(capsys: Capture, *args: object) -> str:
    """The one line that a mistake is answered with."""
    capsys.readouterr()
    assert main([str(arg) for arg in args]) == 2
    line = capsys.readouterr().err
    assert line.startswith("sfumato: ")
    assert line.count("\n") == 1
    assert "Traceback" not in line
    return line


def said(capsys: Capture, *args: object) -> str:
    capsys.readouterr()
    assert main([str(arg) for arg in args]) == 0
    return capsys.readouterr().out


# help -----------------------------------------------------------------------------------------------------------------

TRAIN = {
    "recipes": recipes.RECIPES,
    "data sets": data.DATASETS,
    "networks": nn.NETWORKS,
    "schedules": PROCESSES,
    "targets": parameterization.TARGETS,
    "losses": OBJECTIVES,
    "weightings": losses.WEIGHTINGS,
    "times": times.TIMES,
    "learning rate decays": DECAYS,
    "samplers": samplers.SAMPLERS,
    "grids": grids.GRIDS,
}


@pytest.mark.parametrize(
    ("box", "line"),
    [
        ("╭─ Wrong ─╮\n│ no such --x   │\n│ ───────── │\n│ see --help │\n╰──────╯\n", "no such --x; see --help"),
        (" Wrong \n -------- \n no such --x \n -------- \n see --help \n \n", "no such --x; see --help"),
    ],
)
def test_a_box_is_one_line(box: str, line: str) -> None:
    assert console._one_line(box) == line


def listed(text: str, title: str, names: Iterable[str]) -> bool:
    """Whether the block under `title:` has every name as a word."""
    block = text.split(f"{title}:", 1)[1].split("\n\n")[0].replace(",", " ").split()
    return set(names) <= set(block)


def test_help_lists_the_commands(capsys: Capture) -> None:
    for args in ([], ["--help"], ["-h"]):
        text = said(capsys, *args)
        assert set(cli.COMMANDS) <= set(text.split())
    assert said(capsys, "--version").strip() == "0.1.0"


def test_help_of_train_lists_every_row_of_its_tables(capsys: Capture) -> None:
    text = said(capsys, "train", "--help")
    for title, table in TRAIN.items():
        assert listed(text, title, table), title


@pytest.mark.parametrize("name", ["train digits", "sample", "sample digits", "evaluate"])
def test_help_of_a_command_lists_rows_and_fields(name: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as end:
        main([*name.split(), "--help"])
    assert not end.value.code
    text = capsys.readouterr().out
    assert listed(text, "samplers", samplers.SAMPLERS)
    assert listed(text, "grids", grids.GRIDS)
    if name == "evaluate":
        assert listed(text, "metrics", metrics.METRICS)
    fields = {"train digits": ["--optimiser.learning-rate", "--data.path", "--init", "--dry-run", "--out", "--ema"]}
    for field in fields.get(name, ["--sampler", "--steps", "--seed", "--guidance", "--ema", "--out", "--n"]):
        assert field in text


HEAVY = {"accelerate", "datasets", "matplotlib", "sklearn", "scipy", "tensorboard", "torchvision"}


@pytest.mark.slow
@pytest.mark.parametrize("line", ["--help", "train --help", "sample --help", "evaluate --help", "reproduce --help"])
def test_help_loads_only_what_it_shows(line: str) -> None:
    """Help within 0.5 s, a sub-command's within 3 s, whose 2 s are torch's own; `make bench` prints the seconds."""
    code = f"import sys\nfrom sfumato.cli import main\ntry: main({line.split()!r})\nexcept SystemExit: pass\n"
    code += "print('MODULES', *{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split("MODULES")[-1].split())
    assert not loaded & HEAVY
    assert ("torch" in loaded) == (line != "--help")


# mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("trian digits", "unknown command 'trian'; did you mean 'train'?"),
        ("train digit", "unknown recipe 'digit'; did you mean 'digits'?"),
        ("train --steps 5", "the first word is a RECIPE, got --steps"),
        ("train digits --stepps 5", "unknown flag --stepps; did you mean --steps? (sfumato train digits --help lists"),
        ("train digits --data.sise=16", "unknown flag --data.sise; did you mean --data.size? (sfumato train"),
        ("train digits --zzz -3", "sfumato: unknown flag --zzz (sfumato train digits --help lists all)"),
        ("train digits 5", "sfumato: 5 came where a flag was expected; sfumato train digits --help lists them"),
        (
            "sample digits --guidanse 3 --stepps 4",
            "unknown flag --guidanse; did you mean --guidance?; unknown flag --stepps; did you mean --steps? (sfumato",
        ),
        ("train digits --optimiser.learning-rte 5", "did you mean --optimiser.learning-rate?"),
        ("train digits --steps five", "--steps: five came, allowed is a whole number"),
        ("train digits --optimiser.clip much", "--optimiser.clip: much came, allowed is a number"),
        ("train digits --steps 0", "steps must be at least 1; got 0"),
        ("train digits --batch 0", "batch must be at least 1; got 0"),
        ("train digits --batch 30 --optimiser.accumulate 4", "batch 30 cannot be cut into optimiser.accumulate = 4"),
        ("train digits --drop-label 1", "drop_label is a share in [0, 1); got 1.0"),
        ("train digits --samples 0", "samples must be a whole number >= 1; got 0"),
        ("train digits --optimiser.learning-rate 0", "learning_rate and clip must be above 0"),
        (
            "train digits --precision float16",
            "--precision: float16 came (allowed: auto, bfloat16, compiled, float32)",
        ),
        ("train digits --loss.kind simpel", "unknown loss 'simpel'; did you mean 'simple'?"),
        ("train digits --loss.weighting min-snr", "unknown weighting 'min-snr'; did you mean 'min_snr'?"),
        ("train digits --loss.times stratifed", "unknown times 'stratifed'; did you mean 'stratified'?"),
        ("train digits --optimiser.decay cosin", "unknown decay 'cosin'; did you mean 'cosine'?"),
        ("train digits --sampling.sampler dim", "unknown sampler 'dim'; did you mean 'ddim'?"),
        ("train digits --sampling.grid unifrom", "unknown grid 'unifrom'; did you mean 'uniform'?"),
        ("train digits --schedule cosin", "unknown schedule 'cosin'; did you mean 'cosine'?"),
        ("train digits --schedule cosine:steps=0", "steps"),
        ("train digits --schedule rectified", "time 'index' needs a T-step schedule"),
        ("train digits --target vv", "unknown target 'vv'; did you mean 'v'?"),
        ("train digits --ema 0.5", "an EMA length is a share of the training in (0, 0.28); got 0.5"),
        ("train digits --data.name digitss", "unknown data set 'digitss'; did you mean 'digits'?"),
        ("train digits --data.flip", "flip came for digits"),
        ("train digits --network.channels 7", "channels = 7; it must be even"),
        ("train digits --init nothing-like-it", "unknown model 'nothing-like-it'"),
        ("sample", None),
        ("sample nothing-like-it", "unknown model 'nothing-like-it'"),
        ("evaluate nothing-like-it", "unknown model 'nothing-like-it'"),
        ("models digits mnist", "takes one MODEL at most; got digits mnist"),
    ],
)
def test_a_mistake_is_one_line(line: str, expected: str | None, capsys: Capture, tmp_path: Path) -> None:
    if expected is None:
        with pytest.raises(SystemExit):
            main(line.split())
        return
    out = ["--out", tmp_path / "out"] if line.startswith("train digits") else []
    assert expected in refused(capsys, *line.split(), *out)
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--sampler ddmi", "unknown sampler 'ddmi'; did you mean 'ddim'?"),
        ("--sampler ddim:etta=1", "unknown option of sampler ddim 'etta'; did you mean 'eta'?"),
        ("--steps 0", "steps must be a whole number from 1 to 20; got 0"),
        ("--steps 21", "steps must be a whole number from 1 to 20; got 21"),
        ("-n 0", "n must be a whole number >= 1; got 0"),
        ("-n -3", "n must be a whole number >= 1; got -3"),
        ("--label 10", "unknown label 10 (allowed: 0..9)"),
        ("--label cat", "unknown label 'cat'"),
        ("--guidance nan", "guidance: scale is a finite number; got nan"),
        ("--grid foo", "unknown grid 'foo'"),
        ("--precision half", "unknown precision 'half'"),
        ("--ema 0.9", "an EMA length is a share"),
        ("--out x.jpg", "cannot write '.jpg'; allowed are FILE.png, FILE.npz or a folder"),
        ("--sede 3", "did you mean --seed?"),
    ],
)
def test_a_mistake_in_sampling_is_one_line_and_writes_nothing(
    flags: str, expected: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained()
    monkeypatch.chdir(tmp_path)
    assert expected in refused(capsys, "sample", run, *flags.split())
    assert not list(tmp_path.iterdir())


def test_bad_data_is_one_line(capsys: Capture, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    x[[3, 8]] = np.nan
    np.save(tmp_path / "nan.npy", x)
    np.save(tmp_path / "complex.npy", x.astype(np.complex64))
    np.save(tmp_path / "rank.npy", np.zeros((10, 3, 4, 5)))
    np.savez(tmp_path / "labels.npz", images=np.zeros((20, 4, 4), np.uint8), labels=np.arange(20) - 1)
    names = np.array(["a", "b"])
    np.savez(tmp_path / "range.npz", images=np.zeros((20, 4, 4), np.uint8), labels=np.arange(20), label_names=names)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (8, 8)).save(pictures / "good.png")
    Image.new("RGB", (1, 1)).save(pictures / "dot.png")
    (pictures / "empty.png").touch()
    (pictures / "torn.png").write_bytes((pictures / "good.png").read_bytes()[:40])
    (pictures / "page.html").write_text("<html>")

    def answer(path: str, name: str = "file") -> str:
        flags = ["--data.name", name, "--data.path", tmp_path / path, "--out", tmp_path / "out"]
        return refused(capsys, "train", "pictures", "--data.size", "None", *flags)

    assert "2 of 40 rows hold NaN or infinity (or overflow float32): rows 3, 8" in answer("nan.npy")
    assert "complex64 of shape (40, 3) came" in answer("complex.npy")
    assert "could be pictures or volumes" in answer("rank.npy")
    assert "1 negative labels, down to -1" in answer("labels.npz")
    assert "18 labels out of range, up to 19" in answer("range.npz")
    assert "no such file" in answer("none.npy")
    broken = answer("pictures", "folder")
    assert "cannot use 4 files" in broken
    assert all(name in broken for name in ("dot.png", "empty.png", "torn.png", "page.html"))
    assert "good.png" not in broken
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_one_line(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    line = refused(capsys, "train", "digits", *SMALL, "--out", tmp_path / "file" / "run")
    assert "cannot write" in line
    assert "--out" in line
    for out in ("file/a.png", "file/a.npz", "file/folder"):
        line = refused(capsys, "sample", trained(), "-n", 1, "--out", tmp_path / out)
        assert f"cannot write {tmp_path / out}" in line
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_command_goes_on_afterwards(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = native.save_file

    def full(tensors: object, path: Path) -> None:
        if "step-00000004" in str(path):
            raise OSError(28, "No space left on device")
        real(tensors, path)

    line = ["train", "digits", *SMALL, "--save-every", 2, "--samples", 20, "--out", tmp_path]
    monkeypatch.setattr(native, "save_file", full)
    assert "No space left on device; free space" in refused(capsys, *line)
    monkeypatch.setattr(native, "save_file", real)
    text = said(capsys, *line)
    assert "going on from step 2 of 6" in text
    assert "bits/dim" in text
    monkeypatch.setattr(native, "save_file", full)
    assert "began with other settings (batch: 8 then, 4 now" in refused(capsys, *line, "--batch", 4)
    assert "--init has options" in refused(
        capsys, "train", "digits", "--init", tmp_path, "--network.channels", 16, "--out", tmp_path / "other"
    )


def test_an_error_of_the_system_is_one_line(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: object) -> None:
        raise PermissionError(13, "Permission denied", "/some/where")

    monkeypatch.setitem(cli.COMMANDS, "models", broken)
    assert "/some/where: Permission denied" in refused(capsys, "models")


@pytest.mark.slow
def test_the_real_command_answers_mistakes_with_status_two() -> None:
    done = command("sample", "nothing-like-it")
    assert done.returncode == 2
    assert done.stderr.startswith("sfumato: unknown model 'nothing-like-it'")
    assert done.stderr.count("\n") == 1


# use ------------------------------------------------------------------------------------------------------------------


def test_sample_writes_what_it_is_asked_for(capsys: Capture, tmp_path: Path) -> None:
    run = trained()
    said(capsys, "sample", run, "-n", 23, "--seed", 5, "--guidance", 1.5, "--out", tmp_path / "a.npz")
    said(capsys, "sample", run, "-n", 23, "--seed", 5, "--guidance", 1.5, "--out", tmp_path / "b.npz")
    one, two = np.load(tmp_path / "a.npz"), np.load(tmp_path / "b.npz")
    assert one["images"].shape == (23, 8, 8, 1)
    assert one["images"].dtype == np.uint8
    assert np.array_equal(one["images"], two["images"])
    assert one["labels"].tolist() == [i % 10 for i in range(23)]
    settings = json.loads(str(one["settings"]))
    assert settings["sampler"] == "ddim"
    assert (settings["steps"], settings["seed"], settings["guidance"], settings["n"]) == (4, 5, 1.5, 23)
    assert settings["model"] == str(run)

    said(capsys, "sample", run, "-n", 4, "--seed", 9, "--guidance", 1.5, "--label", 7, "--out", tmp_path / "c.npz")
    sevens = np.load(tmp_path / "c.npz")
    assert sevens["labels"].tolist() == [7] * 4
    said(capsys, "sample", run, "-n", 4, "--label", 7, "--out", tmp_path / "folder")
    assert sorted(p.name for p in (tmp_path / "folder" / "7").iterdir()) == [f"{i:06d}.png" for i in range(4)]
    text = said(capsys, "sample", run, "-n", 20, "--ema", 0.08, "--sampler", "ancestral", "--out", tmp_path / "d.png")
    assert "20 samples" in text
    with Image.open(tmp_path / "d.png") as grid:
        assert grid.size == (2 * 50 + 2, 10 * 50 + 2)  # a row a class, 8 pixels enlarged to 48 and a rim of 2


def test_vectors_go_to_npz_or_a_plot_and_not_to_a_folder(capsys: Capture, tmp_path: Path) -> None:
    from sfumato.data import Info
    from sfumato.nn import MLPConfig

    from .tiny import tiny

    run = tiny(network=MLPConfig(width=16, depth=1))
    random_model(run, Info((2,), "vector", None)).save(tmp_path / "model")
    said(capsys, "sample", tmp_path / "model", "-n", 5, "--out", tmp_path / "a.npz")
    assert np.load(tmp_path / "a.npz")["samples"].shape == (5, 2)
    said(capsys, "sample", tmp_path / "model", "-n", 5, "--out", tmp_path / "a.png")
    assert "a folder holds pictures" in refused(capsys, "sample", tmp_path / "model", "--out", tmp_path / "folder")
    assert "allowed is 1" in refused(capsys, "sample", tmp_path / "model", "--guidance", 2, "--out", tmp_path / "b.npz")
    assert "nothing to score it against" in refused(
        capsys, "evaluate", _without_data(tmp_path / "model", tmp_path / "bare")
    )


def _without_data(model: Path, bare: Path) -> Path:
    tensors, document, card = native.read_model(model)
    native.write_folder(bare, "model", tensors, {**document, "data": {}}, {"card.md": card})
    return bare


def test_evaluate_prints_and_writes_the_scores(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained()
    monkeypatch.chdir(tmp_path)
    text = said(capsys, "evaluate", run, "-n", 30, "--ode", 0, "--by-steps", 2, 5, "--out", "scores.json")
    for row in ("bits/dim, held-out", "per-pixel histogram", "uniform guess", "agreement", "nearest", "ms a sample"):
        assert row in text
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["uniform_bits_per_dim"]["value"] == pytest.approx(4.0875, abs=1e-4)
    assert scores["sampling"]["n"] == 30
    assert [point["steps"] for point in scores["by_steps"]["points"]] == [2, 5]
    where = tmp_path / "evaluations" / run.name
    assert json.loads((where / "scores.json").read_text()) == scores
    page = (where / "index.html").read_text()
    assert f"sfumato evaluate {run} -n 30" in page
    assert "Score" in page
    assert "note: n = 30 is fewer than 50,000" in text
    assert "Frechet" not in text
    assert "note: no scores by features: --features efficientnet-lite0" in text
    assert "n must be a whole number" in refused(capsys, "evaluate", run, "-n", 0)
    assert "choose another --page" in refused(capsys, "evaluate", run, "--page", "scores.json")


def test_evaluate_takes_pictures_and_puts_them_side_by_side(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained()
    monkeypatch.chdir(tmp_path)
    said(capsys, "sample", run, "-n", 20, "--out", "a.npz")
    said(capsys, "sample", run, "-n", 20, "--steps", 2, "--out", "b")
    text = said(capsys, "evaluate", "a.npz", "--compare", "b", "--reference", "digits", "--page", "page")
    for row in (
        "side by side",
        "a.npz",
        "label agreement",
        "energy distance (pixels, -1 to 1)",
        "steps is not the same for all",
    ):
        assert row in text
    compared = json.loads(Path("page/scores.json").read_text())["compared"]
    assert compared.keys() == {"a.npz", "b"}
    assert [one["how"]["steps"] for one in compared.values()] == [4, 2]
    text = said(capsys, "evaluate", "b", "--reference", "a.npz")
    assert "energy distance to the reference (pixels, -1 to 1), n = 20" in " ".join(text.replace("│", " ").split())
    assert Path("evaluations/b/index.html").is_file()
    line = refused(capsys, "evaluate", "a.npz", "--reference", "digits", "--guidance", 2)
    assert "guidance is for models, and only pictures came" in line
    line = refused(capsys, "evaluate", "a.npz", "--compare", run, "--guidance", 2, "--mix", "nothing")
    assert f"{run}: unknown guidance mix 'nothing'" in line


@pytest.mark.slow
def test_two_processes_evaluate_as_one(tmp_path: Path) -> None:
    """Over gloo, as launchers set them up, side by side with another subject: the same pictures and scores; the second
    says and writes nothing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": "2"}
    names = [str(trained()), str(trained() / "model")]
    line = ["evaluate", names[0], "-n", "21", "--ode", "0", "--by-steps", "3", "--guidance", "1.5"]
    line += ["--compare", names[1], "--page"]
    processes = []
    for name, more in (("one", {}), ("two", {**together, "RANK": "0"}), ("none", {**together, "RANK": "1"})):
        mine = {**ENV, **more, "LOCAL_RANK": more.get("RANK", "-1")}
        command = [sys.executable, "-m", "sfumato.cli", *line, str(tmp_path / name)]
        processes.append(subprocess.Popen(command, env=mine, stdout=-1, stderr=-1, text=True, cwd=tmp_path))
        if name == "one":
            processes[0].wait(timeout=200)
    outputs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert not outputs[2][0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    for subject in names:
        one, two = (
            json.loads((tmp_path / name / "scores.json").read_text())["compared"][subject] for name in ("one", "two")
        )
        assert (one["how"]["processes"], two["how"]["processes"]) == (1, 2)
        assert [p["value"] for p in one["by_steps"]["points"]] == [p["value"] for p in two["by_steps"]["points"]]
        for a, b in zip(one["records"], two["records"], strict=True):
            if a["name"] != "milliseconds a sample":
                assert (a["name"], a["value"], a["n"]) == (b["name"], b["value"], b["n"])
    pictures = [re.findall(r"data:image/png;base64,[^\"]+", (tmp_path / name / "index.html").read_text())
                for name in ("one", "two")]  # fmt: skip
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) > 20


@pytest.mark.slow
def test_ctrl_c_saves_the_step_and_says_from_where_the_command_goes_on(tmp_path: Path) -> None:
    """The real command, of which no save_every has come; what it goes on to is the uninterrupted run's to the bit."""
    line = ["train", "digits", *SMALL, "--steps", "60", "--save-every", "1000", "--log-every", "1", "--samples", "20"]
    assert command(*line, "--out", str(tmp_path / "whole")).returncode == 0
    out, log = tmp_path / "stopped", tmp_path / "stopped" / "log.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "sfumato.cli", *line, "--out", str(out)], env=ENV, stderr=subprocess.PIPE, text=True
    )
    while not (log.exists() and len(log.read_text().splitlines()) > 5) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    error = process.communicate()[1]
    assert process.returncode == 130, error
    (saved,) = (out / "checkpoints").iterdir()
    step = int(saved.name.removeprefix("step-"))
    assert 5 < step < 60
    assert error == f"sfumato: stopped; the same command goes on from step {step}\n"
    again = command(*line, "--out", str(out))
    assert again.returncode == 0, again.stderr
    assert f"going on from step {step} of 60" in again.stdout
    assert not different(checkpoint(tmp_path / "whole", 60), checkpoint(out, 60))


def test_a_row_of_the_models_has_at_most_two_lines(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = said(capsys, "models").splitlines()
    rows = [line for line in lines if line[0] == "│"]
    assert max(map(len, rows)) <= 80
    begins = [k for k, line in enumerate(rows) if line[2] != " "]
    assert len(begins) == 8  # the models and the classifiers
    assert all(end - begin <= 2 for begin, end in itertools.pairwise([*begins, len(rows)]))


def test_models_lists_the_zoo(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sfumato import model

    random_model().save(tmp_path / "planted")
    monkeypatch.setattr(model, "ZOO", tmp_path)
    text = said(capsys, "models")
    assert "planted" in text
    assert "picture" in text
    assert "MiB" in text
    said(capsys, "sample", "planted", "-n", 2, "--out", tmp_path / "a.png")
    assert "did you mean 'planted'" in refused(capsys, "sample", "plantd")
    assert said(capsys, "models", "planted").strip() == model.load("planted").card.strip()
    assert "99.54" in said(capsys, "models", "mnist")  # a classifier, since this zoo has no such model
    assert "did you mean 'planted'" in refused(capsys, "models", "plantd")


def test_dry_run_prints_the_plan_and_writes_nothing(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = said(capsys, "train", "digits", *SMALL, "--dry-run")
    for row in ("parameters", "FLOPs", "memory", "images/s", "ETA", "1438 rows", "359 held out"):
        assert row in text
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_train_killed_and_given_again_then_sampled_evaluated_and_fine_tuned(tmp_path: Path) -> None:
    """The real command throughout; the killed run's model is the uninterrupted one's to the bit."""
    line = ["train", "digits", *SMALL, "--steps", "40", "--save-every", "2", "--samples", "20", "--out"]
    done = command(*line, str(tmp_path / "whole"))
    assert done.returncode == 0, done.stderr
    for word in ("images/s", "ETA", "bits/dim", "agreement"):
        assert word in done.stdout
    for name in ("samples.png", "film.gif", "loss.png"):
        with Image.open(tmp_path / "whole" / name) as picture:
            picture.load()

    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-m", "sfumato.cli", *line, str(killed)], env=ENV)
    while not list(killed.glob("checkpoints/step-*6")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    again = command(*line, str(killed))
    assert again.returncode == 0, again.stderr
    assert "going on from step" in again.stdout
    tensors = [native.read_tensors(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed")]
    assert all(torch.equal(x, tensors[1][name]) for name, x in tensors[0].items())

    tuned = ["train", "digits", "--steps", "2", "--batch", "8", "--samples", "10", "--sampling.steps", "2"]
    done = command(*tuned, "--init", str(killed), "--out", str(tmp_path / "tuned"))
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "tuned" / "model" / "config.json").read_text())
    assert config["options"]["channels"] == 8  # the network of --init, not the recipe's
    start, end = tensors[0], native.read_tensors(tmp_path / "tuned" / "model" / "model.safetensors")
    moved = torch.cat([(start[name] - x).flatten() for name, x in end.items()]).abs().max()
    assert 0 < float(moved) < 0.01  # two steps from those weights
    assert str(tmp_path / "tuned") in (tmp_path / "tuned" / "model" / "card.md").read_text()
