"""What a run tells Prometheus: one table of metrics, one endpoint per run.

Snapshots hold the run's own totals: images and steps of the surviving trajectory, and the seconds
of the present worker group. Counters never fall: replayed steps are not counted as images again,
and the seconds of dead worker groups stay counted.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server


@dataclass(frozen=True)
class Metric:
    """One row: `snapshot` is the key that feeds it; `label` splits a mapping into series."""

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    snapshot: str
    help: str
    label: str | None = None
    per_session: bool = False


TABLE = (
    Metric("vae_train_images", "counter", "images", "images", "Images trained on."),
    Metric("vae_train_steps", "counter", "steps", "step", "Optimiser steps done."),
    Metric(
        "vae_train_step_seconds", "counter", "seconds", "step_seconds_total",
        "Seconds spent in steps, waiting for data included.", per_session=True,
    ),
    Metric(
        "vae_train_data_wait_seconds", "counter", "seconds", "data_wait_seconds_total",
        "Seconds that steps waited for data.", per_session=True,
    ),
    Metric(
        "vae_train_nonfinite_steps", "counter", "steps", "nonfinite_steps_total",
        "Steps skipped for a loss or gradient that is not finite.", per_session=True,
    ),
    Metric(
        "vae_train_bad_images", "counter", "images", "bad_images_total",
        "Images that could not be read or decoded.", per_session=True,
    ),
    Metric(
        "vae_train_nats", "gauge", "nats per image", "terms",
        "ELBO, its terms and the objective on the last batch.", label="term",
    ),
    Metric(
        "vae_holdout_nats", "gauge", "nats per image", "holdout_terms",
        "ELBO and its terms on the hold-out.", label="term",
    ),
    Metric(
        "vae_train_images_per_second", "gauge", "images/s", "images_per_second",
        "Rate of the last step.",
    ),
    Metric("vae_train_gradient_norm", "gauge", "1", "gradient_norm", "Before clipping."),
    Metric("vae_train_learning_rate", "gauge", "1", "learning_rate", "Of the last step."),
    Metric(
        "vae_train_last_step_timestamp_seconds", "gauge", "seconds since 1970",
        "last_step_timestamp_seconds", "When the last step ended.",
    ),
    Metric(
        "vae_data_fetched_bytes", "counter", "bytes", "fetched_bytes_total",
        "Bytes that the first rank read from storage.", per_session=True,
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
)  # fmt: skip


class RunMetrics:
    """The registry of one run, fed by snapshots."""

    def __init__(self, run: str) -> None:
        self.registry = CollectorRegistry()
        self._run = run
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, int, str | None], float] = {}
        self._server: WSGIServer | None = None
        self._series = {metric.name: self._make(metric) for metric in TABLE}

    def update(self, snapshot: Mapping[str, Any]) -> None:
        """Takes a snapshot; keys that are missing leave their metric as it is."""
        session = int(snapshot.get("session", 0))
        with self._lock:
            for metric in TABLE:
                value = snapshot.get(metric.snapshot)
                if value is None:
                    continue
                by_label = value.items() if metric.label else [(None, value)]
                for label, number in by_label:
                    self._take(metric, session, label, float(number))

    def _take(self, metric: Metric, session: int, label: str | None, number: float) -> None:
        series = self._series[metric.name]
        child = series.labels(self._run, label) if metric.label else series.labels(self._run)
        if isinstance(child, Gauge):
            child.set(number)
            return
        # A counter is first seen with its whole total: there is no moment at which it shows 0.
        seen = (metric.name, session if metric.per_session else 0, label)
        gain = number - self._seen.get(seen, 0.0)
        if gain > 0:
            child.inc(gain)
            self._seen[seen] = number

    def serve(self, host: str, port: int) -> str:
        """Serves `/metrics` on HOST:PORT (0: a free one) and returns that address."""
        self._server, _ = start_http_server(port, addr=host, registry=self.registry)
        return f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Ends the endpoint."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _make(self, metric: Metric) -> Counter | Gauge:
        kind = Counter if metric.kind == "counter" else Gauge
        labels = ("run", metric.label) if metric.label else ("run",)
        return kind(metric.name, metric.help, labels, registry=self.registry)
