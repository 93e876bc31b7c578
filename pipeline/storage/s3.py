"""S3 objects: each request is ours to retry, and a read resumes at its byte."""

import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from pipeline.errors import ObjectChangedError, StorageError
from pipeline.storage.retry import Attempts, RequestFailedError, retrying
from pipeline.storage.s3_client import Answer, ShortBodyError, request, run
from pipeline.storage.urls import bucket_and_key, shown

PART_BYTES = 48 * 2**20
"""Of one request at most. What has come of it is kept when it breaks, so it may be large."""
_UPLOAD_BYTES = 16 * 2**20
"""From here on in parts, one of which is sent again when it breaks; S3 takes none below 5 MiB."""


def call(url: str, doing: str, method: str, **arguments: Any) -> Answer:
    """One S3 request with retries; its response, whose body must not be needed."""
    for attempt in retrying(url, doing):
        with attempt:
            return request(method, **arguments)
    raise AssertionError("retrying() ends only by success or an error")


def read(url: str, start: int, end: int | None, tag: str | None = None) -> bytes:
    """Bytes [start, end) in requests of at most 48 MiB; fewer where the object ends before."""
    received = _Received()
    etag = f'"{tag}"' if tag else None
    attempts = Attempts(url, "reading")
    while end is None or start + received.size < end:
        position = start + received.size
        stop = position + PART_BYTES if end is None else min(end, position + PART_BYTES)
        try:
            etag, total = _get_into(url, position, stop, etag, received)
        except RequestFailedError as error:
            if error.verdict == "past_the_end":
                break
            if error.verdict == "precondition":
                raise ObjectChangedError(
                    f"{shown(url)}: was replaced while it was read. Run the same command again."
                ) from None
            if start + received.size > position:
                attempts.progressed()
            attempts.failed(error)
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
            raise ShortBodyError(f"{came} of {response['ContentLength']} bytes")
        return str(response["ETag"]), int(response["ContentRange"].rpartition("/")[2])

    result: tuple[str, int] = run(get)
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
        parts: list[_Part] = []
        for number, body in enumerate(_pieces(data, part_bytes), start=1):
            part = call(
                url, "writing", "upload_part",
                Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=body,
            )  # fmt: skip
            parts.append({"PartNumber": number, "ETag": part["ETag"]})
        _complete(url, upload, parts, size)
    except BaseException:  # Ctrl-C too leaves no parts that are paid for.
        _abort(bucket, key, upload)
        raise


def _abort(bucket: str, key: str, upload: str) -> None:
    """Frees the parts, in one try: it must not hide why the upload failed, nor wait for long.

    What it can't free stays until the bucket's own rule for unfinished uploads removes it.
    """
    with suppress(RequestFailedError):
        request("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload)


class _Part(TypedDict):
    """A part of an upload, as S3 wants it named."""

    PartNumber: int
    ETag: str


def _complete(url: str, upload: str, parts: list[_Part], size: int) -> None:
    bucket, key = bucket_and_key(url)
    for attempt in retrying(url, "writing"):
        with attempt:
            try:
                request(
                    "complete_multipart_upload",
                    Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts},
                )  # fmt: skip
            except RequestFailedError as error:
                # The answer to an earlier try was lost, and the upload is complete.
                done = attempt.ambiguous and error.verdict == "missing"
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
    for attempt in retrying(url, "creating"):
        with attempt:
            try:
                request(
                    "put_object",
                    Bucket=bucket, Key=key, Body=data, IfNoneMatch="*", Metadata={"writer": writer},
                )  # fmt: skip
            except RequestFailedError as error:
                if error.verdict != "precondition":
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
    for attempt in retrying(url, "looking it up"):
        with attempt:
            try:
                head = request("head_object", Bucket=bucket, Key=key)
            except RequestFailedError as error:
                # HEAD has no body, so S3 cannot say which of bucket and object is missing.
                if error.verdict == "missing" and _bucket_is_missing(bucket):
                    raise RequestFailedError("no_bucket", error) from error
                raise
            return int(head["ContentLength"]), str(head["ETag"]).strip('"')
    raise AssertionError("retrying() ends only by success or an error")


def _bucket_is_missing(bucket: str) -> bool:
    try:
        request("head_bucket", Bucket=bucket)
    except RequestFailedError as error:
        return error.verdict == "missing"
    return False


def delete(url: str) -> None:
    """Removes an object; absent is fine."""
    bucket, key = bucket_and_key(url)
    call(url, "deleting", "delete_object", Bucket=bucket, Key=key)


def list_keys(url: str) -> Iterator[tuple[str, int, str, float]]:
    """Below a prefix, in key order: URL, bytes, ETag, and the last change in seconds since 1970."""
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
                    float(item["LastModified"].timestamp()),
                )
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}
