"""When to try again: error classes, full jitter, and one deadline per operation.

Full jitter (a uniform draw up to a doubling cap) spreads the clients of a store that has just come
back better than equal waits do: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

import logging
import math
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, NoReturn

from pipeline.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    ObjectNotFoundError,
    StorageError,
    StorageShortageError,
)
from pipeline.masking import shell_word
from pipeline.storage.urls import shown

logger = logging.getLogger(__name__)

Verdict = Literal[
    "throttled", "server", "timeout", "connection", "short_body", "conflict", "full",
    "credentials", "signature", "denied", "no_bucket", "missing", "precondition", "past_the_end",
    "fatal",
]  # fmt: skip
PASSING: frozenset[Verdict] = frozenset(
    {
        "throttled",
        "server",
        "timeout",
        "connection",
        "short_body",
        "conflict",
        "full",
        "credentials",
    }
)
_UNTOUCHED: frozenset[Verdict] = frozenset({"throttled", "full", "credentials"})
"""A request that fails so has surely had no effect."""


class RequestFailedError(Exception):
    """A request that failed once, by what that means; its text is the cause in one line.

    Each kind of storage raises it in place of its library's own errors.
    """

    def __init__(self, verdict: Verdict, cause: BaseException) -> None:
        self.verdict = verdict
        super().__init__(_described(cause))


@dataclass(frozen=True)
class RetryPolicy:
    """Waits are uniform in [0, min(cap, base 2^n)] seconds; `deadline_seconds` bounds their sum
    with the tries themselves, counted anew whenever a read has moved on.
    """

    deadline_seconds: float = 120.0
    """A gateway that restarts is back within two minutes; what lasts longer wants people."""
    base_seconds: float = 0.1
    """Most faults are one lost connection, over at once."""
    cap_seconds: float = 10.0
    """Between two tries late on: often enough to see soon that a server is back."""
    silent_seconds: float | None = None
    """What fails is told after so long; None: as of a job that goes on for hours."""


LOOK = RetryPolicy(silent_seconds=5.0)
"""Of a command that somebody looks with, and waits for at a terminal."""
_TOLD_SECONDS = 30.0
"""So long an operation fails in silence, and so long again from one warning to the next: a worker
that tries on must not look as one that works."""


class _State:
    told: ClassVar[float] = -math.inf
    policy = RetryPolicy()
    retries: ClassVar[Counter[str]] = Counter()
    lock = threading.Lock()


def retry_counts() -> Counter[str]:
    """Retries of this process so far, by error class (`throttled`, `timeout`, ...)."""
    with _State.lock:
        return Counter(_State.retries)


def set_retry_policy(policy: RetryPolicy) -> RetryPolicy:
    """Sets this process's policy, and returns the one before."""
    before, _State.policy = _State.policy, policy
    return before


@contextmanager
def retry_policy(policy: RetryPolicy) -> Iterator[None]:
    """This process's policy within a `with` block."""
    before = set_retry_policy(policy)
    try:
        yield
    finally:
        set_retry_policy(before)


class Attempts:
    """The tries of one operation on one URL: waits before the next one, or raises for good."""

    def __init__(self, url: str, doing: str) -> None:
        self._url, self._doing = url, doing
        self._policy = _State.policy
        self._number = 0
        self._start = time.monotonic()
        self.ambiguous = False  # a request may have taken effect although it failed

    def progressed(self) -> None:
        """The operation moved on: the deadline and the waits begin anew."""
        self._number, self._start = 0, time.monotonic()

    def failed(self, error: RequestFailedError) -> None:
        """Waits, where another try makes sense; raises a `StorageError` where none does."""
        if error.verdict not in PASSING:
            _give_up(self._url, self._doing, error)
        self.ambiguous = self.ambiguous or error.verdict not in _UNTOUCHED
        wait = random.uniform(  # noqa: S311 - jitter, no secret
            0, min(self._policy.cap_seconds, self._policy.base_seconds * 2.0**self._number)
        )
        spent = time.monotonic() - self._start
        if spent + wait > self._policy.deadline_seconds:
            fact = (
                f"{shown(self._url)}: {self._doing} failed for {spent:.0f} s, in "
                f"{self._number + 1} tries; the last: {error}"
            )
            raise StorageShortageError(
                f"{fact}. {_cure(error.verdict)}, run the same command again."
                f"{_endpoint(self._url)}", fact=fact,
            ) from None  # fmt: skip
        with _State.lock:
            _State.retries[error.verdict] += 1
        self._number += 1
        self._tell(spent, error)
        time.sleep(wait)

    def _tell(self, spent: float, error: RequestFailedError) -> None:
        """One warning for all that fails at a time."""
        now = time.monotonic()
        silent = self._policy.silent_seconds
        with _State.lock:
            if (
                spent < (_TOLD_SECONDS if silent is None else silent)
                or now - _State.told < _TOLD_SECONDS
            ):
                return
            _State.told = now
        logger.warning(
            "%s: %s has failed for %.0f s, and is tried on until %.0f s are over; the last: %s",
            shown(self._url), self._doing, spent, self._policy.deadline_seconds, error,
        )  # fmt: skip


def _give_up(url: str, doing: str, error: RequestFailedError) -> NoReturn:
    """Raises the error of a verdict that no retry can mend."""
    where, verdict = shown(url), error.verdict
    if verdict in ("missing", "no_bucket"):
        kind = "its bucket does not exist" if verdict == "no_bucket" else "no such object"
        missing = BucketNotFoundError if verdict == "no_bucket" else ObjectNotFoundError
        raise missing(f"{where}: {kind} ({error}). Check the URL.{_bucket(url, verdict)}") from None
    if verdict in ("denied", "signature", "credentials"):
        raise AccessDeniedError(
            f"{where}: {doing} was refused ({error}). {_credentials(verdict, str(error))}"
        ) from None
    raise StorageError(f"{where}: {doing} failed: {error}.") from None


def _cure(verdict: Verdict) -> str:
    """What comes before the next try of somebody."""
    if verdict == "full":
        return "The storage is full: once there is room in it, or its quota is larger"
    return "When the storage is well again"


def _endpoint(url: str) -> str:
    """Whom a request to an object storage goes to, and how another is named."""
    if not url.startswith(("s3://", "s3a://")):
        return ""
    named = os.environ.get("AWS_ENDPOINT_URL", "")
    where = f"asked was {shown(named)}" if named else "asked was Amazon's S3"
    return f" Of an s3:// URL {where}; `export AWS_ENDPOINT_URL=http://HOST:PORT` names another."


def _bucket(url: str, verdict: Verdict) -> str:
    if verdict != "no_bucket":
        return ""
    bucket = shell_word("/".join(shown(url).split("/")[:3]))
    return f" Make the bucket, `aws s3 mb {bucket}`, or name another.{_endpoint(url)}"


def _credentials(verdict: Verdict, said: str) -> str:
    """What to do about a refusal: keys that are wrong, none, or keys that may not."""
    both = "`export AWS_ACCESS_KEY_ID=KEY AWS_SECRET_ACCESS_KEY=SECRET`"
    if verdict == "signature" or "NoCredentials" in said or "PartialCredentials" in said:
        return f"Give the right ones by {both}."
    return f"Ask for the right to do that, or give keys that have it, by {both}."


def _described(error: BaseException) -> str:
    """An error in one line: class and code, without the request's headers or any key."""
    if isinstance(error, RequestFailedError):
        return str(error)
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
        code = str(response.get("Error", {}).get("Code", ""))
        return code if code == str(status) else f"{code} {status}".strip()
    text = str(error).splitlines()[0][:200] if str(error) else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}"


def retrying(url: str, doing: str) -> "Iterator[_Try]":
    """Yields tries until one ends well: `for attempt in retrying(...): with attempt: ...`.

    A try fails with a `RequestFailedError`; any other error is not caught.
    """
    attempts = Attempts(url, doing)
    while True:
        attempt = _Try(attempts)
        yield attempt
        if attempt.done:
            return


class _Try:
    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts
        self.done = False

    @property
    def ambiguous(self) -> bool:
        return self._attempts.ambiguous

    def __enter__(self) -> "_Try":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if error is None:
            self.done = True
        elif isinstance(error, RequestFailedError):
            self._attempts.failed(error)
        return isinstance(error, RequestFailedError)
