"""What actors warn of reaches the driver; what a lost worker's error says in one line."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, RayTaskError

from pipeline.cluster import encoding_crew
from pipeline.cluster.encoding_crew import ActorResources, RayCrew, _one_line
from pipeline.cluster.ray_cluster import ray_cluster
from pipeline.encoding.driver import ShardDone
from pipeline.encoding.under_way import UnderWay
from tests.support.warm import ray_workers_here


class Blocked:
    """Warns once a shard, and is done with it when a file is there."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __call__(self, under_way: UnderWay) -> Callable[[int], Any]:
        def encode(shard: int) -> Any:
            under_way.count(shard, 10)
            logging.getLogger("pipeline.storage.retry").warning("shard %d: storage is full", shard)
            while not self._file.exists():
                time.sleep(0.05)
            return None

        return encode


def test_what_actors_warn_of_is_told_while_all_their_threads_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(encoding_crew, "_ASK_SECONDS", 0.2)
    file = tmp_path / "room"
    with ray_workers_here(), ray_cluster(1):
        crew = RayCrew(Blocked(file), 1, ActorResources(threads=2))
        deadline = time.monotonic() + 120
        while not crew.workers():
            assert time.monotonic() < deadline
            assert crew.wait() == []
        for shard in (3, 4):
            crew.start("actor-0", shard)
        while caplog.text.count("storage is full") < 2 or crew.under_way() < 20:
            assert time.monotonic() < deadline
            assert crew.wait() == []
        file.touch()
        done: list[Any] = []
        while len(done) < 2:
            done += crew.wait()
        assert crew.under_way() == 0
        crew.close()
    assert {event.shard for event in done if isinstance(event, ShardDone)} == {3, 4}
    said = sorted(text for text in caplog.messages if "storage" in text)
    assert said == [f"actor-0: shard {shard}: storage is full" for shard in (3, 4)]


def test_of_a_failed_task_the_tracebacks_last_line_is_told() -> None:
    trace = 'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: no room'
    assert _one_line(RayTaskError("encode", trace, ValueError("no room"))) == "ValueError: no room"
    assert _one_line(RayTaskError("encode", "", ValueError())) == ""


def test_of_a_dead_actor_the_first_line_is_told() -> None:
    context = ActorDiedErrorContext(actor_id=bytes(16), error_message="exit code 9")
    found = _one_line(ActorDiedError(context))
    assert found == "The actor died unexpectedly before finishing this task."
