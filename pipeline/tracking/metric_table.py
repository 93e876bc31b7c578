"""The one table of metrics: what Prometheus is told, by which the docs and dashboards are made.

Counters get `_total` behind their name. Signs, units and stems are those of MLflow and the code.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One row: `source` is the snapshot's key that feeds it; `label` splits a mapping into series.

    A `per_session` counter starts at 0 with each group of workers; the others hold the run's own
    totals, which a replay does not add to. They begin at 0 with the endpoint, or, with
    `since_first_start`, at what the run's storage knows of all starts before. `label` comes beside
    the room's own: a run's `run`, an encoding's `store`.
    """

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    source: str
    help: str
    label: str | None = None
    per_session: bool = False
    since_first_start: bool = False

    @property
    def series(self) -> str:
        """The name that Prometheus stores."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


TRAINING = (
    Metric(
        "vae_train_images", "counter", "images", "images",
        "Images trained on since this endpoint began; replayed steps are not counted again.",
    ),
    Metric("vae_train_steps", "counter", "steps", "step", "Optimiser steps, counted likewise."),
    Metric("vae_train_step", "gauge", "steps", "step", "The run's last step."),
    Metric("vae_train_target_steps", "gauge", "steps", "target_steps", "Where the run ends."),
    Metric("vae_train_epoch", "gauge", "epochs", "epoch", "Whole passes over the dataset."),
    Metric(
        "vae_train_step_seconds", "counter", "seconds", "step_seconds_total",
        "Seconds spent in steps, waiting for data included.", per_session=True,
    ),
    Metric(
        "vae_train_data_wait_seconds", "counter", "seconds", "data_wait_seconds_total",
        "Seconds that steps waited for data.", per_session=True,
    ),
    Metric(
        "vae_train_part_seconds", "counter", "seconds", "part_seconds_total",
        "The same seconds by part: waiting for fetch or decode, copy to the device, compute.",
        label="part", per_session=True,
    ),
    Metric(
        "vae_train_slowest_rank", "gauge", "rank", "slowest_rank",
        "The rank whose own work (data, copy, forward pass) took longest.",
    ),
    Metric(
        "vae_train_slowest_rank_ratio", "gauge", "1", "slowest_rank_ratio",
        "Its seconds over those of the median rank.",
    ),
    Metric(
        "vae_train_gpu_share", "gauge", "1", "gpu_share",
        "Model FLOPs of the last step over the GPUs' dense bfloat16 peak (MFU); on GPUs alone.",
    ),
    Metric(
        "vae_data_fetch_seconds", "counter", "seconds", "fetch_seconds_total",
        "Seconds that the first rank's threads spent reading bytes, added up.", per_session=True,
    ),
    Metric(
        "vae_data_decode_seconds", "counter", "seconds", "decode_seconds_total",
        "Seconds that its threads spent on checks, decoding and resizing, added up.",
        per_session=True,
    ),
    Metric(
        "vae_run_seconds", "counter", "seconds", "run_seconds_total",
        "The run's wall clock since its first start, by its use; productive is the goodput.",
        label="state", since_first_start=True,
    ),
    Metric(
        "vae_train_last_step_timestamp_seconds", "gauge", "seconds since 1970",
        "last_step_timestamp_seconds", "When the last step ended.",
    ),
    Metric(
        "vae_train_images_per_second", "gauge", "images/s", "images_per_second",
        "Rate of the last step.",
    ),
    Metric(
        "vae_train_nats", "gauge", "nats per image", "terms",
        "ELBO, its terms and the objective on the last batch; beta, which is no nats.",
        label="term",
    ),
    Metric("vae_train_gradient_norm", "gauge", "1", "gradient_norm", "Before clipping."),
    Metric("vae_train_learning_rate", "gauge", "1", "learning_rate", "Of the last step."),
    Metric(
        "vae_train_nonfinite_steps", "counter", "steps", "nonfinite_steps_total",
        "Steps skipped for a loss or gradient that is not finite.", per_session=True,
    ),
    Metric(
        "vae_train_bad_images", "counter", "images", "bad_images_total",
        "Images of all ranks that could not be read or decoded.", per_session=True,
    ),
    Metric(
        "vae_train_memory_bytes", "gauge", "bytes", "memory_bytes",
        "The most that the first rank held: on its GPU, or of main memory.",
    ),
    Metric("vae_train_world_size", "gauge", "ranks", "world_size", "Ranks that train."),
    Metric(
        "vae_train_restarts", "counter", "restarts", "session",
        "Groups of workers started in place of others.",
    ),
    Metric("vae_train_attempt", "gauge", "starts", "attempt", "Which start of the run this is."),
    Metric(
        "vae_holdout_nats", "gauge", "nats per image", "holdout_terms",
        "ELBO and its terms on the hold-out.", label="term",
    ),
    Metric(
        "vae_holdout_active_units", "gauge", "dimensions", "holdout_active_units",
        "Latent dimensions whose mean varies over the hold-out by more than 0.01.",
    ),
    Metric("vae_holdout_step", "gauge", "steps", "holdout_step", "When the hold-out was seen."),
    Metric(
        "vae_checkpoints_written", "counter", "checkpoints", "checkpoints_total",
        "Checkpoints that are durable.", per_session=True,
    ),
    Metric(
        "vae_checkpoint_failures", "counter", "checkpoints", "checkpoint_failures_total",
        "Checkpoints that storage refused.", per_session=True,
    ),
    Metric(
        "vae_checkpoint_seconds", "counter", "seconds", "checkpoint_seconds_total",
        "Seconds spent writing checkpoints, beside the steps.", per_session=True,
    ),
    Metric("vae_checkpoint_bytes", "gauge", "bytes", "checkpoint_bytes", "Size of the last one."),
    Metric(
        "vae_checkpoint_step", "gauge", "steps", "checkpoint_step",
        "The step from which the run would go on.",
    ),
    Metric(
        "vae_checkpoint_every_steps", "gauge", "steps", "checkpoint_every",
        "Steps between two checkpoints, as configured.",
    ),
    Metric(
        "vae_checkpoint_last_success_timestamp_seconds", "gauge", "seconds since 1970",
        "checkpoint_timestamp_seconds", "When the last checkpoint was durable.",
    ),
    Metric(
        "vae_data_fetched_bytes", "counter", "bytes", "fetched_bytes_total",
        "Bytes that the first rank read from storage, indexes too.", per_session=True,
    ),
    Metric(
        "vae_data_samples", "counter", "samples", "samples_total",
        "Samples that the first rank read.", per_session=True,
    ),
    Metric(
        "vae_data_bad_samples", "counter", "samples", "bad_samples_total",
        "Samples that the first rank could not use.", label="reason", per_session=True,
    ),
    Metric(
        "vae_storage_retries", "counter", "requests", "retries_total",
        "Requests of the first rank that were made again.", label="reason", per_session=True,
    ),
    Metric(
        "vae_data_cache_hits", "counter", "reads", "cache_hits_total",
        "Reads that the first rank's cache answered.", per_session=True,
    ),
    Metric(
        "vae_data_cache_misses", "counter", "reads", "cache_misses_total",
        "Reads that the first rank's cache could not answer.", per_session=True,
    ),
    Metric(
        "vae_data_queued_batches", "gauge", "batches", "queued_batches",
        "Decoded batches that wait for the first rank.",
    ),
    Metric(
        "vae_tracking_unsent_points", "gauge", "points", "tracking_unsent_points",
        "Points that MLflow has not got yet.",
    ),
    Metric(
        "vae_tracking_failing", "gauge", "1", "tracking_failing",
        "1 while MLflow can't be reached, else 0.",
    ),
)  # fmt: skip
"""Of a run (label `run`)."""

ENCODING = (
    Metric("vae_encode_images", "counter", "images", "images", "Images encoded."),
    Metric(
        "vae_encode_failed_images", "counter", "images", "failed",
        "Images without latents.", label="reason",
    ),
    Metric("vae_encode_shards", "counter", "shards", "shards", "Shards with a receipt."),
    Metric(
        "vae_encode_quarantined_shards", "counter", "shards", "quarantined",
        "Shards that were given up.",
    ),
    Metric("vae_encode_retries", "counter", "shards", "retries", "Shards that were tried again."),
    Metric(
        "vae_encode_shard_seconds", "counter", "seconds", "shard_seconds",
        "Seconds that workers spent on finished shards, added up.",
    ),
    Metric("vae_encode_written_bytes", "counter", "bytes", "bytes", "Bytes of latents written."),
    Metric("vae_encode_images_left", "gauge", "images", "images_left", "Images still to encode."),
    Metric(
        "vae_encode_last_shard_timestamp_seconds", "gauge", "seconds since 1970",
        "last_shard_timestamp_seconds", "When the last shard was done, or encoding began.",
    ),
)  # fmt: skip
"""Of an encoding that runs (label `store`)."""

OUTCOME = (
    Metric(
        "vae_encode_last_success_timestamp_seconds", "gauge", "seconds since 1970", "succeeded",
        "When an encoding last left a whole store.",
    ),
    Metric(
        "vae_encode_last_end_timestamp_seconds", "gauge", "seconds since 1970", "ended",
        "When an encoding last ended, however.",
    ),
    Metric("vae_encode_last_seconds", "gauge", "seconds", "seconds", "How long it took."),
    Metric("vae_encode_last_images", "gauge", "images", "images", "Images that it encoded."),
    Metric("vae_encode_last_failed_images", "gauge", "images", "failed", "Without latents."),
    Metric("vae_encode_last_lost_shards", "gauge", "shards", "lost", "Shards it gave up."),
)  # fmt: skip
"""Of the last encoding into a store (label `store`): it outlives the job."""

BUILD = Metric(
    "vae_build_info", "gauge", "1", "build", "1; the label names what runs.", label="version"
)
TABLE = (*TRAINING, *ENCODING, *OUTCOME, BUILD)
