"""Several processes as one: who is who, rows back in their order, and one line where one of them is gone.

accelerate launch or torchrun start R processes, on one machine or many.  Of n rows, process r has r, r + R, r + 2R, ...
What they all need is gathered back into the order that one process would have; so nothing depends on R.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor

TIMEOUT = timedelta(minutes=30)  # longer than anything that one process does alone while the others wait for it


@dataclass(frozen=True)
class Share:
    """Which of `world` processes this one is."""

    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0


ALONE = Share()


def announced() -> Share:
    """What accelerate or torchrun said of this process when they started it; ALONE if they did not."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return ALONE if world < 2 else Share(int(os.environ["RANK"]), world)


def launched() -> Share:
    """The same, once they are joined."""
    if announced() == ALONE:
        return ALONE
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)
    return Share(state.process_index, state.num_processes)


def joined(mine: Tensor, n: int, share: Share) -> Tensor:
    """All n rows, in every process, from the rows rank::world (M, ...) of each, M no more than n / world rounded up."""
    if share.world == 1:
        return mine
    from accelerate.utils import gather

    most = -(-n // share.world)
    padded = torch.cat([mine, mine.new_zeros(most - len(mine), *mine.shape[1:])])
    everyone = gather(padded.to("cuda" if torch.cuda.is_available() else "cpu")).cpu()
    return everyone.unflatten(0, (share.world, most)).transpose(0, 1).flatten(0, 1)[:n]


@contextlib.contextmanager
def one_line(share: Share, mend: Callable[[], str]) -> Iterator[None]:
    """Within, the loss of another process is a ValueError of one line that ends with `mend()`."""
    try:
        yield
    except RuntimeError as error:
        told = isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)
        if share.world == 1 or not told:
            raise
        reason = "did not answer" if "imed out" in str(error) else "has ended"
        raise ValueError(
            f"another of the {share.world} processes {reason}, so process {share.rank} stops; {mend()}"
        ) from None
