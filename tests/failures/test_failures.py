"""What fails is mended by what its message prints in backticks, and by nothing else."""

from collections.abc import Iterator

import pytest

from tests.failures import files, flags, servers
from tests.failures.mending import Failure, Reader
from tests.failures.world import World
from tests.servers.rgw import S3Server

ALL = (*flags.FAILURES, *files.FAILURES, *servers.FAILURES)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(made: World) -> Iterator[World]:
    yield made
    made.fill_again()


@pytest.mark.parametrize("failure", ALL, ids=lambda failure: failure.name)
def test_what_the_message_prints_in_backticks_mends_it(failure: Failure, world: World) -> None:
    mended(failure, world)


@pytest.mark.parametrize("number", range(5))
def test_what_is_said_of_an_object_storage_mends_it(
    number: int, world: World, s3_server: S3Server
) -> None:
    mended(servers.on_s3(s3_server)[number], world)


def mended(failure: Failure, world: World) -> None:
    failure.plant(world.home)
    reader = Reader(world.home, failure)
    assert reader.first.code > 0, reader.first.said
    assert "Traceback" not in reader.first.said
    assert reader.mends(), (reader.first.said, reader.tried)
