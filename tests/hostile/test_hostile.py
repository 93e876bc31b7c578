"""Whatever is handed over: one line of refusal, exit code 1 or 2, and nothing written anywhere."""

import re
import shlex
from collections.abc import Iterator

import pytest

from tests.hostile import cases, links
from tests.hostile.cases import LISTENER, SECRET, Case
from tests.hostile.gifts import World, make_world
from tests.support.killing import tree
from tests.support.warm import run

CASES = (*cases.CASES, *links.LINKS)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
_REFUSAL = re.compile(r"^\w+Error: ", re.MULTILINE)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("gifts"))


@pytest.fixture
def world(made: World) -> Iterator[World]:
    yield made
    made.fill()


def files(world: World) -> dict[str, str]:
    """All that lies there, but for what MLflow does with its own file."""
    return {name: sha for name, sha in _tree(world).items() if "mlflow.db" not in name}


def _tree(world: World) -> dict[str, str]:
    fifos = [path for path in world.home.rglob("*") if path.is_fifo() or path.is_char_device()]
    hidden = [(path, path.rename(world.home.parent / f"hidden{n}")) for n, path in enumerate(fifos)]
    try:
        return tree(world.home)
    finally:
        for path, away in hidden:
            away.rename(path)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_it_is_refused_in_one_line_and_nothing_is_written(case: Case, world: World) -> None:
    case.plant(world.home)
    before = files(world)
    job, *flags = shlex.split(case.command)
    ended = run(
        world.home, f"jobs.{job}", *flags, TMPDIR=str(world.home / "tmp"),
        MLFLOW_TRACKING_URI=f"sqlite:///{world.home}/mlflow.db",
    )  # fmt: skip
    said = ended.stdout + ended.stderr
    assert ended.returncode in (1, 2), said
    assert "Traceback" not in said, said
    assert len(_REFUSAL.findall(said)) == 1, said
    assert re.search(case.says, said), said
    assert not _CONTROL.search(said), repr(said)
    assert SECRET not in said
    assert len(ended.stderr) < 3000
    after = files(world)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert [name for name in changed if not case.wrote or not name.startswith(case.wrote)] == []


def test_there_are_sixty_of_them_and_nobody_asked_a_foreign_address() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
    LISTENER.setblocking(False)
    with pytest.raises(BlockingIOError):
        LISTENER.accept()
