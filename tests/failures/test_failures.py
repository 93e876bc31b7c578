"""What fails is mended by what its message prints in backticks, and by nothing else."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.submission.rayjob import base_template
from tests.failures import files, flags, servers
from tests.failures.mending import Failure, Reader
from tests.failures.world import World
from tests.servers.api_server import ApiServer
from tests.servers.ray_head import RayHead
from tests.servers.rgw import S3Server

ALL = (*flags.FAILURES, *files.FAILURES, *servers.FAILURES)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(made: World) -> Iterator[World]:
    yield made
    made.fill_again()


LONG = {
    "sweep of nothing", "sweep of words", "never packed", "storage that is a file", "shard gone",
    "bytes flipped", "manifest cut", "run.json gone", "checkpoints gone", "another configuration",
    "evaluate a run that goes on", "evaluate frist", "no champion", "another model's store",
    "another dataset's store", "no such column", "store without its pointer", "explain frist",
    "explain a run that goes on", "pull into photos", "rollback", "init at another size",
    "50 pixels by 8", "bundle damaged", "encode a run", "module typo", "constructor",
    "encode's shape", "decode's shape", "transform typo", "ray gone",
}  # fmt: skip
"""Failures whose mended command trains, encodes or measures: each is of a kind that stays below."""

OF_SERVERS = {
    "output below a file",
    "too much for memory",
    *(failure.name for failure in servers.FAILURES),
}
"""What waits for servers that are not there, and two that need a machine of their own."""


def marked(failure: Failure) -> object:
    marks = [pytest.mark.chaos] if failure.name in LONG | OF_SERVERS else []
    return pytest.param(failure, id=failure.name, marks=marks)


@pytest.mark.parametrize("failure", [marked(each) for each in ALL])
def test_what_the_message_prints_in_backticks_mends_it(failure: Failure, world: World) -> None:
    mended(failure, world)


@pytest.mark.parametrize("number", range(5))
@pytest.mark.chaos
def test_what_is_said_of_an_object_storage_mends_it(
    number: int, world: World, s3_server: S3Server
) -> None:
    mended(servers.on_s3(s3_server)[number], world)


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    found = RayHead()
    found.start()
    yield found
    found.stop()


@pytest.mark.parametrize("number", range(4))
@pytest.mark.chaos
def test_what_is_said_of_a_ray_cluster_mends_it(number: int, world: World, head: RayHead) -> None:
    mended(servers.on_ray(head)[number], world)


@pytest.mark.parametrize("number", range(3))
def test_what_is_said_of_kubernetes_mends_it(
    number: int, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    with ApiServer(tmp_path).running() as server:
        for name in ("train", "encode", "cpu"):
            server.put(dict(base_template(name)))
        mended(servers.on_kubernetes(server)[number], world)


def mended(failure: Failure, world: World) -> None:
    failure.plant(world.home)
    reader = Reader(world.home, failure)
    assert reader.first.code > 0, reader.first.said
    assert "Traceback" not in reader.first.said
    assert reader.mends(), (reader.first.said, reader.tried)
