"""Errors that a user can act on: each says where, what was found, what is allowed, what to do next.

Every job prints them as one message without a traceback. Anything else that is raised is a bug and
keeps its traceback.
"""

import errno
from collections.abc import Sequence
from typing import ClassVar

from pipeline.masking import safe_line


class PipelineError(Exception):
    """The root of all errors of this package; `exit_code` is what a job ends with."""

    exit_code: ClassVar[int] = 1
    may_pass: ClassVar[bool] = True
    """Whether the same command may end otherwise when it is merely repeated."""

    def __init__(self, message: str = "", *, below: Sequence[str] = ()) -> None:
        """`below`: what is told in lines of its own; nothing else begins one, whoever chose it."""
        super().__init__(message)
        self.below = tuple(below)

    def __str__(self) -> str:
        """The message, in which no secret shows and no character moves a terminal's cursor."""
        said = safe_line(super().__str__())
        return "\n  ".join([said, *map(safe_line, self.below)])


class ConfigError(PipelineError):
    """A flag, a YAML key or a combination of options is wrong."""

    exit_code: ClassVar[int] = 2
    may_pass: ClassVar[bool] = False


class StorageError(PipelineError):
    """An object can't be read, listed or written."""


class ObjectNotFoundError(StorageError):
    """An object or a folder that was named doesn't exist."""


class BucketNotFoundError(ObjectNotFoundError):
    """The bucket doesn't exist, and so nothing in it."""


class ObjectChangedError(StorageError):
    """An object is not the one that it was when its tag was asked for."""


class AccessDeniedError(StorageError):
    """The storage refused the credentials or the permission: never retried."""


class DatasetError(PipelineError):
    """A dataset, its shards, its index or its manifest are not what they should be."""


class UnreadableError(DatasetError):
    """An archive or table that people brought can't be read to its end: damaged, or cut short."""


class SampleError(PipelineError):
    """One sample can't be used; `reason` is a short stable word for counters."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["SampleError"], tuple[str, str]]:
        # An exception is otherwise sent between processes by its message alone.
        return SampleError, (self.reason, str(self))


class ShortageError(PipelineError):
    """Memory or disk did not suffice: no verdict about what was being read."""


class StorageShortageError(StorageError, ShortageError):
    """A disk is full, or storage did not answer for long: no verdict about the object.

    `fact` is the message without its advice, which is for whoever the error ends.
    """

    def __init__(self, message: str = "", *, fact: str = "", below: Sequence[str] = ()) -> None:
        super().__init__(message, below=below)
        self.fact = fact


def without_advice(error: StorageError) -> str:
    """What is told of an error that ends nothing: not to run the same command again."""
    return safe_line(getattr(error, "fact", "")) or str(error)


_SHORT = frozenset(
    getattr(errno, name)
    for name in (
        "ENOSPC", "EDQUOT", "ENOMEM", "EMFILE", "ENFILE", "ENOBUFS", "ESTALE", "ENOTCONN",
        "ETIMEDOUT", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "EHOSTDOWN", "EHOSTUNREACH",
        "ENETDOWN", "ENETUNREACH",
    )
)  # fmt: skip
_SHORT_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "out of host memory")


def is_shortage(error: BaseException) -> bool:
    """Whether an error tells of what this machine lacks now, and nothing of what was being read.

    Memory, disk, handles, a connection. torch says it by a `RuntimeError`, libwebp by its text.
    """
    if isinstance(error, ShortageError | MemoryError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _SHORT
    said = str(error).lower() if isinstance(error, RuntimeError | ValueError | OSError) else ""
    return any(words in said for words in _SHORT_WORDS)


class ModelError(PipelineError):
    """A model bundle, a registered model or a network's options are wrong."""


class RunError(PipelineError):
    """A training run can't start, continue or go on."""


class StoreError(PipelineError):
    """A latent store is not what it should be."""


class TrackingError(PipelineError):
    """MLflow can't be reached or refused a request that the user asked for."""


class UndeliveredError(TrackingError):
    """A run is trained and kept, and MLflow has not got it: to train again would not mend that."""

    may_pass: ClassVar[bool] = False


class UnreachableError(PipelineError):
    """A server that was named does not answer, or something else answers in its place."""


class NotNowError(PipelineError):
    """A server refuses for now what it would grant later: it starts, or a quota is full."""


class ClusterError(PipelineError):
    """A Ray cluster or Kubernetes refused what was asked."""


def first_refusal(error: Exception) -> str:
    """What pydantic refuses first, and why, on one line; of any other error its message."""
    refused = getattr(error, "errors", None)
    if not callable(refused):
        return " ".join(str(error).split())
    first = refused(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else str(first["msg"])


def first_line(error: BaseException) -> str:
    """What an error of others says first, or its kind where it says nothing."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__
