"""Rank 0's side of tracking, with a real recorder that dies and is replaced."""

import mlflow
import pytest

from pipeline.config import TrackingConfig
from pipeline.edges import reporting
from pipeline.edges.recorder import RunRecorder
from pipeline.edges.reporting import Reporter
from pipeline.training.points import Outbox
from pipeline.training.step import StepReport


def report(step: int) -> StepReport:
    return StepReport(
        step=step, epoch=0, images=8, bad_images=0, images_seen=8 * step,
        terms={"elbo": -float(step)}, objective=0.0, beta=1.0, gradient_norm=1.0,
        learning_rate=0.1, skipped=False, stop_requested=False, seconds=0.5,
        data_wait_seconds=0.1,
    )  # fmt: skip


@pytest.mark.parametrize("delivered_by_the_first", [True, False])
def test_what_a_dead_recorder_held_is_given_to_the_next_and_arrives_once(
    tmp_path, monkeypatch, delivered_by_the_first
):
    monkeypatch.setattr(reporting, "SEND_SECONDS", 0.0)
    uri = f"sqlite:///{tmp_path}/mlflow.db"

    def recorder(uri: str) -> RunRecorder:
        return RunRecorder(str(tmp_path), "r", TrackingConfig(), uri, {})

    outbox = Outbox()
    first = recorder(uri if delivered_by_the_first else "http://127.0.0.1:9")
    reporter = Reporter(first, outbox, 1, every_steps=1)
    for step in range(1, 11):
        reporter.step(report(step))
    first.flush(30 if delivered_by_the_first else 0.2)
    reporter.step(report(11))
    assert len(outbox.pending()) == (1 if delivered_by_the_first else 11)
    # The actor's process died; its name now means another one.
    second = reporter._recorder = recorder(uri)
    for step in range(12, 21):
        reporter.step(report(step))
    points, snapshot = reporter.settle()
    assert second.settle(points, snapshot, 60) == []
    history = mlflow.MlflowClient(uri).get_metric_history(second.finish("FINISHED"), "elbo")
    assert [(m.step, m.value) for m in history] == [(n, -float(n)) for n in range(1, 21)]
    first.finish("KILLED")
