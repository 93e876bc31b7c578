"""What a job's driver printed, on storage: `--logs` reads it when the job's cluster is gone.

JOB_LOGS/JOB/TIME-POD/0001.log   a folder for each head, so for each try; parts of a MB or more

JOB_LOGS is said once, in a template's container `job-log`, which writes it (driver_log.py).
"""

import logging
import time
from dataclasses import dataclass
from typing import NamedTuple

from pipeline import storage
from pipeline.errors import ObjectNotFoundError, StorageError
from pipeline.submission.job_output import END_CHARACTERS, printed
from pipeline.submission.objects import Container, RayJob, RayJobTemplate

logger = logging.getLogger(__name__)

EVERY_SECONDS = 10.0
"""The log is stored every few seconds, and read no more often than this."""
LAST_SECONDS = 20.0
"""So long its last lines may take, once a job has ended; a brief job's are all that it has."""
AGAIN_SECONDS = 300.0
"""Until a storage that can't be reached is asked once more."""
CONTAINER = "job-log"
VARIABLE = "JOB_LOGS"
_PATIENCE = storage.RetryPolicy(deadline_seconds=5)
"""Who follows a job has more to look at than its log."""


class Kept(NamedTuple):
    """What one try has printed, and its folder.

    `before` characters came earlier, and are read no more. The first `full` characters of the text
    are of `parts` that change no more.
    """

    text: str = ""
    folder: str = ""
    before: int = 0
    full: int = 0
    parts: tuple[str, ...] = ()


_NOTHING = Kept()


@dataclass(frozen=True)
class KeptLog:
    """The log of the job whose folders lie below `url`; of the head of `cluster`, if it is known.

    What was kept before the time `since`, YYYYmmddTHHMMSSZ, is an earlier job's of that name.
    Reading raises `StorageError` where the storage can't be reached from here.
    """

    url: str
    cluster: str = ""
    since: str = ""

    def read(self, known: Kept = _NOTHING) -> Kept:
        """What the newest try printed so far; nothing while none is kept.

        Of parts that are `known` and full only the end is in the text again.
        """
        with storage.retry_policy(_PATIENCE):
            tries = self._tries()
            ours = [folder for folder in tries if self._is_of_cluster(folder)]
            if not ours:
                return _NOTHING
            *full, last = tries[max(ours)]
            if known.folder != max(ours):
                known = Kept(folder=max(ours))
            held = known.text[max(0, known.full - END_CHARACTERS) : known.full]
            new = [part for part in full if part not in known.parts]
            text = held + _text(new)
            return Kept(
                text=text + _text([last]),
                folder=known.folder,
                before=known.before + known.full - len(held),
                full=len(text),
                parts=(*known.parts, *new),
            )

    def earlier(self) -> list[str]:
        """What the job's tries before this cluster's printed, oldest first."""
        found: dict[str, str] = {}
        with storage.retry_policy(_PATIENCE):
            for folder, parts in sorted(self._tries().items()):
                name = folder.rpartition("/")[2]
                cluster = name.partition("Z-")[2].rpartition("-head")[0]
                if name >= self.since and (not self.cluster or cluster != self.cluster):
                    # A cluster's second head goes on with the same try.
                    found[cluster] = found.get(cluster, "") + _text(parts)
        return list(found.values())

    def _tries(self) -> dict[str, list[str]]:
        """The parts of each, by its folder."""
        tries: dict[str, list[str]] = {}
        try:
            for item in storage.list_objects(self.url):
                folder, _, _ = item.url.rpartition("/")
                tries.setdefault(folder, []).append(item.url)
        except ObjectNotFoundError:
            return {}
        return tries

    def _is_of_cluster(self, folder: str) -> bool:
        return not self.cluster or f"Z-{self.cluster}-head" in folder


def _text(parts: list[str]) -> str:
    return "".join(storage.read(part).decode(errors="replace") for part in parts)


class LogReader:
    """Reads a log as often as it changes; one that can't be read is said once, and let be."""

    def __init__(self) -> None:
        self._kept, self._of, self._next = Kept(), KeptLog(""), 0.0
        self._is_refused = False

    def read(self, log: KeptLog, *, due_seconds: float = 0.0) -> Kept:
        """What is kept; of a job that has ended also its last lines, due within `due_seconds`.

        Nothing where nothing is kept, or it can't be read from here. The first time it is all of
        it, and then, of a log that goes on, the end of what was read before and what is new.
        """
        if log != self._of:
            if log.url != self._of.url or not self._is_refused:
                self._next = 0.0
            self._kept, self._of = Kept(), log
        now = time.monotonic()
        if now < self._next and (self._is_refused or not due_seconds):
            return self._kept
        try:
            found = log.read(self._kept)
            while not _is_whole(found.text) and time.monotonic() < now + due_seconds:
                time.sleep(1)
                # Again from what the caller has: nothing of it is left out unseen.
                found = log.read(self._kept)
            self._kept = found
        except StorageError as error:
            self._refused(error)
            return self._kept
        self._is_refused, self._next = False, now + EVERY_SECONDS
        return self._kept

    def earlier(self, log: KeptLog) -> list[str]:
        """What tries before this one printed, oldest first; nothing where that can't be read."""
        if self._is_refused and time.monotonic() < self._next:
            return []
        try:
            return log.earlier()
        except StorageError as error:
            self._refused(error)
            return []

    def _refused(self, error: StorageError) -> None:
        logger.warning("the job's log can't be read from here: %s", error)
        self._is_refused, self._next = True, time.monotonic() + AGAIN_SECONDS


def _is_whole(text: str) -> bool:
    """Whether it ends as jobs end: with a result, or with what ended it."""
    found = printed(text)
    return found.result is not None or bool(found.cause)


def folder_of_logs(rayjob: RayJob | RayJobTemplate) -> str | None:
    """Where a RayJob's logs go, or, of a template, those of all its copies; None: nowhere."""
    for container in _head_containers(rayjob):
        for variable in container.get("env", ()) if container["name"] == CONTAINER else ():
            if variable["name"] == VARIABLE:
                return variable.get("value") or None
    return None


def _head_containers(rayjob: RayJob | RayJobTemplate) -> list[Container]:
    pod = rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    return [*pod.get("initContainers", ()), *pod["containers"]]
