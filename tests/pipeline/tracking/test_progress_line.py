"""What a training's live view says beside its numbers."""

import logging
import time
from pathlib import Path

import pytest

from pipeline.runs.run import Run
from pipeline.tracking import progress_line
from pipeline.tracking.metric_table import MetricsReport
from pipeline.tracking.progress_line import live_view
from pipeline.tracking.recorder import Latest


def test_workers_warnings_are_told_once_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_line, "_SECONDS", 0.01)
    told: list[str] = []
    looks = 0

    def latest() -> Latest:
        nonlocal looks
        looks += 1
        if looks in (2, 4):
            told.append(f"rank 0: warning {looks}")
        return Latest(MetricsReport(), None, tuple(told))

    with caplog.at_level(logging.WARNING), live_view(Run(str(tmp_path)), "r", 10, latest):
        while looks < 6:
            time.sleep(0.01)
    assert [record.getMessage() for record in caplog.records] == [
        "rank 0: warning 2",
        "rank 0: warning 4",
    ]


def test_until_the_first_step_it_says_what_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(str(tmp_path))
    with live_view(run, "r", 10, lambda: None, waits_for=lambda: "2 workers start"):
        pass
    assert "r: 0/10 steps [0:00, 2 workers start]" in capsys.readouterr().err
    with live_view(run, "r", 10, lambda: Latest(MetricsReport(), None)):
        pass
    assert "makes the first step]" in capsys.readouterr().err
