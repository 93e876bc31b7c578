"""S3 through s3fs's client: each request is ours to retry, and a read resumes at its byte.

s3fs's own `cat_file` reads bodies above 50 MiB outside its retry, and its five tries times
botocore's five wait without jitter (measured: 25 requests in 42 s); so both are set to one try, and
bodies are streamed here. The client is made lazily in each process: s3fs does not survive a fork.
"""

import asyncio
import os
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import StorageError
from pipeline.storage.retry import Attempts, Verdict, give_up, retrying
from pipeline.storage.urls import bucket_and_key, shown

PART_BYTES = 48 * 2**20
_UPLOAD_BYTES = 16 * 2**20
_READ_SECONDS = 20.0
_RENEW = frozenset({"ExpiredToken", "ExpiredTokenException", "InvalidToken", "RequestExpired"})
_SIGNATURE = frozenset({"SignatureDoesNotMatch", "InvalidAccessKeyId"})
_THROTTLED = frozenset({"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests"})


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

            _Client.filesystem = s3fs.S3FileSystem(
                skip_instance_cache=True,
                config_kwargs={
                    "retries": {"total_max_attempts": 1, "mode": "standard"},
                    "connect_timeout": 5,
                    "read_timeout": _READ_SECONDS,
                    "max_pool_connections": 64,
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


def classify(error: BaseException) -> Verdict | None:
    """What an error of s3fs, aiobotocore or aiohttp means; None: it is not theirs."""
    verdict = _verdict(error)
    if verdict == "credentials":
        _renew()
    if verdict == "signature" and _Client.worked:
        # It has been let in before, so the secret was rotated: the new one may be a moment away.
        _renew()
        return "credentials"
    return verdict


def _verdict(error: BaseException) -> Verdict | None:
    from aiohttp import ClientError as HttpError
    from aiohttp import ClientPayloadError
    from botocore.exceptions import (
        BotoCoreError,
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
    if isinstance(error, ClientPayloadError | ResponseStreamingError | _ShortBodyError):
        return "short_body"
    if isinstance(error, HTTPClientError | EndpointConnectionError | HttpError | ConnectionError):
        return "connection"
    if isinstance(error, asyncio.IncompleteReadError):
        return "connection"
    return "fatal" if isinstance(error, BotoCoreError | OSError) else None


def _verdict_of_response(response: dict[str, Any]) -> Verdict:
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in _RENEW:
        return "credentials"
    if code in _SIGNATURE:
        return "signature"
    if code in _THROTTLED or status in (429, 503):
        return "throttled"
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
        416: "fatal",
    }  # fmt: skip
    return by_status.get(status, "server" if status >= 500 else "fatal")


class _ShortBodyError(Exception):
    """A body ended before the length that its headers promised."""


def _run(coroutine: Callable[[Any], Any]) -> Any:
    """Runs `coroutine(filesystem)` on s3fs's loop; the original boto error stays visible."""
    from fsspec.asyn import sync

    client = _client()
    result = sync(client.loop, coroutine, client)
    _Client.worked = True
    return result


def call(url: str, doing: str, method: str, **arguments: Any) -> dict[str, Any]:
    """One S3 request with retries; its response, whose body must not be needed."""
    for attempt in retrying(url, doing, classify):
        with attempt:
            return _request(method, **arguments)
    raise AssertionError("retrying() ends only by success or an error")


def _request(method: str, **arguments: Any) -> dict[str, Any]:
    async def request(client: Any) -> dict[str, Any]:
        s3 = await client.set_session()
        response: dict[str, Any] = await getattr(s3, method)(**arguments)
        return response

    result: dict[str, Any] = _run(request)
    return result


def read(url: str, start: int, end: int | None) -> bytes:
    """Bytes [start, end) in requests of at most 48 MiB; fewer where the object ends before."""
    received = _Received()
    etag: str | None = None
    attempts = Attempts(url, "reading")
    while end is None or start + received.size < end:
        position = start + received.size
        stop = position + PART_BYTES if end is None else min(end, position + PART_BYTES)
        try:
            etag, total = _get_into(url, position, stop, etag, received)
        except Exception as error:
            verdict = classify(error)
            if verdict is None:
                raise
            if _is_past_the_end(error):
                break
            if verdict == "precondition":
                raise StorageError(
                    f"{shown(url)}: was replaced while it was read. Run the same command again."
                ) from None
            if start + received.size > position:
                attempts.progressed()
            attempts.failed(verdict, error)
            continue
        if start + received.size >= total:
            break
        attempts.progressed()
    return b"".join(received.pieces)


@dataclass
class _Received:
    """What has come so far, joined once at the end: each copy keeps Python's lock from decoders."""

    pieces: list[bytes] = field(default_factory=list)
    size: int = 0


def _is_past_the_end(error: BaseException) -> bool:
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return (
        isinstance(response, dict)
        and response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 416
    )


def _get_into(
    url: str, start: int, stop: int, etag: str | None, received: _Received
) -> tuple[str, int]:
    """Appends bytes [start, stop) to `received` as they come; the ETag and the object's size."""
    bucket, key = bucket_and_key(url)

    async def get(client: Any) -> tuple[str, int]:
        s3 = await client.set_session()
        condition = {} if etag is None else {"IfMatch": etag}
        response = await s3.get_object(
            Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}", **condition
        )
        before = received.size
        async for chunk in _chunks(response["Body"]):
            received.pieces.append(chunk)
            received.size += len(chunk)
        came = received.size - before
        if came != response["ContentLength"]:
            raise _ShortBodyError(f"{came} of {response['ContentLength']} bytes")
        return str(response["ETag"]), int(response["ContentRange"].rpartition("/")[2])

    result: tuple[str, int] = _run(get)
    return result


async def _chunks(body: Any) -> AsyncIterator[bytes]:
    async with body as stream:
        while chunk := await stream.read(2**20):
            yield chunk


def publish(url: str, data: bytes | Path) -> None:
    """Puts an object; above 16 MiB in parts, each retried, visible only when complete."""
    bucket, key = bucket_and_key(url)
    size = data.stat().st_size if isinstance(data, Path) else len(data)
    if size <= _UPLOAD_BYTES:
        body = data.read_bytes() if isinstance(data, Path) else data
        call(url, "writing", "put_object", Bucket=bucket, Key=key, Body=body)
        return
    # S3 takes at most 10,000 parts.
    part_bytes = max(_UPLOAD_BYTES, -(-size // 10_000))
    upload = call(url, "writing", "create_multipart_upload", Bucket=bucket, Key=key)["UploadId"]
    try:
        parts = []
        for number, body in enumerate(_pieces(data, part_bytes), start=1):
            part = call(
                url, "writing", "upload_part",
                Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=body,
            )  # fmt: skip
            parts.append({"PartNumber": number, "ETag": part["ETag"]})
        _complete(url, upload, parts, size)
    except BaseException:
        _abort(bucket, key, upload)
        raise


def _abort(bucket: str, key: str, upload: str) -> None:
    """Frees the parts, in one try: it must not hide why the upload failed, nor wait for long.

    What it can't free stays until the bucket's own rule for unfinished uploads removes it.
    """
    try:
        _request("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload)
    except Exception as error:
        if classify(error) is None:
            raise


def _complete(url: str, upload: str, parts: list[dict[str, Any]], size: int) -> None:
    bucket, key = bucket_and_key(url)
    for attempt in retrying(url, "writing", classify):
        with attempt:
            try:
                _request(
                    "complete_multipart_upload",
                    Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts},
                )  # fmt: skip
            except Exception as error:
                # The answer to an earlier try was lost, and the upload is complete.
                done = attempt.ambiguous and classify(error) == "missing"
                if not (done and stat(url)[0] == size):
                    raise


def _pieces(data: bytes | Path, size: int) -> Iterator[bytes]:
    if isinstance(data, bytes):
        for start in range(0, len(data), size):
            yield data[start : start + size]
        return
    with data.open("rb") as file:
        while piece := file.read(size):
            yield piece


def create_if_absent(url: str, data: bytes) -> bool:
    """PUT with If-None-Match: True for exactly one caller, also when an answer was lost."""
    bucket, key = bucket_and_key(url)
    writer = secrets.token_hex(16)
    for attempt in retrying(url, "creating", classify):
        with attempt:
            try:
                _request(
                    "put_object",
                    Bucket=bucket, Key=key, Body=data, IfNoneMatch="*", Metadata={"writer": writer},
                )  # fmt: skip
            except Exception as error:
                if classify(error) != "precondition":
                    raise
                # An earlier try may have made it, ours or aiohttp's own, which sends a PUT again
                # when a kept connection breaks: the object's mark tells.
                head = call(url, "creating", "head_object", Bucket=bucket, Key=key)
                return bool(head.get("Metadata", {}).get("writer") == writer)
            return True
    raise AssertionError("retrying() ends only by success or an error")


def stat(url: str) -> tuple[int, str]:
    """Size in bytes and ETag of one object."""
    bucket, key = bucket_and_key(url)
    if not key:
        raise StorageError(f"{shown(url)}: names a bucket, not an object.")
    for attempt in retrying(url, "looking it up", classify):
        with attempt:
            try:
                head = _request("head_object", Bucket=bucket, Key=key)
            except Exception as error:
                # HEAD has no body, so S3 cannot say which of bucket and object is missing.
                if classify(error) == "missing":
                    _explain_missing(url, error)
                raise
            return int(head["ContentLength"]), str(head["ETag"]).strip('"')
    raise AssertionError("retrying() ends only by success or an error")


def _explain_missing(url: str, error: BaseException) -> None:
    bucket, _ = bucket_and_key(url)
    try:
        _request("head_bucket", Bucket=bucket)
    except Exception as other:
        if classify(other) == "missing":
            give_up(url, "looking it up", "no_bucket", error)
        if classify(other) is None:
            raise


def delete(url: str) -> None:
    """Removes an object; absent is fine."""
    bucket, key = bucket_and_key(url)
    call(url, "deleting", "delete_object", Bucket=bucket, Key=key)


def list_keys(url: str) -> Iterator[tuple[str, int, str, str]]:
    """Below a prefix, in key order: URL, size in bytes, ETag, and the time of the last change."""
    bucket, prefix = bucket_and_key(url)
    prefix = f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""
    token: dict[str, str] = {}
    while True:
        page = call(url, "listing", "list_objects_v2", Bucket=bucket, Prefix=prefix, **token)
        for item in page.get("Contents", ()):
            if not item["Key"].endswith("/"):  # a marker that stands for an empty folder
                yield (
                    f"s3://{bucket}/{item['Key']}",
                    int(item["Size"]),
                    str(item["ETag"]).strip('"'),
                    str(item["LastModified"]),
                )
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}
