"""One address is a run's own endpoint or a Prometheus: its path tells."""

import pytest
from pydantic import ValidationError

from pipeline.config import WatchConfig


def test_what_ends_in_metrics_is_one_endpoint_and_any_other_address_a_prometheus() -> None:
    one = WatchConfig(url="http://127.0.0.1:9464/metrics")
    assert (one.endpoint, one.prometheus) == ("http://127.0.0.1:9464/metrics", None)
    many = WatchConfig(url="http://prometheus:9090")
    assert (many.endpoint, many.prometheus) == (None, "http://prometheus:9090")
    run = WatchConfig(run="first")
    assert (run.endpoint, run.prometheus) == (None, None)


def test_what_is_watched_is_one_thing() -> None:
    with pytest.raises(ValidationError, match="give one of"):
        WatchConfig(run="first", url="http://prometheus:9090")
    with pytest.raises(ValidationError, match="give one of"):
        WatchConfig()
