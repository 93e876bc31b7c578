"""One world for all damages: each is undone before the next."""

import pytest

from tests.damage.damaged_world import World, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("damage") / "world")
