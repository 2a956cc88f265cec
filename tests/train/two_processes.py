"""A script for test_several.py: trainings by one process and by two, into WHERE/MODE/NAME.

    python two_processes.py WHERE

    alone       every run of RUNS, and WHERE/alone/half, the first half of `dropping`
    killed      two processes begin WHERE/together/dropping, and process 1 is killed in its step 6
    together    they give the same command again, and make the other run; samples of WHERE/alone/dropping
    sharded     two processes with half of the weights each go on from WHERE/alone/half, and make the other run

What a process says goes to WHERE/MODE.RANK.out and .err, all their ends to WHERE/ends.json.  Processes are forks of one
that has imported everything but has computed nothing, so that many cost little.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import DistributedType
from accelerate.utils import FullyShardedDataParallelPlugin

from sfumato import cli
from sfumato.model import Sampling
from sfumato.nn import UNetConfig
from sfumato.recipes import fit
from sfumato.train import Loss, Optimiser, Run, sharded, trainer

DROPPING = Run(
    network=UNetConfig(channels=8, multipliers=(1,), blocks=1, groups=4, dropout=0.3),
    schedule="cosine:steps=20",
    loss=Loss(times="stratified"),
    optimiser=Optimiser(warmup=2, accumulate=2, decay="constant"),
    sampling=Sampling(steps=2),
    steps=8,
    batch=16,
    precision="float32",
    log_every=1,
    save_every=4,
    evaluate_every=4,
    snapshots=1,
)
HISTORY = replace(  # what the rows of a batch do together: a history of losses, a learned weight, a pairing with noise;
    DROPPING,  # by the operations that `auto` compiles, for which a network must be so wide
    network=replace(DROPPING.network, channels=32, dropout=0.1),
    precision="float32-fast",
    schedule="cosine:steps=2",
    learned_variance=True,
    loss=Loss("hybrid", times="importance", learned_weight=True, coupling="ot"),
    evaluate_every=8,
)


def train(run: Run, out: Path) -> Any:
    return fit(run, out, None, "the command", print, lambda step, loss, rate: None)


def both(where: Path, mode: str) -> None:
    train(DROPPING, where / mode / "dropping")
    training = train(HISTORY, where / mode / "history")
    print("parameters here", sum(x.numel() for x in sharded.local(training.bare.parameters())))


def sample(where: Path, mode: str) -> None:
    line = ["sample", where / "alone" / "dropping", "-n", 7, "--batch", 2, "--out", where / mode / "samples.npz"]
    assert cli.main([str(word) for word in line]) == 0


def alone(where: Path) -> None:
    train(replace(DROPPING, steps=4), where / "alone" / "half")
    both(where, "alone")
    sample(where, "alone")


def killed(where: Path) -> None:
    """Through the command's own way of ending."""
    one_step = trainer._one_step

    def dying(training: Any, rows: Any, other: Any, k: int) -> tuple[float, float]:
        if k == 6 and training.share.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return one_step(training, rows, other, k)

    trainer._one_step = dying
    cli.COMMANDS["train"] = lambda args: train(DROPPING, where / "together" / "dropping")
    sys.exit(cli.main(["train"]))


def together(where: Path) -> None:
    both(where, "together")
    sample(where, "together")


def in_parts(where: Path) -> None:
    """accelerate shards on GPUs alone and torch anywhere: its own preparation, told that this is such a launch."""
    as_launched = sharded.accelerator

    def told() -> Any:
        found = as_launched()
        found.state.distributed_type = DistributedType.FSDP
        found.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            cpu_ram_efficient_loading=True,
            auto_wrap_policy="TRANSFORMER_BASED_WRAP",
            transformer_cls_names_to_wrap=["Stage"],
        )
        return found

    sharded.accelerator = told
    both(where, "sharded")


MODES: dict[str, Callable[[Path], None]] = {
    "alone": alone,
    "killed": killed,
    "together": together,
    "sharded": in_parts,
}


def forked(where: Path, mode: str, rank: int, environment: dict[str, str]) -> int:
    """The id of a new process that does what the mode says."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.environ.update(environment)
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(where / f"{mode}.{rank}.{name}", os.O_WRONLY | os.O_CREAT), stream)
        MODES[mode](where)
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def ends(where: Path, mode: str, world: int) -> list[int]:
    """How the processes of a launch end, which have the variables that every launcher sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{port}",
        "GLOO_SOCKET_IFNAME": "lo",
        "WORLD_SIZE": f"{world}",
    }
    places = [shared | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"} if world > 1 else {} for rank in range(world)]
    pids = [forked(where, mode, rank, place) for rank, place in enumerate(places)]
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def main(where: Path) -> None:
    for name in ("scipy.optimize", "sklearn.datasets", "torch.distributed.fsdp", "torch.utils.tensorboard"):
        importlib.import_module(name)  # as every process would
    found = {"alone": ends(where, "alone", 1), "killed": ends(where, "killed", 2)}
    left = [path.name for path in (where / "together" / "dropping" / "checkpoints").iterdir()]
    shutil.copytree(where / "alone" / "half", where / "sharded" / "dropping")
    found |= {mode: ends(where, mode, 2) for mode in ("together", "sharded")}
    (where / "ends.json").write_text(json.dumps({"ends": found, "left": left}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
