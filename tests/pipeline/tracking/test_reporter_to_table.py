"""The seam from a rank to Prometheus and MLflow: what a reporter sends is what they show."""

import urllib.request
from pathlib import Path
from typing import Any

import mlflow
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.config import TrackingConfig
from pipeline.data import LoaderTotals
from pipeline.runs.checkpoint import CheckpointStats
from pipeline.runs.history import Validation
from pipeline.runs.outbox import Outbox
from pipeline.tracking import reporter as reporting
from pipeline.tracking.metric_table import TRAINING, MetricsReport
from pipeline.tracking.recorder import RecorderSettings, RunRecorder
from pipeline.tracking.reporter import Reporter
from pipeline.training.step import StepReport

STEP = StepReport(
    step=7, epoch=3, images=8, bad_images=2, images_seen=48, objective=-21.0, beta=0.5,
    terms={"elbo": -20.0, "log_likelihood": -17.0, "kl": 3.0, "entropy_q": 5.0,
           "cross_entropy_q_prior": 8.0},
    gradient_norm=1.25, learning_rate=0.01, skipped=True, stop_requested=False, seconds=0.5,
    data_wait_seconds=0.2, copy_seconds=0.1, rank_seconds=(0.2, 0.2, 0.5), gpu_share=0.4,
    loader=LoaderTotals(
        samples=50, fetch_seconds=3.0, decode_seconds=1.0, bytes_fetched=4096,
        bad={"truncated": 2}, retries={"timeout": 6}, cache_hits=11, cache_misses=12,
        queued_batches=4,
    ),
    checkpoints=CheckpointStats(written=1, failures=2, seconds=0.75, step=6, bytes=5000),
    run_seconds={"productive": 30.0, "start": 9.0},
)  # fmt: skip
EXPECTED = {
    "vae_train_images_total": 8, "vae_train_steps_total": 1, "vae_train_step": 7,
    "vae_train_target_steps": 100, "vae_train_epoch": 3, "vae_train_step_seconds_total": 0.5,
    "vae_train_data_wait_seconds_total": 0.2,
    "vae_train_part_seconds_total": {
        "fetch": 0.15, "decode": 0.05, "copy": 0.1, "compute": 0.2,
    },
    "vae_train_slowest_rank": 2, "vae_train_slowest_rank_ratio": 2.5, "vae_train_gpu_share": 0.4,
    "vae_train_images_per_second": 16,
    "vae_train_nats": {
        "elbo": -20, "log_likelihood": -17, "kl": 3, "entropy_q": 5, "cross_entropy_q_prior": 8,
        "objective": -21, "beta": 0.5,
    },
    "vae_train_gradient_norm": 1.25, "vae_train_learning_rate": 0.01,
    "vae_train_nonfinite_steps_total": 1, "vae_train_bad_images_total": 2,
    "vae_data_fetch_seconds_total": 3, "vae_data_decode_seconds_total": 1,
    "vae_data_fetched_bytes_total": 4096, "vae_data_samples_total": 50,
    "vae_data_bad_samples_total": {"truncated": 2}, "vae_storage_retries_total": {"timeout": 6},
    "vae_data_cache_hits_total": 11, "vae_data_cache_misses_total": 12,
    "vae_data_queued_batches": 4,
    "vae_run_seconds_total": {"productive": 30, "start": 9}, "vae_train_world_size": 3,
    "vae_train_restarts_total": 0, "vae_train_start": 5,
    "vae_holdout_nats": {"elbo": -22, "kl": 2.5}, "vae_holdout_active_units": 9,
    "vae_holdout_step": 6, "vae_checkpoints_written_total": 1,
    "vae_checkpoint_failures_total": 2, "vae_checkpoint_seconds_total": 0.75,
    "vae_checkpoint_bytes": 5000, "vae_checkpoint_step": 6, "vae_checkpoint_every_steps": 50,
    "vae_tracking_failing": 0,
}  # fmt: skip
MEASURED = {
    "vae_train_last_step_timestamp_seconds", "vae_checkpoint_last_success_timestamp_seconds",
    "vae_train_memory_bytes", "vae_tracking_unsent_points",
}  # fmt: skip


@pytest.fixture
def told(
    mlflow_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[RunRecorder, str]:
    """A recorder that a reporter has told of a validation and a step."""
    monkeypatch.setattr(reporting, "SEND_SECONDS", 0.0)
    uri = mlflow_file
    recorder = RunRecorder(RecorderSettings(str(tmp_path), "r", TrackingConfig(), uri, {}))
    begun = MetricsReport(start=5, restart=1, world_size=3, target_steps=100, checkpoint_every=50)
    reporter = Reporter(recorder, Outbox(), 1, begun)
    reporter.validation(Validation(6, 10, {"elbo": -22.0, "kl": 2.5, "active_units": 9}))
    reporter.step(STEP)
    return recorder, uri


def test_all_that_a_reporter_sends_stands_at_the_endpoint_under_its_family(
    told: tuple[RunRecorder, str],
) -> None:
    recorder, _ = told
    found: dict[str, Any] = {}
    labels = {row.series: row.label for row in TRAINING}
    with urllib.request.urlopen(f"http://{recorder.address()}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            label = labels.get(sample.name)
            if label:
                found.setdefault(sample.name, {})[sample.labels[label]] = pytest.approx(
                    sample.value
                )
            elif sample.name in labels:
                found[sample.name] = pytest.approx(sample.value)
    recorder.finish("FINISHED")
    assert found.keys() == labels.keys(), "a family that no reporter feeds is an empty panel"
    assert {name: value for name, value in found.items() if name not in MEASURED} == EXPECTED


def test_mlflow_gets_the_numbers_of_a_step_and_of_a_validation_under_the_declared_keys(
    told: tuple[RunRecorder, str],
) -> None:
    recorder, uri = told
    assert recorder.flush(30) == []
    run_id = recorder.finish("FINISHED")
    metrics = mlflow.MlflowClient(uri).get_run(run_id).data.metrics
    expected = {
        "elbo": -20, "log_likelihood": -17, "kl": 3, "entropy_q": 5, "cross_entropy_q_prior": 8,
        "objective": -21, "beta": 0.5, "gradient_norm": 1.25, "learning_rate": 0.01,
        "images_seen": 48, "images_per_second": 16, "data_wait_fraction": 0.4, "gpu_share": 0.4,
        "holdout_elbo": -22, "holdout_kl": 2.5, "holdout_active_units": 9,
    }  # fmt: skip
    assert metrics == pytest.approx(expected)
