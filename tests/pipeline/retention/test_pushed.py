"""A Pushgateway keeps groups for ever: those of stores that are gone go with `--gc --delete`."""

import http.server
import threading
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import push_to_gateway

from jobs.stores import main
from pipeline.config import EncodingTrackingConfig, StoresConfig
from pipeline.errors import UnreachableError
from pipeline.retention.pushed import JOB, pushed_groups
from pipeline.tracking.encoding_metrics import JOB as PUSHED
from pipeline.tracking.encoding_metrics import EncodingEnd, tell_outcome
from tests.servers.prometheus import PrometheusServer
from tests.support.small_store import encode, small_dataset, small_vae


def test_groups_of_stores_that_are_gone_go_and_no_other(
    prometheus: PrometheusServer, tmp_path: Path
) -> None:
    here, gone = str(tmp_path / "here"), str(tmp_path / "gone")
    encode(small_vae(), small_dataset(tmp_path, range(10)), here)
    gateway = prometheus.pushgateway
    for store in (here, gone):
        tracking = EncodingTrackingConfig(pushgateway=gateway)
        tell_outcome(store, tracking, 0.0, EncodingEnd(True, 1, 0, 0))
    other = CollectorRegistry()
    Gauge("of_somebody_else", "kept", registry=other).set(1)
    push_to_gateway(gateway, "backup", other, {"store": gone})

    def ours() -> dict[str, bool]:
        return {g.store: g.gone for g in pushed_groups(gateway) if g.store in (here, gone)}

    assert ours() == {here: False, gone: True}
    told = main(StoresConfig(pushgateway=gateway, gc=True))
    assert any(f"{gone}: would go" in line for line in told.summary)
    assert ours() == {here: False, gone: True}, "a dry run"
    main(StoresConfig(pushgateway=gateway, gc=True, delete=True))
    prometheus.until(lambda: ours() == {here: False}, 60)  # it answers 202: queued
    prometheus.until(lambda: bool(prometheus.query("of_somebody_else")))
    assert JOB == PUSHED


def test_what_is_no_pushgateway_is_said(prometheus: PrometheusServer) -> None:
    with pytest.raises(UnreachableError, match="Is it a Pushgateway"):
        pushed_groups(prometheus.url)


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"null", b"[]", b"{}", b'{"data": 5}', b'{"data": [{"labels": null}]}'],
)
def test_a_server_that_answers_something_else_is_named_in_one_line(body: bytes) -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        gateway = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(UnreachableError, match="Is it a Pushgateway") as error:
            pushed_groups(gateway)
        server.shutdown()
    assert str(error.value).startswith(f"{gateway}/api/v1/metrics: an answer")
