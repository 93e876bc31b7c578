"""The container `job-log` beside a head: what the driver prints, to stdout and to storage.

Ray keeps a driver's output in a file of the head, which goes with its cluster. Whoever collects the
pods' stdout gets it line by line, and storage has it a few seconds later, however the driver ends.
"""

import os
import signal
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pipeline import storage
from pipeline.errors import StorageError
from pipeline.masking import masked
from pipeline.submission.kept_log import VARIABLE

SESSIONS = Path("/tmp/ray")  # noqa: S108 - the volume that Ray's container shares
SECONDS = 5.0
"""Between two copies: what a node that is lost takes along of the log; each is a request."""
PART_BYTES = 1_000_000
"""A part that has grown so far is left, and the next one begun: objects can't be appended to."""
KEPT_PARTS = 100
"""Of longer logs the first part and the newest ones stay."""


MOST_BYTES = 32 * PART_BYTES
"""So much waits for a storage that is away."""


class DriverLog:
    """Passes on what drivers add to `sessions`/session_*/logs/job-driver-*.log.

    `folder` is where parts are stored; None: nowhere, and stdout alone has it.
    """

    def __init__(self, sessions: Path, folder: str | None) -> None:
        self._sessions, self._folder = sessions, folder
        self._read: dict[Path, int] = {}
        self._part = b""
        self._number, self._stored = 1, 0
        self._is_refused = False

    def look(self, *, last: bool = False) -> None:
        """Takes whole lines that are new, and, the `last` time, the one that was begun."""
        for path in sorted(self._sessions.glob("session_2*/logs/job-driver-*.log")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                new = file.read()
            if not last:
                new = new[: new.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(new)
            if new:
                self._take(new)
        self._store()

    def _take(self, new: bytes) -> None:
        text = masked(new.decode(errors="replace"))
        sys.stdout.write(text)
        sys.stdout.flush()
        self._part += text.encode()
        if len(self._part) > MOST_BYTES:
            self._part = b"... (what was here is left out)\n" + self._part[-MOST_BYTES // 2 :]

    def _store(self) -> None:
        if self._folder is None or len(self._part) == self._stored:
            return
        try:
            storage.publish(self._url(self._number), self._part)
            if self._number > KEPT_PARTS:
                storage.delete(self._url(self._number - KEPT_PARTS + 1))
        except StorageError as error:
            # The driver needs the same storage and says more; here it is tried again.
            if not self._is_refused:
                sys.stdout.write(f"job-log: {error}\n")
                sys.stdout.flush()
            self._is_refused = True
            return
        self._is_refused = False
        self._stored = len(self._part)
        if self._stored >= PART_BYTES:
            self._part, self._number, self._stored = b"", self._number + 1, 0

    def _url(self, number: int) -> str:
        return storage.join(self._folder or "", f"{number:04d}.log")


def folder_of(environment: Mapping[str, str], now: datetime) -> str | None:
    """This pod's folder: sorts like the tries of its job themselves."""
    below = environment.get(VARIABLE)
    if not below:
        return None
    return storage.join(below, f"{now:%Y%m%dT%H%M%S}Z-{environment['HOSTNAME']}")


def main() -> None:
    """Until SIGTERM, which comes when the head's pod goes."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    log = DriverLog(SESSIONS, folder_of(os.environ, datetime.now(UTC)))
    while not ended.wait(SECONDS):
        log.look()
    log.look(last=True)


if __name__ == "__main__":
    main()
