"""The client of S3: one s3fs session of each process, and what its errors mean.

s3fs's own `cat_file` reads bodies above 50 MiB outside its retry, and its five tries times
botocore's five wait without jitter (measured: 25 requests in 42 s); so both are set to one try. The
client is made lazily in each process: s3fs does not survive a fork.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypedDict

from pipeline.storage.retry import RequestFailedError, Verdict

_READ_SECONDS = 20.0
"""Between two pieces of an answer: one that throttles says so within seconds."""
_RENEW = frozenset({"ExpiredToken", "ExpiredTokenException", "InvalidToken", "RequestExpired"})
_SIGNATURE = frozenset({"SignatureDoesNotMatch", "InvalidAccessKeyId"})
_THROTTLED = frozenset({"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests"})
# Ceph's quota of a user or bucket, MinIO's disks and quota: room that others' deletions make.
_FULL = frozenset({"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"})


class Fault(TypedDict, total=False):
    """What S3 says of a refusal."""

    Code: str


class Meta(TypedDict, total=False):
    """What botocore says of an answer."""

    HTTPStatusCode: int


class Item(TypedDict):
    """An object in a listing."""

    Key: str
    Size: int
    ETag: str
    LastModified: datetime


class Prefix(TypedDict):
    """A folder, as it were, in a listing."""

    Prefix: str


class Answer(TypedDict, total=False):
    """S3's answer to any request, as far as it is read here; each has some of these."""

    Error: Fault
    ResponseMetadata: Meta
    UploadId: str
    ETag: str
    ContentLength: int
    Metadata: dict[str, str]
    Contents: list[Item]
    CommonPrefixes: list[Prefix]
    IsTruncated: bool
    NextContinuationToken: str


class ShortBodyError(Exception):
    """A body ended before the length that its headers promised."""


class _Client:
    """This process's s3fs instance, and whether it has ever been let in."""

    lock = threading.Lock()
    process = 0
    endpoint: str | None = None
    filesystem: Any = None
    made_at = 0.0
    worked = False


def _client() -> Any:
    with _Client.lock:
        here = os.getpid(), os.environ.get("AWS_ENDPOINT_URL")
        if _Client.filesystem is None or (_Client.process, _Client.endpoint) != here:
            import s3fs

            # Where credentials and endpoint were found is nothing to act on.
            for name in ("botocore", "aiobotocore"):
                logging.getLogger(name).setLevel(logging.WARNING)
            _Client.filesystem = s3fs.S3FileSystem(
                skip_instance_cache=True,
                config_kwargs={
                    "retries": {"total_max_attempts": 1, "mode": "standard"},
                    "connect_timeout": 5,  # A server that is there takes a connection at once.
                    "read_timeout": _READ_SECONDS,
                    "max_pool_connections": 64,  # As many as any job has threads that read.
                },
            )
            _Client.filesystem.retries = 1
            if here[1] != _Client.endpoint:
                _Client.worked = False
            (_Client.process, _Client.endpoint), _Client.made_at = here, time.monotonic()
        return _Client.filesystem


def _renew() -> None:
    """Forgets the client, so that the next request takes its credentials from the environment."""
    with _Client.lock:
        # Many threads see the same expiry at once: one new session a second is enough.
        if time.monotonic() - _Client.made_at > 1.0:
            _Client.filesystem = None


def run(coroutine: Callable[[Any], Any]) -> Any:
    """Runs `coroutine(filesystem)` on s3fs's loop; raises a `RequestFailedError` of its errors."""
    from aiohttp import ClientError as HttpError
    from botocore.exceptions import BotoCoreError, ClientError
    from fsspec.asyn import sync

    client = _client()
    try:
        result = sync(client.loop, coroutine, client)
    except (ClientError, BotoCoreError, HttpError, ShortBodyError, OSError, EOFError) as error:
        verdict = _verdict(error)
        if verdict == "signature" and _Client.worked:
            # It has been let in before, so the secret was rotated: the new one may be a moment
            # away.
            verdict = "credentials"
        if verdict == "credentials":
            _renew()
        raise RequestFailedError(verdict, error) from error
    _Client.worked = True
    return result


def request(method: str, **arguments: Any) -> Answer:
    """The response to one S3 request, tried once; its body must not be needed."""

    async def ask(client: Any) -> Any:
        s3 = await client.set_session()
        return await getattr(s3, method)(**arguments)

    answer: Answer = run(ask)
    return answer


def _verdict(error: BaseException) -> Verdict:
    from aiohttp import ClientError as HttpError
    from aiohttp import ClientPayloadError
    from botocore.exceptions import (
        ClientError,
        ConnectTimeoutError,
        EndpointConnectionError,
        HTTPClientError,
        NoCredentialsError,
        PartialCredentialsError,
        ReadTimeoutError,
        ResponseStreamingError,
    )

    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, ClientError):
        seen = seen.__cause__
    if isinstance(seen, ClientError):
        return _verdict_of_response(seen.response)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return "denied"
    if isinstance(error, ReadTimeoutError | ConnectTimeoutError | TimeoutError):
        return "timeout"
    if isinstance(error, ClientPayloadError | ResponseStreamingError | ShortBodyError):
        return "short_body"
    if isinstance(error, HTTPClientError | EndpointConnectionError | HttpError | ConnectionError):
        return "connection"
    return "connection" if isinstance(error, EOFError) else "fatal"


def _verdict_of_response(response: Answer) -> Verdict:
    code = str(response.get("Error", Fault()).get("Code", ""))
    status = int(response.get("ResponseMetadata", Meta()).get("HTTPStatusCode", 0))
    if code in _RENEW:
        return "credentials"
    if code in _SIGNATURE:
        return "signature"
    if code in _THROTTLED or status in (429, 503):
        return "throttled"
    if code in _FULL or status == 507:
        return "full"
    if code in ("RequestTimeout", "RequestTimeTooSkewed") or status == 408:
        return "timeout"
    named: dict[str, Verdict] = {
        "NoSuchBucket": "no_bucket",
        "ConditionalRequestConflict": "conflict",
    }
    if code in named:
        return named[code]
    by_status: dict[int, Verdict] = {
        401: "denied", 403: "denied", 404: "missing", 409: "conflict", 412: "precondition",
        416: "past_the_end",
    }  # fmt: skip
    return by_status.get(status, "server" if status >= 500 else "fatal")
