"""The bench itself, in its environment: every side a process of its own, asked in turn, its answers kept at once.

    round 0:  A B C     round 1:  A B C     ...

All sides of a measure live at the same time, warmed up, and wait for a line on their standard input, so they sleep
while another works, and what disturbs the machine for a while disturbs all.  reports/bench.json has every answer; it
is written after each, so a bench that was stopped goes on where it stopped.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any, final

from . import page
from .table import NEED_MNIST, PARTS
from .terms import Measure, Side, tiny

Result = dict[str, Any]
Go = Callable[[int], Result]

PRECIOUS = ("torch", "diffusers", "denoising-diffusion-pytorch", "openvino")  # whose versions are noted
NEEDS = {"diffusers": "diffusers", "ddp": "denoising_diffusion_pytorch", "openvino": "openvino"}


# what was measured --------------------------------------------------------------------------------------------------


@final
class Store:
    """reports/bench.json: {"parts": {part: {"machine", "measures": {name: {"about", "facts", "rounds"}}}}}."""

    def __init__(self, path: Path):
        self.path = path
        self.document: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"parts": {}}

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_name(f".{self.path.name}.writing")
        fresh.write_text(json.dumps(self.document, indent=1) + "\n")
        fresh.replace(self.path)

    def kept(self, part: str, measure: Measure, machine: Mapping[str, Any]) -> dict[str, Any]:
        """What is known of a measure; nothing if it, or the machine and what runs on it, was another one then."""
        about = json.loads(json.dumps(asdict(measure)))
        found = self.document["parts"].setdefault(part, {"machine": dict(machine), "measures": {}})
        if {**found["machine"], "date": None} != {**machine, "date": None}:
            found = self.document["parts"][part] = {"machine": dict(machine), "measures": {}}
        if found["measures"].get(measure.name, {}).get("about") != about:
            found["measures"][measure.name] = {"about": about, "facts": {}, "rounds": []}
        kept: dict[str, Any] = found["measures"][measure.name]
        return kept

    def forget(self, part: str) -> None:
        self.document["parts"].pop(part, None)


def missing(measure: Measure, rounds: list[Result]) -> dict[int, list[str]]:
    """Of each round that is not whole, the sides that are still to be asked, in the table's order."""
    names = [side.name for side in measure.sides]
    done: list[Result] = [*rounds, *[{} for _ in range(measure.rounds - len(rounds))]]
    left = {number: [name for name in names if name not in one] for number, one in enumerate(done)}
    return {number: names for number, names in left.items() if names}


def alternate(measure: Measure, sides: Mapping[str, Go], rounds: list[Result], save: Callable[[], None]) -> None:
    """Ask the sides in turn, round by round, for what is missing in `rounds`; each answer is saved at once."""
    for number, names in missing(measure, rounds).items():
        if number == len(rounds):
            rounds.append({})
        for name in names:
            rounds[number][name] = found = sides[name](number)
            save()
            told = f"{measure.name}, {number + 1} of {measure.rounds}, {name}"
            print(f"  {told}: {found[measure.value]:.4g} {measure.unit}", flush=True)


# sides as processes -------------------------------------------------------------------------------------------------


@final
class Worker:
    """A side at work: `facts` when it is ready, then an answer to each number of a round."""

    def __init__(self, side: Side, task: str, runs: Path, first: int):
        told = json.dumps({**side.options, "runs": str(runs), "round": first})
        name = "".join(c if c.isalnum() else "-" for c in side.name)
        self.log = runs / "logs" / f"{task}-{name}.txt"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", side.library, task, told],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},  # what is compared is the work of the processor
            )
        self.facts = self._answer()

    def __call__(self, number: int) -> Result:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Result:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            last = (self.log.read_text().strip() or "it said nothing").splitlines()[-1]
            raise ValueError(f"a side stopped: {last} (all of it: {self.log})")
        answer: Result = json.loads(line)
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def _command(side: Side) -> Go:
    def go(number: int) -> Result:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            command = [sys.executable, *side.options["command"]]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            return {"seconds": time.perf_counter() - start}

    return go


def _fresh(side: Side, task: str, runs: Path, facts: dict[str, Any]) -> Go:
    def go(number: int) -> Result:
        with closing(Worker(side, task, runs, number)) as worker:
            facts[side.name] = worker.facts
            return worker(number)

    return go


def run(measure: Measure, kept: dict[str, Any], runs: Path, save: Callable[[], None]) -> None:
    """All that is missing of a measure."""
    wanted = missing(measure, kept["rounds"])
    if wanted:
        today = datetime.date.today().isoformat()
        kept["dates"] = sorted({*kept.get("dates", []), today})
    with ExitStack() as stack:
        sides: dict[str, Go] = {}
        for side in measure.sides:
            first = min((number for number, names in wanted.items() if side.name in names), default=None)
            if first is None:
                continue
            if measure.task == "command":
                sides[side.name] = _command(side)
            elif measure.fresh:
                sides[side.name] = _fresh(side, measure.task, runs, kept["facts"])
            else:
                worker = stack.enter_context(closing(Worker(side, measure.task, runs, first)))
                kept["facts"][side.name], sides[side.name] = worker.facts, worker
        alternate(measure, sides, kept["rounds"], save)


# the machine, and the command ---------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    model = platform.processor()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    said = _git("describe", "--always", "--dirty")
    if said.endswith("-dirty"):  # one such tree is not like another
        said += f"-{hashlib.sha256(_git('diff', 'HEAD').encode()).hexdigest()[:8]}"
    versions = {name: metadata.version(name) for name in PRECIOUS if _there(name.replace("-", "_"))}
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        **versions,
        "sfumato": said or metadata.version("sfumato"),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
    }


def _git(*words: str) -> str:
    """What git says of this clone; nothing where there is none."""
    return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()


def _there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def present(measure: Measure) -> Measure:
    """The measure without the sides whose library is not installed."""
    sides = tuple(side for side in measure.sides if _there(NEEDS.get(side.library, "sys")))
    return replace(measure, sides=sides)


def _no_mnist() -> str:
    """Why there is no MNIST, in one line; nothing if there is."""
    from sfumato.data import named

    return "" if named.stored("mnist") else f"it needs MNIST: {named.mend('mnist')}"


def _made(measure: Measure, runs: Path) -> None:
    """The network of diffusers that all sides load: made once, by a process of its own."""
    for network in sorted({side.options["network"] for side in measure.sides if "network" in side.options}):
        if not (runs / "networks" / network / "expected.safetensors").exists():
            make = [sys.executable, "-m", "benchmarks.sides.diffusers_side", network, str(runs / "networks" / network)]
            subprocess.run(make, check=True)


def main() -> None:
    """The parts that are asked for, a page after each."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description="sfumato beside its peers, in one run")
    parser.add_argument("parts", nargs="*", help=f"any of {', '.join(PARTS)}; all without")
    parser.add_argument("--again", action="store_true", help="measure these parts anew; else what is known stays")
    parser.add_argument("--tiny", action="store_true", help="sizes that mean nothing: does everything run?")
    given = parser.parse_args()
    if unknown := sorted(set(given.parts) - PARTS.keys()):
        raise ValueError(f"{unknown[0]!r} is no part of the bench; allowed are {', '.join(PARTS)}")
    name = "bench-tiny" if given.tiny else "bench"
    runs, store = Path("runs") / name, Store(Path("reports") / f"{name}.json")
    here = machine()
    for part in given.parts or PARTS:
        if part in NEED_MNIST and (reason := _no_mnist()):
            print(f"{part} is left out: {reason}")
            continue
        print(part, flush=True)
        if given.again:
            store.forget(part)
            shutil.rmtree(runs / part, ignore_errors=True)
        for measure in map(present, PARTS[part]):
            wanted = tiny(measure) if given.tiny else measure
            _made(wanted, runs)
            run(wanted, store.kept(part, wanted, here), runs, store.save)
        page.write(store.document, store.path.with_suffix(".md"))
    print(f"{store.path.with_suffix('.md')} has it all; {store.path} every single time")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
    except (ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
