import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.storage import temporary_folder

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
