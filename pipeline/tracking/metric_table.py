"""One declaration for each metric: what a report's field, Prometheus, MLflow and Grafana say of it.

A rank, an encoding, and an encoding that ended each send a frozen report. Beside each field stands
what becomes of it: its families at `/metrics` and its key in MLflow. k8s/monitoring.py makes the
dashboards and the documents' table from the same rows. Who reports sets fields by name, so that a
misspelt one is a type error. Units, signs and stems are those of the code.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.runs.goodput import State
from pipeline.tracking.metric import Logged, Metric, counter, gauge, metric, rows_of


@dataclass(frozen=True)
class StepMetrics:
    """What the steps say."""

    images: int | None = metric(
        counter(
            "vae_train_images",
            "images",
            "Images trained on since this endpoint began; replayed steps are not counted again.",
        ),
        mlflow=Logged("images_seen"),
    )
    step: int | None = metric(
        counter("vae_train_steps", "steps", "Optimiser steps, counted likewise."),
        gauge("vae_train_step", "steps", "The run's last step."),
    )
    target_steps: int | None = metric(
        gauge("vae_train_target_steps", "steps", "Where the run ends.")
    )
    epoch: int | None = metric(gauge("vae_train_epoch", "epochs", "Whole passes over the dataset."))
    step_seconds: float | None = metric(
        counter(
            "vae_train_step_seconds",
            "seconds",
            "Seconds spent in steps, waiting for data included.",
            per_restart=True,
        )
    )
    data_wait_seconds: float | None = metric(
        counter(
            "vae_train_data_wait_seconds",
            "seconds",
            "Seconds that steps waited for data.",
            per_restart=True,
        )
    )
    data_wait_fraction: float | None = metric(mlflow=Logged("data_wait_fraction"))
    part_seconds: Mapping[str, float] = metric(
        counter(
            "vae_train_part_seconds",
            "seconds",
            "The same seconds by part: waiting for fetch or decode, copy to the device, compute.",
            label="part",
            per_restart=True,
        )
    )
    slowest_rank: int | None = metric(
        gauge(
            "vae_train_slowest_rank",
            "rank",
            "The rank whose own work (data, copy, forward pass) took longest.",
        )
    )
    slowest_rank_ratio: float | None = metric(
        gauge("vae_train_slowest_rank_ratio", "1", "Its seconds over those of the median rank.")
    )
    gpu_share: float | None = metric(
        gauge(
            "vae_train_gpu_share",
            "1",
            "Model FLOPs of the last step over the GPUs' dense bfloat16 peak (MFU); on GPUs alone.",
        ),
        mlflow=Logged("gpu_share"),
    )
    last_step_timestamp_seconds: float | None = metric(
        gauge(
            "vae_train_last_step_timestamp_seconds",
            "seconds since 1970",
            "When the last step ended.",
        )
    )
    images_per_second: float | None = metric(
        gauge("vae_train_images_per_second", "images/s", "Rate of the last step."),
        mlflow=Logged("images_per_second"),
    )
    terms: Mapping[str, float] = metric(
        gauge(
            "vae_train_nats",
            "nats per image",
            "ELBO, its terms and the objective on the last batch; beta, which is no nats.",
            label="term",
        ),
        mlflow=Logged("{}"),
    )
    gradient_norm: float | None = metric(
        gauge("vae_train_gradient_norm", "1", "Before clipping."), mlflow=Logged("gradient_norm")
    )
    learning_rate: float | None = metric(
        gauge("vae_train_learning_rate", "1", "Of the last step."), mlflow=Logged("learning_rate")
    )
    nonfinite_steps: int | None = metric(
        counter(
            "vae_train_nonfinite_steps",
            "steps",
            "Steps skipped for a loss or gradient that is not finite.",
            per_restart=True,
        )
    )
    bad_images: int | None = metric(
        counter(
            "vae_train_bad_images",
            "images",
            "Images of all ranks that could not be read or decoded.",
            per_restart=True,
        )
    )
    memory_bytes: int | None = metric(
        gauge(
            "vae_train_memory_bytes",
            "bytes",
            "The most that the first rank held: on its GPU, or of main memory.",
        )
    )


@dataclass(frozen=True)
class LoaderMetrics:
    """What the first rank's loader says."""

    fetch_seconds: float | None = metric(
        counter(
            "vae_data_fetch_seconds",
            "seconds",
            "Seconds that the first rank's threads spent reading bytes, added up.",
            per_restart=True,
        )
    )
    decode_seconds: float | None = metric(
        counter(
            "vae_data_decode_seconds",
            "seconds",
            "Seconds that its threads spent on checks, decoding and resizing, added up.",
            per_restart=True,
        )
    )
    fetched_bytes: int | None = metric(
        counter(
            "vae_data_fetched_bytes",
            "bytes",
            "Bytes that the first rank read from storage, indexes too.",
            per_restart=True,
        )
    )
    samples: int | None = metric(
        counter(
            "vae_data_samples", "samples", "Samples that the first rank read.", per_restart=True
        )
    )
    bad_samples: Mapping[str, int] = metric(
        counter(
            "vae_data_bad_samples",
            "samples",
            "Samples that the first rank could not use.",
            label="reason",
            per_restart=True,
        )
    )
    retries: Mapping[str, int] = metric(
        counter(
            "vae_storage_retries",
            "requests",
            "Requests of the first rank that were made again.",
            label="reason",
            per_restart=True,
        )
    )
    cache_hits: int | None = metric(
        counter(
            "vae_data_cache_hits",
            "reads",
            "Reads that the first rank's cache answered.",
            per_restart=True,
        )
    )
    cache_misses: int | None = metric(
        counter(
            "vae_data_cache_misses",
            "reads",
            "Reads that the first rank's cache could not answer.",
            per_restart=True,
        )
    )
    queued_batches: int | None = metric(
        gauge("vae_data_queued_batches", "batches", "Decoded batches that wait for the first rank.")
    )


@dataclass(frozen=True)
class RunMetrics:
    """What surrounds the steps: starts, hold-out, checkpoints, tracking itself."""

    run_seconds: Mapping[State, float] = metric(
        counter(
            "vae_run_seconds",
            "seconds",
            "The run's wall clock since its first start, by its use; productive is the goodput.",
            label="state",
            since_first_start=True,
        )
    )
    world_size: int | None = metric(gauge("vae_train_world_size", "ranks", "Ranks that train."))
    restart: int | None = metric(
        counter("vae_train_restarts", "restarts", "Groups of workers started in place of others.")
    )
    start: int | None = metric(
        gauge("vae_train_start", "starts", "Which start of the run this is.")
    )
    holdout_terms: Mapping[str, float] = metric(
        gauge(
            "vae_holdout_nats",
            "nats per image",
            "ELBO and its terms on the hold-out.",
            label="term",
        ),
        mlflow=Logged("holdout_{}", "holdout_elbo"),
    )
    holdout_active_units: int | None = metric(
        gauge(
            "vae_holdout_active_units",
            "dimensions",
            "Latent dimensions whose mean varies over the hold-out by more than 0.01.",
        ),
        mlflow=Logged("holdout_active_units", "holdout_elbo"),
    )
    holdout_step: int | None = metric(
        gauge("vae_holdout_step", "steps", "When the hold-out was seen.")
    )
    checkpoints: int | None = metric(
        counter(
            "vae_checkpoints_written",
            "checkpoints",
            "Checkpoints that are durable.",
            per_restart=True,
        )
    )
    checkpoint_failures: int | None = metric(
        counter(
            "vae_checkpoint_failures",
            "checkpoints",
            "Checkpoints that storage refused.",
            per_restart=True,
        )
    )
    checkpoint_seconds: float | None = metric(
        counter(
            "vae_checkpoint_seconds",
            "seconds",
            "Seconds spent writing checkpoints, beside the steps.",
            per_restart=True,
        )
    )
    checkpoint_bytes: int | None = metric(
        gauge("vae_checkpoint_bytes", "bytes", "Size of the last one.")
    )
    checkpoint_step: int | None = metric(
        gauge("vae_checkpoint_step", "steps", "The step from which the run would go on.")
    )
    checkpoint_every: int | None = metric(
        gauge(
            "vae_checkpoint_every_steps", "steps", "Steps between two checkpoints, as configured."
        )
    )
    checkpoint_timestamp_seconds: float | None = metric(
        gauge(
            "vae_checkpoint_last_success_timestamp_seconds",
            "seconds since 1970",
            "When the last checkpoint was durable.",
        )
    )
    unsent_points: int | None = metric(
        gauge("vae_tracking_unsent_points", "points", "Points that MLflow has not got yet.")
    )
    tracking_failing: bool | None = metric(
        gauge("vae_tracking_failing", "1", "1 while MLflow can't be reached, else 0.")
    )


@dataclass(frozen=True)
class MetricsReport(RunMetrics, LoaderMetrics, StepMetrics):
    """What rank 0 last told of a run (label `run`); a field that is not known changes no metric."""


@dataclass(frozen=True)
class EncodingReport:
    """What an encoding that runs has done so far (label `store`)."""

    images: int | None = metric(counter("vae_encode_images", "images", "Images encoded."))
    failed: Mapping[str, int] = metric(
        counter("vae_encode_failed_images", "images", "Images without latents.", label="reason")
    )
    shards: int | None = metric(counter("vae_encode_shards", "shards", "Shards with a receipt."))
    quarantined: int | None = metric(
        counter("vae_encode_quarantined_shards", "shards", "Shards that were given up.")
    )
    retries: int | None = metric(
        counter("vae_encode_retries", "shards", "Shards that were tried again.")
    )
    shard_seconds: float | None = metric(
        counter(
            "vae_encode_shard_seconds",
            "seconds",
            "Seconds that workers spent on finished shards, added up.",
        )
    )
    written_bytes: int | None = metric(
        counter("vae_encode_written_bytes", "bytes", "Bytes of latents written.")
    )
    images_left: int | None = metric(
        gauge("vae_encode_images_left", "images", "Images still to encode.")
    )
    last_shard_timestamp_seconds: float | None = metric(
        gauge(
            "vae_encode_last_shard_timestamp_seconds",
            "seconds since 1970",
            "When the last shard was done, or encoding began.",
        )
    )


@dataclass(frozen=True)
class EncodingOutcome:
    """How the last encoding into a store ended (label `store`): it outlives the job."""

    succeeded: float | None = metric(
        gauge(
            "vae_encode_last_success_timestamp_seconds",
            "seconds since 1970",
            "When an encoding last left a whole store.",
        )
    )
    ended: float | None = metric(
        gauge(
            "vae_encode_last_end_timestamp_seconds",
            "seconds since 1970",
            "When an encoding last ended, however.",
        )
    )
    seconds: float | None = metric(gauge("vae_encode_last_seconds", "seconds", "How long it took."))
    images: int | None = metric(
        gauge("vae_encode_last_images", "images", "Images that it encoded.")
    )
    failed: int | None = metric(
        gauge("vae_encode_last_failed_images", "images", "Without latents.")
    )
    lost: int | None = metric(gauge("vae_encode_last_lost_shards", "shards", "Shards it gave up."))
    expected: float | None = metric(
        gauge(
            "vae_encode_expected_seconds",
            "seconds",
            "After so long without a whole store it is overdue; there where an encoding said so.",
        )
    )


TRAINING, ENCODING, OUTCOME = map(rows_of, (MetricsReport, EncodingReport, EncodingOutcome))
BUILD = Metric("vae_build_info", "gauge", "1", "1; the label names what runs.", "version")
TABLE = (*TRAINING, *ENCODING, *OUTCOME, BUILD)
