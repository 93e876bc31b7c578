"""Ctrl-C, SIGTERM and a closed window at any job: the first ends it in order, a second at once."""

import os
import signal
import sys
import threading
import time
from types import FrameType

from pipeline.progress import leave_terminal

ENDED = 130
"""The exit code of what was interrupted, as shells know it."""
_ECHO_SECONDS = 2.0
"""Who starts jobs may pass SIGTERM on that the whole group has got already: that is one signal."""
_SHOW_CURSOR = b"\x1b[?25h\n"


class Interrupts:
    """Their handler, and when the first of them came."""

    def __init__(self) -> None:
        self._came_at: float | None = None

    def take(self, number: int, frame: FrameType | None) -> None:
        """Raises `KeyboardInterrupt` at the first; at the second nothing is waited for any more."""
        now, first = time.monotonic(), self._came_at
        if number == signal.SIGHUP:
            leave_terminal()
        if first is None:
            self._came_at = now
            raise KeyboardInterrupt
        if number != signal.SIGINT and now - first < _ECHO_SECONDS:
            return
        if sys.stderr.isatty():
            os.write(2, _SHOW_CURSOR)
        os._exit(ENDED)


def end_in_order() -> None:
    """From now on these signals go this way, but for those that whoever started us has turned off
    (`nohup`, and `&` in a script).

    Jobs that know better, as trainings do, lay their own handlers over these.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # Only the main thread may handle signals.
    interrupts = Interrupts()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupts.take)
