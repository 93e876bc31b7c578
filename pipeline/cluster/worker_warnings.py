"""Warnings of Ray's workers on their way to the driver's terminal: by the run's recorder."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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
