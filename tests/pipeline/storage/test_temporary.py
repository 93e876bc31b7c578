import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.storage import private_folder, temporary_folder

OWNER = """
import sys
from pipeline.storage import temporary_folder
with temporary_folder("job-") as folder:
    (folder / "inside").mkdir()
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def told_by(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_killed_jobs_folder_goes_when_the_next_one_begins_and_a_living_ones_stays(
    below: Path,
) -> None:
    (below / "job-foreign").mkdir()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        killed, living = (Path(told_by(process)) for process in started)
        started[0].kill()
        started[0].wait()
        assert (killed / "inside").is_dir()
        with temporary_folder("job-") as own:
            assert set(below.iterdir()) == {own, living, below / "job-foreign"}
            assert (living / "inside").is_dir()
        assert set(below.iterdir()) == {living, below / "job-foreign"}
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("what", ["FIFO", "link to a folder", "link to a file", "socket", "file"])
def test_what_another_user_lays_down_under_a_name_of_ours_is_left_alone_and_not_waited_for(
    below: Path, tmp_path_factory: pytest.TempPathFactory, what: str
) -> None:
    beyond = tmp_path_factory.mktemp("beyond")
    (beyond / ".owner").write_text("mine")
    evil, owner = below / "job-evil", below / "job-evil/.owner"
    if what == "link to a folder":
        evil.symlink_to(beyond)
    elif what == "file":
        evil.write_text("mine")
    else:
        evil.mkdir(mode=0o700)
        if what == "FIFO":
            os.mkfifo(owner)
        elif what == "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(os.path.relpath(owner))
        else:
            owner.symlink_to(beyond / ".owner")
    with temporary_folder("job-") as own:
        assert set(below.iterdir()) == {own, evil}
    assert (beyond / ".owner").read_text() == "mine"


@pytest.mark.parametrize("what", ["link", "dangling link", "FIFO", "file", "open to all"])
def test_a_folder_that_is_not_ours_alone_is_refused_in_one_line(
    below: Path, tmp_path_factory: pytest.TempPathFactory, what: str
) -> None:
    beyond, place = tmp_path_factory.mktemp("beyond"), below / "private"
    make: dict[str, Callable[[], object]] = {
        "link": lambda: place.symlink_to(beyond),
        "dangling link": lambda: place.symlink_to(below / "nothing"),
        "FIFO": lambda: os.mkfifo(place),
        "file": place.touch,
        "open to all": place.mkdir,
    }
    make[what]()
    if what == "open to all":
        place.chmod(0o777)
    with pytest.raises(StorageError, match=r"private: is a link.*set TMPDIR") as raised:
        private_folder(place)
    assert "\n" not in str(raised.value)
    assert list(beyond.iterdir()) == []


def test_a_private_folder_is_made_for_its_user_alone_and_found_again(below: Path) -> None:
    handles = [private_folder(below / "private") for _ in range(2)]
    assert os.path.samestat(*map(os.fstat, handles))
    assert os.fstat(handles[0]).st_mode & 0o777 == 0o700
    for handle in handles:
        os.close(handle)


def test_a_dead_jobs_folder_goes_though_everybody_may_look_into_it(below: Path) -> None:
    dead = below / "job-dead"
    dead.mkdir()
    (dead / ".owner").touch()
    dead.chmod(0o777)  # as Ray leaves its own
    with temporary_folder("job-") as own:
        assert set(below.iterdir()) == {own}
