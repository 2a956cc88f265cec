"""A training is stopped between two steps: SIGINT (Ctrl-C) and SIGTERM wait for the step that is being made.

    with waiting() as stopped:
        for step in train(training):
            ...
            if stopped():
                training.save()
                raise KeyboardInterrupt

A second signal is not waited for.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def waiting(listen: bool = True) -> Iterator[Callable[[], bool]]:
    """Whether one of SIGNALS has come; what is ignored stays so, and outside the main thread none can be heard."""
    came: list[int] = []
    heard = SIGNALS if listen and threading.current_thread() is threading.main_thread() else ()
    usual = {one: signal.getsignal(one) for one in heard if signal.getsignal(one) not in (signal.SIG_IGN, None)}

    def back() -> None:
        for one, handler in usual.items():
            signal.signal(one, handler)

    def note(number: int, frame: Any) -> None:
        came.append(number)
        back()

    for one in usual:
        signal.signal(one, note)
    try:
        yield lambda: bool(came)
    finally:
        back()
