"""Logs of a process, as they lie in a run's storage."""

import logging
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RunError
from pipeline.runs.run import Run
from pipeline.tracking import logs
from pipeline.tracking.logs import stored_log

logger = logging.getLogger("pipeline.training.loop")


def stored(folder: Any) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((folder / "logs").iterdir())}


def test_what_is_logged_lies_in_the_runs_folder_and_nothing_after_the_block(tmp_path: Path) -> None:
    with stored_log(Run(str(tmp_path)), "000001.001-rank0"):
        logger.warning("the disk is %s", "full")
    logger.warning("too late")
    ((name, text),) = stored(tmp_path).items()
    assert name == "000001.001-rank0.0001.log"
    assert "WARNING pipeline.training.loop MainThread: the disk is full\n" in text
    assert "too late" not in text


def test_the_error_that_ends_a_process_is_the_last_thing_in_its_log(tmp_path: Path) -> None:
    with pytest.raises(RunError), stored_log(Run(str(tmp_path)), "r"):
        raise RunError("broken beyond repair")
    (text,) = stored(tmp_path).values()
    assert text.splitlines()[-1].endswith("RunError: broken beyond repair")


def test_a_full_file_is_followed_by_another_and_the_oldest_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES", 100)
    monkeypatch.setattr(logs, "KEPT_FILES", 2)
    handler = logs._Handler(Run(str(tmp_path)), "r")
    for number in range(5):
        handler.handle(logging.makeLogRecord({"msg": f"{number}" * 100}))
        handler.publish()
    found = stored(tmp_path)
    assert list(found) == ["r.0004.log", "r.0005.log"]
    assert ["3" * 100 in found["r.0004.log"], "4" * 100 in found["r.0005.log"]] == [True, True]


def test_while_storage_is_away_nothing_is_lost(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    handler = logs._Handler(Run(str(tmp_path)), "r")
    handler.handle(logging.makeLogRecord({"msg": "first"}))
    handler.publish()
    (tmp_path / "logs").unlink()
    handler.handle(logging.makeLogRecord({"msg": "second"}))
    handler.publish()
    (text,) = stored(tmp_path).values()
    assert [line.rpartition(" ")[2] for line in text.splitlines()] == ["first", "second"]
