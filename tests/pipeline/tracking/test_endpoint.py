"""What an endpoint shows, as Prometheus's own text format says it."""

import math
import socket
import subprocess
import threading
import urllib.request
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.tracking.endpoint import Endpoint, refuse_taken
from pipeline.tracking.metric import rows_of
from pipeline.tracking.metric_table import (
    TRAINING,
    EncodingOutcome,
    EncodingReport,
    MetricsReport,
)
from tests.servers import prometheus as programs


def run() -> Endpoint:
    return Endpoint(TRAINING, "run", "r", "1")


def told(endpoint: Endpoint, report: MetricsReport) -> None:
    endpoint.update(report, report.restart)


def values(endpoint: Endpoint) -> dict[tuple[str, str], float]:
    """(sample name, its label beside the run, or the run) -> value; no creation times."""
    text = generate_latest(endpoint.registry).decode()
    return {
        (
            sample.name,
            min(sample.labels.items(), key=lambda pair: pair[0] == "run")[1],
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created") and sample.name != "vae_build_info"
    }


def test_replayed_steps_are_counted_once_and_a_dead_groups_seconds_stay() -> None:
    endpoint = run()
    told(endpoint, MetricsReport(restart=1, images=0, step_seconds=0.0))
    told(endpoint, MetricsReport(restart=1, images=100, step_seconds=10.0))
    told(endpoint, MetricsReport(restart=2, images=60, step_seconds=3.0))
    told(endpoint, MetricsReport(restart=2, images=120, step_seconds=7.0))
    found = values(endpoint)
    assert found["vae_train_images_total", "r"] == 120
    assert found["vae_train_step_seconds_total", "r"] == 17.0
    assert found["vae_train_restarts_total", "r"] == 1


def test_labelled_counters_count_each_label_by_itself() -> None:
    endpoint = run()
    told(endpoint, MetricsReport(restart=1))
    told(endpoint, MetricsReport(restart=1, bad_samples={"truncated": 2, "checksum": 1}))
    told(endpoint, MetricsReport(restart=1, bad_samples={"truncated": 5}))
    told(endpoint, MetricsReport(restart=2, bad_samples={"truncated": 1}))
    found = values(endpoint)
    assert found["vae_data_bad_samples_total", "truncated"] == 6
    assert found["vae_data_bad_samples_total", "checksum"] == 1


def test_a_continued_runs_counters_begin_at_zero_and_grow_by_what_it_does_from_there() -> None:
    endpoint = run()
    assert not values(endpoint)
    told(endpoint, MetricsReport(restart=1, images=1_000_000, step=500))
    found = values(endpoint)
    assert found["vae_train_images_total", "r"] == 0
    assert found["vae_train_step", "r"] == 500
    told(endpoint, MetricsReport(restart=1, images=1_000_064, step=501))
    found = values(endpoint)
    assert found["vae_train_images_total", "r"] == 64
    assert found["vae_train_steps_total", "r"] == 1


def test_what_is_not_finite_leaves_the_last_number_where_it_is() -> None:
    endpoint = run()
    told(endpoint, MetricsReport(restart=1, gradient_norm=2.0, terms={"elbo": -1.0, "kl": 1.0}))
    told(endpoint, MetricsReport(restart=1, gradient_norm=math.nan, terms={"elbo": -math.inf}))
    found = values(endpoint)
    assert (found["vae_train_gradient_norm", "r"], found["vae_train_nats", "elbo"]) == (2.0, -1.0)


@pytest.mark.parametrize(
    ("kind", "label"),
    [(MetricsReport, "run"), (EncodingReport, "store"), (EncodingOutcome, "store")],
)
def test_prometheus_own_check_finds_nothing_wrong_with_names_and_help(
    kind: type[Any], label: str
) -> None:
    rows = rows_of(kind)
    if programs.missing_programs():
        pytest.skip("Prometheus is not installed: `make servers` installs it")
    endpoint = Endpoint(rows, label, "x", "1")
    endpoint.update(kind(**{row.source: {"a": 1} if row.label else 1 for row in rows}))
    address = endpoint.serve("127.0.0.1", 0)
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as answer:
        text = answer.read()
    endpoint.close()
    found = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")
    assert sum(row.series.encode() in text for row in rows) == len(rows)


def test_what_is_served_on_every_address_is_named_by_one_that_can_be_asked() -> None:
    endpoint = Endpoint(TRAINING, "run", "r", "1")
    address = endpoint.serve("0.0.0.0", 0)
    assert not address.startswith("0.0.0.0")
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as answer:
        assert b"vae_build_info" in answer.read()
    endpoint.close()


def test_a_port_that_a_dying_recorder_still_holds_is_waited_for() -> None:
    held = socket.create_server(("127.0.0.1", 0))
    port = held.getsockname()[1]
    threading.Timer(0.2, held.close).start()
    refuse_taken("127.0.0.1", port)
    assert held.fileno() == -1
