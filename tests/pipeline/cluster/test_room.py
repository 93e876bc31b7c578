"""What a start waits for is said in numbers, each minute, and no longer once workers work."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.cluster import room
from pipeline.cluster.room import Wait
from pipeline.runs.run import Run, Start


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, bool]:
    """A cluster of 4 cores, 3 of them free; whether a reservation is pending there."""
    state = {"pending": True}
    monkeypatch.setattr(room, "_resources", lambda: ({"CPU": 4.0}, {"CPU": 3.0}))
    monkeypatch.setattr(room, "_reservation_is_pending", lambda: state["pending"])
    monkeypatch.setattr(room, "_LOOK_SECONDS", 0.0)
    return state


def wait(tmp_path: Path, workers: int, cores: float) -> tuple[Wait, Run, Start]:
    run = Run(str(tmp_path))
    start = run.claim()
    return Wait(run, start, workers, {"CPU": cores}), run, start


def test_what_is_asked_and_what_there_is_stand_in_one_note(
    tmp_path: Path, cluster: dict[str, bool]
) -> None:
    each, _, _ = wait(tmp_path, 3, 2)
    assert each.note() == (
        "waits for room: asked are 3 workers, each 2 CPUs; "
        "the cluster has 4 CPUs, 3 of them not taken"
    )
    cluster["pending"] = False
    assert each.note() == "3 workers start"
    alone, _, _ = wait(tmp_path, 1, 1)
    assert alone.note() == "1 worker start"


@pytest.mark.parametrize(
    ("workers", "pending", "said"),
    [
        (2, True, "the cluster has no room for the workers yet: asked are 2 workers, each 2 CPUs; "
                  "the cluster has 4 CPUs, 3 of them not taken. They start once it has."),
        (3, True, "In all it has less than that: give fewer `--workers N`, or add nodes."),
        (2, False, "no worker has begun for 0 s: asked are 2 workers, each 2 CPUs"),
    ],
)  # fmt: skip
def test_each_minute_a_log_says_it_and_whether_waiting_can_help(
    tmp_path: Path, cluster: dict[str, bool], caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch, workers: int, pending: bool, said: str,
) -> None:  # fmt: skip
    cluster["pending"] = pending
    each, _, _ = wait(tmp_path, workers, 2)
    with caplog.at_level(logging.WARNING):
        each.note()
        assert caplog.messages == []
        monkeypatch.setattr(room, "_SAY_SECONDS", 0.0)
        each.note()
    (message,) = caplog.messages
    assert said in message
    assert ("In all it has less" in message) == (workers == 3)


def test_it_ends_with_the_first_worker_and_begins_anew_when_ray_waits_for_successors(
    tmp_path: Path, cluster: dict[str, bool]
) -> None:
    each, run, start = wait(tmp_path, 1, 1)
    cluster["pending"] = False
    assert each.note() is not None
    run.claim_restart(start)
    time.sleep(0.01)
    assert each.note() is None
    cluster["pending"] = True
    assert str(each.note()).startswith("waits for room")
