"""A signal waits for the step that is being made, which is then saved; what goes on ends in the same bits."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from sfumato.recipes import fit
from sfumato.train import state
from sfumato.train.stopping import SIGNALS, waiting

from ..tiny import COMMAND, checkpoint, different, silent, tiny, train_tiny


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_is_noted_and_the_second_acts_at_once(number: int) -> None:
    caught: list[int] = []
    before = signal.signal(number, lambda came, frame: caught.append(came))
    try:
        with waiting() as stopped:
            assert not stopped()
            os.kill(os.getpid(), number)
            assert stopped()
            assert not caught
            os.kill(os.getpid(), number)
            assert caught == [number]
        with waiting():
            pass
        os.kill(os.getpid(), number)  # afterwards all is as it was
        assert caught == [number, number]
        with waiting(listen=False) as stopped:
            os.kill(os.getpid(), number)
            assert not stopped()
        assert len(caught) == 3
    finally:
        signal.signal(number, before)


def test_what_is_ignored_stays_ignored_and_other_threads_hear_nothing() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of a command behind `nohup ... &`
    try:
        with waiting() as stopped:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stopped()
    finally:
        signal.signal(signal.SIGINT, before)
    heard: list[bool] = []

    def elsewhere() -> None:
        with waiting() as stopped:
            heard.append(stopped())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert heard == [False]


def test_a_training_that_was_stopped_has_saved_its_step_and_ends_in_the_same_bits(tmp_path: Path) -> None:
    """At step 5, of which no save_every asks, and at 8, whose held-out loss is measured after its first save."""
    run = tiny(steps=12, save_every=8, evaluate_every=8, snapshots=1)
    train_tiny(run, tmp_path / "whole")
    out = tmp_path / "stopped"
    assert state.goes_on(out) == "no step was saved, so the same command starts anew"
    for last in (5, 8):

        def stop(step: int, loss: float, rate: float, last: int = last) -> None:
            if step == last:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            fit(run, out, None, COMMAND, silent, stop)
        assert state.goes_on(out) == f"the same command goes on from step {last}"
    found = state.load(out, silent)
    assert found is not None
    assert found[1]["best"] < float("inf")
    train_tiny(run, out)
    assert not different(checkpoint(tmp_path / "whole", 12), checkpoint(out, 12))
