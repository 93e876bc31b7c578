"""What storage does when the real S3 server, or the way to it, fails."""

import os
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from pipeline import storage
from pipeline.errors import (
    AccessDeniedError,
    ObjectNotFoundError,
    StorageError,
    StorageShortageError,
)
from pipeline.storage import RetryPolicy, retry_counts, retry_policy, s3_client
from tests.servers import rgw
from tests.servers.fault_proxy import FaultProxy, Rule
from tests.servers.rgw import SECRET_KEY

DATA = os.urandom(3_000_000)
QUICK = RetryPolicy(deadline_seconds=60, base_seconds=0.01, cap_seconds=0.1)
GET = "^GET .*/object"


@pytest.fixture
def url(fault_proxy: FaultProxy, s3_server: rgw.S3Server) -> Iterator[str]:
    """An object of 3 MB, read through the proxy with short waits between tries."""
    name = f"{s3_server.bucket()}/object"
    storage.publish(name, DATA)
    with retry_policy(QUICK):
        yield name


def retried(kind: str, before: Any) -> int:
    return retry_counts()[kind] - before[kind]


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [(503, "SlowDown", "throttled"), (500, "InternalError", "server"), (502, "", "server")],
)
def test_an_answer_of_5xx_is_asked_again_until_it_comes(
    url: str, fault_proxy: FaultProxy, status: int, code: str, kind: str
) -> None:
    before = retry_counts()
    fault_proxy.rules = [Rule(GET, "status", count=3, status=status, code=code)]
    assert storage.read(url) == DATA
    assert retried(kind, before) == 3
    assert len(fault_proxy.matching(GET)) == 4, "nobody below asks again on their own"


def test_a_storage_that_is_full_is_waited_for_and_is_no_missing_right(
    url: str, s3_server: rgw.S3Server
) -> None:
    """By the real server's quota, which it tells by a 403 as well."""
    before = retry_counts()
    s3_server.fill_up()
    try:
        with (
            retry_policy(RetryPolicy(deadline_seconds=1, base_seconds=0.05)),
            pytest.raises(StorageShortageError, match=r"QuotaExceeded 403\. The storage is full"),
        ):
            storage.publish(f"{url}-more", b"more")
        assert retried("full", before) >= 1
        assert storage.read(url) == DATA
        later = threading.Timer(0.5, s3_server.make_room)
        later.start()
        storage.publish(f"{url}-more", b"more")
        later.join()
    finally:
        s3_server.make_room()
    assert storage.read(f"{url}-more") == b"more"


def test_a_server_that_always_answers_503_is_given_up_at_the_deadline(
    url: str, fault_proxy: FaultProxy
) -> None:
    fault_proxy.rules = [Rule(GET, "status")]
    start = time.monotonic()
    with (
        retry_policy(RetryPolicy(deadline_seconds=1, base_seconds=0.05)),
        pytest.raises(StorageError, match=r"object: reading failed for .* tries.*SlowDown 503"),
    ):
        storage.read(url)
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("fault", ["reset", "truncate"])
def test_a_body_that_breaks_off_is_continued_at_its_byte(
    url: str, fault_proxy: FaultProxy, fault: Literal["reset", "truncate"]
) -> None:
    fault_proxy.rules = [
        Rule(GET, fault, count=1, after_bytes=1_000_000),
        Rule(GET, fault, count=1, after_bytes=500_000),
    ]
    assert storage.read(url, 100_000, 2_900_000) == DATA[100_000:2_900_000]
    gets = fault_proxy.matching(GET)
    ranges = [get.range for get in gets if get.range]
    assert [end for _, end in ranges] == [2_900_000] * 3
    starts = [start for start, _ in ranges]
    assert starts[0] == 100_000
    # A reset may destroy what lies unread in the client's buffers, never what it has read.
    assert 100_000 < starts[1] <= 1_100_000
    assert starts[1] < starts[2] <= starts[1] + 500_000
    if fault == "truncate":
        assert starts == [100_000, 1_100_000, 1_600_000]
        assert sum(get.sent for get in gets) == 2_800_000, "no byte is asked for twice"


def test_a_body_that_stands_still_times_out_and_is_continued(
    url: str, fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.s3_client._READ_SECONDS", 1.0)
    monkeypatch.setattr("pipeline.storage.s3_client._Client.filesystem", None)
    before = retry_counts()
    fault_proxy.rules = [
        Rule(GET, "stall", count=1, after_bytes=700_000),
        Rule(GET, "black_hole", count=1),
    ]
    assert storage.read(url) == DATA
    assert retried("timeout", before) == 2
    assert [get.range and get.range[0] for get in fault_proxy.matching(GET)] == [
        0,
        700_000,
        700_000,
    ]


def test_a_slow_body_is_waited_for(url: str, fault_proxy: FaultProxy) -> None:
    fault_proxy.rules = [Rule(GET, "slow", bytes_per_second=3e6)]
    assert storage.read(url) == DATA
    assert len(fault_proxy.matching(GET)) == 1


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidToken", "RequestExpired"])
def test_expired_credentials_are_renewed_and_the_read_goes_on(
    url: str, fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    before, session = retry_counts(), s3_client._Client.filesystem
    # A session that is younger than a second is not made anew.
    monkeypatch.setattr(s3_client._Client, "made_at", float("-inf"))
    fault_proxy.rules = [
        Rule(GET, "truncate", count=1, after_bytes=1_000_000),
        Rule(GET, "status", count=2, status=400 if code == "ExpiredToken" else 403, code=code),
    ]
    assert storage.read(url) == DATA
    assert retried("credentials", before) == 2
    asked = fault_proxy.matching(GET)[-1].range
    assert asked is not None
    assert asked[0] == 1_000_000
    assert s3_client._Client.filesystem is not session


def test_a_secret_rotated_midway_in_a_read_is_taken_up(
    url: str, fault_proxy: FaultProxy, s3_server: rgw.S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old secret is refused by the real server; the new one comes half a second later."""
    before = retry_counts()
    assert storage.read(url, 0, 10) == DATA[:10]
    fault_proxy.rules = [Rule(GET, "truncate", count=1, after_bytes=1_000_000)]
    s3_server.rotate_secret("another-secret")
    late = threading.Timer(0.5, os.environ.__setitem__, ("AWS_SECRET_ACCESS_KEY", s3_server.secret))
    try:
        late.start()
        assert storage.read(url) == DATA
        assert retried("credentials", before) >= 1
    finally:
        late.join()
        s3_server.rotate_secret(SECRET_KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        s3_client._Client.filesystem = None


def test_what_is_denied_or_missing_is_told_at_once(
    url: str, fault_proxy: FaultProxy, s3_server: rgw.S3Server
) -> None:
    """A suspended user is the real server's own 403; each is one request, without a retry."""
    before = retry_counts()
    s3_server.suspend_user()
    try:
        with pytest.raises(AccessDeniedError, match=r"object: reading was refused \(UserSuspended"):
            storage.read(url)
    finally:
        s3_server.enable_user()
    with pytest.raises(ObjectNotFoundError, match="bucket does not exist"):
        storage.read("s3://never-made/object")
    assert retry_counts() == before
    assert len(fault_proxy.matching(GET)) == 2


@pytest.mark.parametrize("behind", ["a proxy that closes", "a port that refuses"])
def test_a_server_that_is_down_is_one_clear_error_within_the_deadline(
    url: str, s3_server: rgw.S3Server, monkeypatch: pytest.MonkeyPatch, behind: str
) -> None:
    if behind == "a port that refuses":
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    s3_server.kill_gateway()
    try:
        with (
            retry_policy(RetryPolicy(deadline_seconds=1, base_seconds=0.05)),
            pytest.raises(StorageError, match=r"export AWS_ENDPOINT_URL") as raised,
        ):
            storage.read(url)
        assert raised.value.__context__ is None or raised.value.__suppress_context__
    finally:
        s3_server.start_gateway()


def test_a_read_waits_for_a_server_that_is_restarted(
    url: str, s3_server: rgw.S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    assert storage.read(url, 0, 1) == DATA[:1]
    s3_server.kill_gateway()
    back = threading.Timer(1.0, s3_server.start_gateway)
    back.start()
    try:
        assert storage.read(url) == DATA
    finally:
        back.join()


def test_a_creator_whose_answer_was_lost_still_knows_that_it_won(
    url: str, fault_proxy: FaultProxy
) -> None:
    fault_proxy.rules = [Rule("^PUT .*/claim", "lose_answer", count=1)]
    claim = url.replace("/object", "/claim")
    assert storage.create_if_absent(claim, b"mine")
    assert not storage.create_if_absent(claim, b"theirs")
    assert storage.read(claim) == b"mine"


def test_an_upload_in_parts_survives_failing_requests(url: str, fault_proxy: FaultProxy) -> None:
    data = os.urandom(40 * 2**20)
    big = url.replace("/object", "/big")
    fault_proxy.rules = [
        Rule("^PUT .*/big.*partNumber=2", "status", count=1),
        Rule("^PUT .*/big.*partNumber=3", "lose_answer", count=1),
        Rule("^POST .*/big.*uploadId", "lose_answer", count=1),
    ]
    storage.publish(big, data)
    assert storage.read(big) == data


def test_one_flipped_byte_reaches_the_caller_whose_checksum_must_find_it(
    url: str, fault_proxy: FaultProxy
) -> None:
    """Why every sample has a crc: neither TCP's checksum nor S3's answer covers the whole way."""
    fault_proxy.rules = [Rule(GET, "flip", count=1, after_bytes=1234)]
    found = storage.read(url)
    assert [at for at in range(len(DATA)) if found[at] != DATA[at]] == [1234]
