"""Work that goes on beside the main thread: again and again, until it is told to end."""

import threading
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
