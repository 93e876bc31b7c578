import logging
import math
from dataclasses import replace

import pytest

from pipeline import storage
from pipeline.config import (
    ExplainConfig,
    ReportConfig,
    RunsConfig,
    StoresConfig,
    SubmitConfig,
    TrainConfig,
    VerifyConfig,
    WatchConfig,
)
from pipeline.errors import AccessDeniedError, StorageError, without_advice
from pipeline.storage import retry
from pipeline.storage.retry import (
    RequestFailedError,
    RetryPolicy,
    retry_counts,
    retry_policy,
    retrying,
)


def _fail(error: Exception, tries: list[int]) -> None:
    for attempt in retrying("s3://b/k", "reading"):
        with attempt:
            tries.append(1)
            raise error


def test_passing_errors_are_tried_again_and_counted_by_class() -> None:
    before = retry_counts()["timeout"]
    tries = 0
    with retry_policy(RetryPolicy(base_seconds=0.001)):
        for attempt in retrying("s3://b/k", "reading"):
            with attempt:
                tries += 1
                if tries < 4:
                    raise RequestFailedError("timeout", TimeoutError())
    assert tries == 4
    assert retry_counts()["timeout"] - before == 3


def test_a_refusal_is_not_tried_again() -> None:
    tries: list[int] = []
    with pytest.raises(AccessDeniedError, match="s3://b/k"):
        _fail(RequestFailedError("denied", PermissionError("no")), tries)
    assert len(tries) == 1


def test_the_deadline_ends_the_tries() -> None:
    policy = RetryPolicy(deadline_seconds=0.05, base_seconds=0.01)
    with retry_policy(policy), pytest.raises(StorageError, match="tries"):
        _fail(RequestFailedError("timeout", TimeoutError()), [])


def test_an_error_that_is_not_storage_is_raised_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        _fail(ZeroDivisionError(), [])


def test_waits_may_double_from_try_to_try_up_to_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: list[float] = []

    def longest(low: float, high: float) -> float:
        assert low == 0
        bounds.append(high)
        return 0.0

    monkeypatch.setattr("pipeline.storage.retry.random.uniform", longest)
    tries = 0
    with retry_policy(RetryPolicy(base_seconds=0.5, cap_seconds=3.0)):
        for attempt in retrying("s3://b/k", "reading"):
            with attempt:
                tries += 1
                if tries < 6:
                    raise RequestFailedError("throttled", OSError("slow down"))
    assert bounds == [0.5, 1.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize(("silent_seconds", "tells"), [(0.0, True), (1e9, False)])
def test_what_fails_for_longer_than_a_while_is_told_with_its_cause_and_its_end(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    silent_seconds: float,
    tells: bool,
) -> None:
    """A worker that tries on for minutes said nothing, and looked as one that works."""
    monkeypatch.setattr(retry, "_TOLD_SECONDS", silent_seconds)
    policy = RetryPolicy(deadline_seconds=0.05, base_seconds=0.01)
    with retry_policy(policy), caplog.at_level(logging.WARNING), pytest.raises(StorageError):
        _fail(RequestFailedError("throttled", OSError("SlowDown")), [])
    said = [record.getMessage() for record in caplog.records]
    assert bool(said) == tells
    for line in said:
        assert line.startswith("s3://b/k: reading has failed for 0 s")
        assert line.endswith("tried on until 0 s are over; the last: OSError: SlowDown")


def test_who_looks_is_told_sooner_than_the_log_of_a_job_that_goes_on_for_hours(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retry._State, "told", -math.inf)
    hasty = RetryPolicy(deadline_seconds=0.05, base_seconds=0.01, silent_seconds=0.0)
    for policy, words in ((replace(hasty, silent_seconds=None), 0), (hasty, 1)):
        with retry_policy(policy), pytest.raises(StorageError):
            _fail(RequestFailedError("throttled", OSError("SlowDown")), [])
        assert len(caplog.records) == words
    looks = (
        RunsConfig, WatchConfig, SubmitConfig, StoresConfig, ReportConfig, ExplainConfig,
        VerifyConfig,
    )  # fmt: skip
    assert all(each.is_look for each in looks)
    assert not TrainConfig.is_look
    assert storage.LOOK.silent_seconds == 5


def test_a_shortage_that_ends_nothing_does_not_advise_to_start_again() -> None:
    with retry_policy(RetryPolicy(deadline_seconds=0)), pytest.raises(StorageError) as found:
        _fail(RequestFailedError("throttled", OSError("SlowDown")), [])
    assert "run the same command again" in str(found.value)
    assert without_advice(found.value).endswith("the last: OSError: SlowDown")
