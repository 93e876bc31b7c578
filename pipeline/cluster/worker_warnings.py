"""Warnings of Ray's workers on their way to the driver's terminal.

Those of a training go to the run's recorder; an encoding's driver asks its actors for theirs.
"""

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_MOST_KEPT = 20
"""Of an actor that nobody asks the newest ones stay."""


@contextmanager
def warnings_told(recorder: Any, rank: int) -> Iterator[None]:
    """While the block runs, warnings of this package also go to the recorder actor.

    Ray's own way would bring all that a worker prints, and is off.
    """
    handler = _ToRecorder(recorder, rank)
    logger = logging.getLogger("pipeline")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _ToRecorder(logging.Handler):
    def __init__(self, recorder: Any, rank: int) -> None:
        super().__init__(logging.WARNING)
        self._recorder, self._rank = recorder, rank

    def emit(self, record: logging.LogRecord) -> None:
        """Sends it, and waits for nothing."""
        self._recorder.warn.remote(self._rank, record.getMessage())


class KeptWarnings(logging.Handler):
    """Warnings of this package, from when it is made on, until they are taken."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._messages: deque[str] = deque(maxlen=_MOST_KEPT)
        logging.getLogger("pipeline").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps it."""
        self._messages.append(record.getMessage())

    def take(self) -> list[str]:
        """Those since the last time, oldest first."""
        taken = []
        while self._messages:
            taken.append(self._messages.popleft())
        return taken
