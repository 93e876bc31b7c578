"""What makes a run stop lies in its folder; nothing but that does."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import StorageError
from pipeline.runs.run import Run, Start
from pipeline.runs.stop import StopSignal


@contextmanager
def signal_of(
    run: Run, start: Start, drained: Callable[[], bool] = lambda: False
) -> Iterator[StopSignal]:
    with closing(StopSignal(run, start, drained, seconds=0.01)) as signal:
        yield signal


def until(asked: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not asked():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stop_and_a_newer_start_are_noticed_while_a_restart_of_the_same_goes_on(
    tmp_path: Path,
) -> None:
    run = Run(str(tmp_path))
    first = run.claim()
    own = run.claim_restart(first)
    with signal_of(run, own) as signal:
        assert not signal.requested
        storage.publish(run.path("STOP"), b"")
        until(lambda: signal.requested)
        assert signal.reason() == "stopped"
        run.claim()
        assert signal.reason() == "superseded"


def test_a_node_that_goes_is_a_reason_unless_somebody_stopped_the_run_as_well(
    tmp_path: Path,
) -> None:
    run = Run(str(tmp_path))
    with signal_of(run, run.claim(), lambda: True) as signal:
        assert signal.requested
        assert signal.reason() == "drained"
        storage.publish(run.path("STOP"), b"")
        assert signal.reason() == "stopped"


def test_storage_that_is_away_stops_nothing_and_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = Run(str(tmp_path)), []
    start = run.claim()

    def away(self: Run) -> Start:
        asked.append(1)
        raise StorageError("away")

    with monkeypatch.context() as patched:
        patched.setattr(Run, "newest_start", away)
        with signal_of(run, start) as signal:
            until(lambda: len(asked) > 2)
            assert not signal.requested
            patched.undo()
            run.claim()
            until(lambda: signal.requested)
