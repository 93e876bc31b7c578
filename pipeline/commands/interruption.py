"""Ctrl-C, SIGTERM and a closed window end a training: the first after a checkpoint."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline import storage
from pipeline.errors import StorageError
from pipeline.progress import leave_terminal
from pipeline.runs.checkpoint import newest_step
from pipeline.runs.run import Run, Start

logger = logging.getLogger(__name__)

_ECHO_SECONDS = 2.0
"""torchrun and srun pass on what the terminal or the scheduler has sent to every process already:
so soon after the first, a signal is its echo."""


class Interruption:
    """What has been asked of `start` by signals so far."""

    def __init__(self, run: Run, start: Start) -> None:
        self._run, self._start = run, start
        self._came_at: float | None = None
        self._nothing_runs = False
        self.by_keyboard = False
        """Somebody pressed Ctrl-C: what comes after this run is not wanted either."""

    def take(self, number: int, frame: FrameType | None) -> None:
        """The signals' handler; raises `KeyboardInterrupt` at the second one."""
        now, first = time.monotonic(), self._came_at
        if number == signal.SIGHUP:
            leave_terminal()
        self.by_keyboard |= number == signal.SIGINT
        if first is None:
            self._came_at = now
            # A thread: this may interrupt the main one in the middle of a call into storage.
            threading.Thread(target=self._stop, args=(number,), name="interruption").start()
            return
        is_passed_on = number != signal.SIGINT or "TORCHELASTIC_RUN_ID" in os.environ
        if self._nothing_runs or not is_passed_on or now - first > _ECHO_SECONDS:
            raise KeyboardInterrupt

    def _stop(self, number: int) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        logger.warning("%s: the run stops after a last checkpoint; a second one ends it now", name)
        try:
            newest = self._run.newest_start()
            if newest.number > self._start.number:
                # A STOP would end that one; the loop here ends by itself at its next look.
                logger.warning("start %d owns the run by now, and goes on", newest.number)
                return
            # The same that anybody may leave: the loop ends with a checkpoint, so no step is lost.
            storage.publish(self._run.path("STOP"), f"{name}\n".encode())
            if newest == self._start:
                # No worker has begun, and perhaps none finds room: nothing to wait for.
                self._nothing_runs = True
                os.kill(os.getpid(), signal.SIGINT)
        except StorageError as error:
            logger.warning("%s: the run can't be told to stop: %s", name, error)


@contextmanager
def ended_by_signals(run: Run, start: Start) -> Iterator[Interruption]:
    """While the block runs, signals stop the run; the second raises `KeyboardInterrupt`.

    That says then what is saved.
    """
    interruption = Interruption(run, start)
    if threading.current_thread() is not threading.main_thread():
        yield interruption  # Only the main thread may handle signals.
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # As `nohup` has it.
        numbers.append(signal.SIGHUP)
    before = [signal.signal(number, interruption.take) for number in numbers]
    try:
        yield interruption
    except KeyboardInterrupt:
        raise KeyboardInterrupt(saved_at(run)) from None
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def saved_at(run: Run) -> str:
    """What is left of a run that ended early, as a sentence."""
    try:
        step = newest_step(run)
    except StorageError as error:
        return f"run {run.url}: what is saved is not known: {error}"
    if step == 0:
        return f"run {run.url}: nothing saved yet; the same command begins it."
    return f"run {run.url}: saved at step {step}; the same command goes on from there."
