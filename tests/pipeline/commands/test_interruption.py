"""What a signal leaves in the run's folder, by who owns the run when it comes."""

import logging
import signal
import threading
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.commands.interruption import Interruption
from pipeline.runs.run import Run


def told(interruption: Interruption) -> None:
    """Sends SIGTERM, and waits for the thread that acts on it."""
    interruption.take(signal.SIGTERM, None)
    for thread in threading.enumerate():
        if thread.name == "interruption":
            thread.join(30)


def test_a_signal_to_the_start_that_owns_the_run_stops_it(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    start = run.claim()
    run.claim_restart(start)  # Its workers have begun.
    told(Interruption(run, start))
    assert storage.read(run.path("STOP")) == b"SIGTERM\n"


def test_a_signal_to_a_start_that_was_replaced_leaves_the_newer_one_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(str(tmp_path))
    older = run.claim()
    newer = run.claim()
    with caplog.at_level(logging.WARNING):
        told(Interruption(run, older))
    assert not storage.exists(run.path("STOP"))
    assert f"start {newer.number} owns the run by now, and goes on" in caplog.text
