"""The terminal's picture, from what a real endpoint serves."""

import inspect
import json
import math
import re
from collections import deque
from pathlib import Path
from typing import Any

import pytest

import pipeline.tracking.terminal
from pipeline.config import WatchConfig
from pipeline.errors import RunError, UnreachableError
from pipeline.tracking.endpoint import Endpoint, discovery
from pipeline.tracking.metric_table import ENCODING, TABLE, TRAINING, EncodingReport, MetricsReport
from pipeline.tracking.terminal import Numbers, Subject, bars, lines_of, look, watch
from tests.support import warm


@pytest.fixture
def endpoint() -> Any:
    made = Endpoint(TRAINING, "run", "first", "1")
    made.update(MetricsReport(images=0, step=0, step_seconds=0.0))
    yield made
    made.close()


def test_rates_are_what_was_gained_between_two_looks(endpoint: Any) -> None:
    before = {Subject("run", "first"): Numbers(100.0, {"vae_train_images_total": {"": 1000.0}})}
    now = {
        Subject("run", "first"): Numbers(
            104.0,
            {
                "vae_train_images_total": {"": 3000.0},
                "vae_train_step": {"": 50.0},
                "vae_train_target_steps": {"": 200.0},
                "vae_train_nats": {"elbo": -337.973, "kl": 12.68},
                "vae_train_last_step_timestamp_seconds": {"": 101.0},
                "vae_checkpoint_step": {"": 40.0},
                "vae_storage_retries_total": {"timeout": 2.0, "reset": 1.0},
                "vae_run_seconds_total": {
                    "productive": 90.0,
                    "data_wait": 8.0,
                    "redo": 2.0,
                    "idle": 50.0,
                },
            },
        )
    }
    text = "\n".join(lines_of(now, before))
    assert "first: step 50 of 200 (25%)" in text
    assert "images per second            500" in text
    assert "last batch          elbo -337.97, kl 12.68 nats per image" in text
    assert "last step                3 s ago" in text
    assert "10 steps behind" in text
    assert "retries 3" in text
    assert "goodput                    90.0%  data wait 8.0%, redo 2.0%" in text


def test_every_series_that_is_shown_is_one_of_the_table() -> None:
    named = re.findall(
        r'"((?:vae_train|vae_[a-z]+)_[a-z_]+)"', inspect.getsource(pipeline.tracking.terminal)
    )
    assert len(named) > 20
    assert set(named) <= {row.series for row in TABLE}


def test_what_is_not_known_yet_is_a_dash_and_no_error() -> None:
    now = {Subject("run", "r"): Numbers(1.0), Subject("store", "s"): Numbers(1.0)}
    text = "\n".join(lines_of(now, {}))
    assert "images per second              -" in text
    assert "s: nothing is encoded now" in text
    assert lines_of({}, {}) == ["nothing that is trained or encoded is known here"]


def test_bars_span_the_least_and_the_most() -> None:
    assert bars(deque([0.0, 7.0, 3.5])) == "▁█▅"
    assert bars(deque([2.0, 2.0])) == "▁▁"
    assert bars(deque([2.0])) == ""


def test_a_run_is_found_by_its_folder_and_the_watch_ends_when_it_does(
    endpoint: Any, tmp_path: Path
) -> None:
    address = endpoint.serve("127.0.0.1", 0)
    (tmp_path / "first").mkdir()
    place = tmp_path / "first/metrics.json"
    place.write_bytes(discovery(address, "run", "first"))
    config = WatchConfig(run="first", storage=str(tmp_path))
    pictures = watch(config, every_seconds=0.01)
    endpoint.update(MetricsReport(images=640, step=10, terms={"elbo": math.nan}))
    picture, _ = next(pictures)
    numbers = picture[Subject("run", "first")]
    assert numbers.of("vae_train_step") == 10
    assert numbers.of("vae_train_nats", "elbo") is None
    place.unlink()
    endpoint.close()
    assert list(pictures) == []
    with pytest.raises(RunError, match="nothing runs there now"):
        look(config)


def test_an_endpoint_that_died_is_an_error_and_no_end(endpoint: Any, tmp_path: Path) -> None:
    address = endpoint.serve("127.0.0.1", 0)
    (tmp_path / "first").mkdir()
    (tmp_path / "first/metrics.json").write_bytes(discovery(address, "run", "first"))
    pictures = watch(WatchConfig(run="first", storage=str(tmp_path)), every_seconds=0.01)
    next(pictures)
    endpoint.close()
    with pytest.raises(UnreachableError, match=address):
        next(pictures)


def test_once_prints_one_picture_and_ends(tmp_path: Path) -> None:
    made = Endpoint(ENCODING, "store", "s3://b/store", "1")
    made.update(EncodingReport(images=0, images_left=100, failed={"truncated": 0}))
    made.update(EncodingReport(images=30, images_left=70, failed={"truncated": 2}))
    address = made.serve("127.0.0.1", 0)
    found = warm.run(tmp_path, "jobs.watch", "--url", f"http://{address}/metrics", "--once")
    made.close()
    assert found.returncode == 0, found.stderr
    assert "s3://b/store: 30 images encoded, 70 left (30%)" in found.stdout
    assert "images without latents 2" in found.stdout
    assert "\033" not in found.stdout
    (store,) = json.loads(found.stdout.splitlines()[-1])["store"]
    assert store["vae_encode_images_left"] == {"": 70}
