"""What S3's refusals mean, by the codes and statuses of its own documentation."""

import pytest
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
)

from pipeline.storage.s3_client import ShortBodyError, _verdict


def refusal(code: str, status: int) -> ClientError:
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "GetObject")


@pytest.mark.parametrize(
    ("code", "status", "verdict"),
    [
        ("NoSuchKey", 404, "missing"),
        ("NoSuchBucket", 404, "no_bucket"),
        ("AccessDenied", 403, "denied"),
        ("ExpiredToken", 400, "credentials"),
        ("SignatureDoesNotMatch", 403, "signature"),
        ("SlowDown", 503, "throttled"),
        ("", 429, "throttled"),
        ("RequestTimeout", 400, "timeout"),
        ("PreconditionFailed", 412, "precondition"),
        ("ConditionalRequestConflict", 409, "conflict"),
        ("InvalidRange", 416, "past_the_end"),
        ("InternalError", 500, "server"),
        ("QuotaExceeded", 403, "full"),
        ("XMinioAdminBucketQuotaExceeded", 400, "full"),
        ("XMinioStorageFull", 507, "full"),
        ("InvalidArgument", 400, "fatal"),
    ],
)
def test_a_refusal_is_told_by_its_code_and_then_by_its_status(
    code: str, status: int, verdict: str
) -> None:
    assert _verdict(refusal(code, status)) == verdict


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (NoCredentialsError(), "denied"),
        (ReadTimeoutError(endpoint_url="x"), "timeout"),
        (EndpointConnectionError(endpoint_url="x"), "connection"),
        (ConnectionResetError(), "connection"),
        (ShortBodyError(), "short_body"),
        (ValueError(), "fatal"),
    ],
)
def test_no_answer_at_all_is_told_by_what_broke(error: Exception, verdict: str) -> None:
    assert _verdict(error) == verdict


def test_what_s3fs_has_made_of_a_refusal_is_judged_by_the_refusal_behind_it() -> None:
    translated = PermissionError("Forbidden")
    translated.__cause__ = refusal("SlowDown", 503)
    assert _verdict(translated) == "throttled"
