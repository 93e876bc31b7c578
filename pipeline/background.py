"""Work that goes on beside the main thread, again and again, until it is told to end; and where
threads are that bring nothing any more."""

import sys
import threading
import traceback
from collections.abc import Callable


class Repeated:
    """Calls `work` at once and then every `seconds`, in a thread called `name`, until `close`.

    With `last` it is called once more at the end. An error of `work` ends the thread, and Python
    prints it: what may fail is caught in `work`.
    """

    def __init__(
        self, name: str, seconds: float, work: Callable[[], object], *, last: bool = False
    ) -> None:
        self._closed = threading.Event()
        # A daemon: work that hangs keeps no process from its end.
        self._thread = threading.Thread(
            target=self._run, args=(seconds, work, last), name=name, daemon=True
        )
        self._thread.start()

    def close(self, seconds: float | None = None) -> None:
        """Ends the thread, whose work under way is finished first; waits so long (None: for it)."""
        self._closed.set()
        self._thread.join(seconds)

    def _run(self, seconds: float, work: Callable[[], object], last: bool) -> None:
        work()
        while not self._closed.wait(seconds):
            work()
        if last:
            work()


_FRAMES = 6
"""The innermost calls say where a thread waits; those before are the pool's own."""


def describe_threads(*prefixes: str) -> list[str]:
    """The innermost frames of each thread whose name begins with one of `prefixes`.

    When nothing comes any more, that is said in an error instead of a hang.
    """
    frames = sys._current_frames()
    lines = []
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if frame is None or not thread.name.startswith(prefixes):
            continue
        stack = traceback.extract_stack(frame)[-_FRAMES:]
        calls = [f"{at.name} ({at.filename.rsplit('/', 1)[-1]}:{at.lineno})" for at in stack]
        lines.append(f"{thread.name}: {' > '.join(calls)}")
    return lines or ["none of its threads runs"]
