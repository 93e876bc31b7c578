"""Rank 0's side of tracking, with a real recorder that dies and is replaced."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from pipeline.config import TrackingConfig
from pipeline.data import LoaderTotals
from pipeline.runs.checkpoint import CheckpointStats
from pipeline.runs.history import Validation
from pipeline.runs.outbox import Outbox, Point
from pipeline.tracking import reporter as reporting
from pipeline.tracking.metric_table import MetricsReport
from pipeline.tracking.recorder import RecorderSettings, RunRecorder
from pipeline.tracking.reporter import Reporter
from pipeline.training.step import StepReport


def report(step: int) -> StepReport:
    return StepReport(
        step=step, epoch=0, images=8, bad_images=0, images_seen=8 * step,
        terms={"elbo": -float(step)}, objective=0.0, beta=1.0, gradient_norm=1.0,
        learning_rate=0.1, skipped=False, stop_requested=False, seconds=0.5,
        data_wait_seconds=0.1,
    )  # fmt: skip


class Kept:
    """A recorder that keeps what it is given."""

    def __init__(self) -> None:
        self.reports: list[MetricsReport] = []

    def record(
        self, sender: str, first: int, points: Sequence[Point], report: MetricsReport
    ) -> None:
        self.reports.append(report)


def test_a_continued_run_says_first_where_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "SEND_SECONDS", 0.0)
    kept = Kept()
    reporter = Reporter(kept, Outbox(), 1, MetricsReport(restart=1, start=2))
    reporter.validation(Validation(40, 10, {"elbo": -1.0, "active_units": 3}))
    reporter.step(report(41))
    begun, first = kept.reports
    assert (begun.step, begun.images, begun.step_seconds) == (40, 320, 0.0)
    assert (first.step, first.images, first.step_seconds) == (41, 328, 0.5)
    assert first.holdout_terms == {"elbo": -1.0}
    assert (first.holdout_active_units, first.start) == (3, 2)


def test_the_parts_of_steps_add_up_to_them_and_the_slowest_rank_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reporting, "SEND_SECONDS", 0.0)
    kept = Kept()
    reporter = Reporter(kept, Outbox(), 1, MetricsReport(restart=1))
    loaders = ((3.0, 1.0), (4.0, 4.0))
    for step, (fetched, decoded) in enumerate(loaders, start=1):
        told = LoaderTotals(fetch_seconds=fetched, decode_seconds=decoded)
        ranks = (0.2, 0.2, 0.5) if step == 2 else ()
        made = replace(report(step), loader=told, copy_seconds=0.15, rank_seconds=ranks)
        reporter.step(made)
    last = kept.reports[-1]
    # Of 0.1 s of waiting three quarters, then one quarter, were for bytes.
    assert last.part_seconds == pytest.approx(
        {"fetch": 0.1, "decode": 0.1, "copy": 0.3, "compute": 0.5}
    )
    assert sum(last.part_seconds.values()) == pytest.approx(last.step_seconds)
    assert (last.slowest_rank, last.slowest_rank_ratio) == (2, 2.5)


def test_a_checkpoints_time_is_that_of_the_step_that_first_tells_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reporting, "SEND_SECONDS", 0.0)
    kept = Kept()
    reporter = Reporter(kept, Outbox(), 1, MetricsReport(restart=1))
    reporter.step(report(1))
    assert kept.reports[-1].checkpoint_timestamp_seconds is None
    assert kept.reports[-1].checkpoint_step == 0
    told = CheckpointStats(written=1, step=1)
    reporter.step(replace(report(2), checkpoints=told))
    when = kept.reports[-1].checkpoint_timestamp_seconds
    reporter.step(replace(report(3), checkpoints=told))
    assert kept.reports[-1].checkpoint_timestamp_seconds == when
    assert kept.reports[-1].checkpoint_step == 1


@pytest.mark.parametrize("delivered_by_the_first", [True, False])
def test_what_a_dead_recorder_held_is_given_to_the_next_and_arrives_once(
    mlflow_file: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    delivered_by_the_first: bool,
) -> None:
    monkeypatch.setattr(reporting, "SEND_SECONDS", 0.0)
    uri = mlflow_file

    def recorder(uri: str) -> RunRecorder:
        return RunRecorder(RecorderSettings(str(tmp_path), "r", TrackingConfig(), uri, {}))

    outbox = Outbox()
    first = recorder(uri if delivered_by_the_first else "http://127.0.0.1:9")
    reporter = Reporter(first, outbox, 1, MetricsReport(restart=1))
    for step in range(1, 11):
        reporter.step(report(step))
    first.flush(30 if delivered_by_the_first else 0.2)
    reporter.step(report(11))
    assert len(outbox.pending()) == (1 if delivered_by_the_first else 11)
    # The actor's process died; its name now means another one.
    second = reporter._recorder = recorder(uri)
    for step in range(12, 21):
        reporter.step(report(step))
    last = reporter.settle()
    assert second.settle(last.points, last.report, 60) == []
    history = mlflow.MlflowClient(uri).get_metric_history(second.finish("FINISHED"), "elbo")
    assert [(m.step, m.value) for m in history] == [(n, -float(n)) for n in range(1, 21)]
    first.finish("KILLED")


def test_a_recorder_that_died_before_its_first_answer_loses_nothing(
    mlflow_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "SEND_SECONDS", 0.0)
    outbox = Outbox()
    reporter = Reporter(Kept(), outbox, 1, MetricsReport(restart=1))
    for step in range(1, 6):
        reporter.step(report(step))
    second = RunRecorder(RecorderSettings(str(tmp_path), "r", TrackingConfig(), mlflow_file, {}))
    reporter._recorder = second
    for step in range(6, 9):
        reporter.step(report(step))
    assert second.flush(60) == []
    reporter.step(report(9))
    assert [point.step for point in outbox.pending()] == [9]
    history = mlflow.MlflowClient(mlflow_file).get_metric_history(second.finish("KILLED"), "elbo")
    assert [m.step for m in history] == [*range(1, len(history) + 1)]
    assert len(history) >= 8
