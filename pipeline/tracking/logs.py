"""A process's log records, copied to the run's storage: RUN/logs/NAME.0001.log and so on."""

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline import storage
from pipeline.background import Repeated
from pipeline.errors import StorageError
from pipeline.log_lines import SafeFormatter
from pipeline.runs.run import Run

FILE_BYTES = 1_000_000
"""A file that has grown so far is left, and the next one begun."""
KEPT_FILES = 10
"""So a rank that warns at every step leaves 10 MB of a start."""
SECONDS = 10.0
"""What a death costs of the log; each time is a request to storage."""


@contextmanager
def stored_log(run: Run, name: str, seconds: float = SECONDS) -> Iterator[None]:
    """While the block runs, what this package logs also goes below the run, every few seconds.

    An exception that ends the block goes there too, with its traceback. Storage that can't be
    reached is tried again.
    """
    handler = _Handler(run, name)
    logger = logging.getLogger("pipeline")
    before = logger.level
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)  # Ray's workers start with warnings only.
    logger.addHandler(handler)
    often = Repeated("log", seconds, handler.publish, last=True)
    try:
        yield
    except Exception:  # Whatever it is: it is written down, and goes on.
        handler.handle(
            logger.makeRecord(
                logger.name,
                logging.ERROR,
                __file__,
                lno=0,
                msg="ended by an error",
                args=(),
                exc_info=sys.exc_info(),
            )
        )
        raise
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        often.close()


class _Handler(logging.Handler):
    """Keeps the text of the present file, and publishes it whole: objects can't be appended to."""

    def __init__(self, run: Run, name: str) -> None:
        super().__init__()
        self.setFormatter(
            SafeFormatter("%(asctime)s %(levelname)s %(name)s %(threadName)s: %(message)s")
        )
        self._run, self._name = run, name
        self._number = 1
        self._guard = threading.Lock()
        self._text = b""
        self._stored = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Adds one record."""
        line = f"{self.format(record)}\n".encode()
        with self._guard:
            self._text += line

    def publish(self) -> None:
        """Brings the file on storage up to date."""
        with self._guard:
            text = self._text
        if len(text) == self._stored:
            return
        try:
            storage.publish(self._url(self._number), text)
            if not self._stored and self._number > KEPT_FILES:
                storage.delete(self._url(self._number - KEPT_FILES))
            self._stored = len(text)
            if len(text) >= FILE_BYTES:
                self._begin_next(len(text))
        except StorageError:
            return  # To log it would be to wait for it again; the text stays for the next time.

    def _begin_next(self, published: int) -> None:
        with self._guard:
            self._text = self._text[published:]
        self._number, self._stored = self._number + 1, 0

    def _url(self, number: int) -> str:
        return self._run.path("logs", f"{self._name}.{number:04d}.log")
