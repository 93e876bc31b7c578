"""What a training's live view says beside its numbers."""

import logging
import time
from pathlib import Path

import pytest

from pipeline.runs.run import Run
from pipeline.tracking import progress_line
from pipeline.tracking.metric_table import MetricsReport
from pipeline.tracking.progress_line import live_view, numbers_of
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


def test_all_numbers_stand_in_one_line_and_those_that_are_missing_are_left_out() -> None:
    report = MetricsReport(
        terms={"elbo": -80.5, "log_likelihood": -70.25, "kl": 10.25, "objective": -80.5},
        images_per_second=1234.0, step_seconds=8.0, data_wait_seconds=2.0, gpu_share=0.4,
        run_seconds={"productive": 75.0, "start": 25.0, "idle": 900.0}, slowest_rank=3,
        slowest_rank_ratio=1.8, memory_bytes=3 * 2**29,
    )  # fmt: skip
    assert numbers_of(report) == (
        "elbo -80.50, log_likelihood -70.25, kl 10.25, last step 1,234 images/s, data wait 25%, "
        "GPU 40% of peak, goodput 75%, rank 3 is slow (1.8 times the median), memory 1.5 GiB"
    )
    assert numbers_of(MetricsReport(step=1)) == ""
    quick = MetricsReport(slowest_rank=3, slowest_rank_ratio=1.4, terms={"elbo": float("nan")})
    assert numbers_of(quick) == ""


def test_the_last_line_has_the_steps_that_came_after_the_last_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = tmp_path / "checkpoints"
    with live_view(Run(str(tmp_path)), "r", 30, lambda: Latest(MetricsReport(step=29), None)):
        checkpoints.mkdir()
        (checkpoints / "step-000000030.json").write_text("{}")
    assert "r: 30/30 steps" in capsys.readouterr().err
