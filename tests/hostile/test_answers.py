"""Servers that are somebody else's: endless, slow, nonsense, elsewhere. One line, and no more."""

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.config import WatchConfig
from pipeline.errors import (
    RunError,
    StorageError,
    TrackingError,
    UnreachableError,
)
from pipeline.retention.pushed import _is_gone
from pipeline.sources.input_lists import listed_inputs
from pipeline.tracking.endpoint import endpoint_of
from pipeline.tracking.mlflow_client import check_artifacts_root
from pipeline.tracking.terminal import look
from pipeline.web import ask
from tests.support.hostile import job, refused
from tests.support.small_store import write_images


@dataclass
class Stranger:
    """A server that says `body` to everything, and what it was asked for."""

    body: bytes = b""
    moved: dict[str, str] = field(default_factory=dict)
    kind: str = "whole"
    asked: list[str] = field(default_factory=list)
    address: str = ""


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    said = Stranger()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            said.asked.append(self.path)
            if self.path in said.moved:
                self.send_response(302)
                self.send_header("Location", said.moved[self.path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if said.kind == "slow head":
                self._drops(b"HTTP/1.0 200 OK\r\nX: " + b"x" * 1000)
                return
            self.send_response(200)
            if said.kind == "whole":
                self.send_header("Content-Length", str(len(said.body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if said.kind == "slow":
                self._drops(b"x" * 1000)
            elif said.kind == "endless":
                try:
                    for _ in range(1000):
                        self.wfile.write(b"x" * 2**20)
                except OSError:
                    return
            else:
                self.wfile.write(said.body)

        do_HEAD = do_GET  # noqa: N815 - http.server's own name

        def _drops(self, data: bytes) -> None:
            try:
                for at in range(len(data)):
                    self.wfile.write(data[at : at + 1])
                    self.wfile.flush()
                    time.sleep(0.05)
            except OSError:
                return

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.daemon_threads = True
        thread = threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        said.address = f"http://127.0.0.1:{made.server_port}"
        yield said
        made.shutdown()
        thread.join()


def test_an_answer_without_end_is_read_no_further_than_is_allowed(stranger: Stranger) -> None:
    stranger.kind = "endless"
    with pytest.raises(UnreachableError, match="more than 3,000,000 bytes"):
        ask("GET", stranger.address, most_bytes=3_000_000)
    assert "more than 67,108,864 bytes" in refused(
        "watch", "--url", f"{stranger.address}/metrics", "--once"
    )


@pytest.mark.parametrize("kind", ["slow", "slow head"])
def test_an_answer_in_drops_is_given_up(stranger: Stranger, kind: str) -> None:
    stranger.kind = kind
    with pytest.raises(UnreachableError, match="does not answer"):
        ask("GET", stranger.address, seconds=0.5)


def prometheus(*results: object) -> bytes:
    return json.dumps({"status": "success", "data": {"result": list(results)}}).encode()


STEP: dict[str, object] = {"__name__": "vae_train_step", "run": "r"}
NONSENSE = [
    prometheus({"metric": STEP, "value": [1, "x"]}),
    prometheus({"metric": STEP, "value": ["x", "1"]}),
    prometheus({"metric": STEP, "value": [1]}), prometheus({"metric": STEP, "value": "12"}),
    prometheus({"metric": STEP, "value": ["nan", "1"]}), prometheus({"metric": STEP}),
    prometheus({"metric": [], "value": [1, "1"]}), prometheus({"value": [1, "1"]}),
    prometheus({"metric": STEP | {"run": {}}, "value": [1, "1"]}),
    prometheus({"metric": STEP | {"run": ["a"]}, "value": [1, "1"]}), prometheus(5, None),
    b"[]", b"5", b"null", b'"data"', b'{"data": 5}', b'{"data": {"result": 5}}', b"{}", b"",
    b"\xff\xfe", b"[" * 10**5, b'{"a":' * 10**5, b"9" * 10**5, b"<html>\nno\n</html>", b"NaN",
    prometheus({"metric": STEP, "value": [10**400, "1"]}), prometheus([STEP, [1, "1"]]),
]  # fmt: skip


@pytest.mark.parametrize("body", NONSENSE)
def test_a_prometheus_or_a_dashboard_of_nonsense_is_told_in_one_line(
    stranger: Stranger, body: bytes
) -> None:
    stranger.body = body
    refused("watch", "--url", stranger.address, "--once")
    if body != b"[]":  # which lists no jobs
        refused("submit", "--list", "--address", stranger.address)


@pytest.mark.parametrize(
    "jobs",
    [[5], [None], ["x"], [{"submission_id": "a"}], {"a": 1}, [[]],
     [{"submission_id": 5, "status": "RUNNING", "entrypoint": "x"}],
     [{"submission_id": "a", "status": [], "entrypoint": "x"}],
     [{"submission_id": "a", "status": "RUNNING", "entrypoint": {}}],
     [{"submission_id": "a", "status": "RUNNING", "entrypoint": "x", "driver_exit_code": "1"}],
     [{"submission_id": "a", "status": "RUNNING", "entrypoint": "x", "message": 5}],
     [{"submission_id": "a", "status": "R", "entrypoint": "x", "start_time": "y"},
      {"submission_id": "b", "status": "R", "entrypoint": "x", "start_time": 5}]],
)  # fmt: skip
def test_jobs_of_other_shapes_are_no_ray_dashboards(stranger: Stranger, jobs: object) -> None:
    stranger.body = json.dumps(jobs).encode()
    assert "no Ray dashboard" in refused("submit", "--list", "--address", stranger.address)


def test_the_numbers_of_a_prometheus_that_are_huge_are_drawn(stranger: Stranger) -> None:
    stranger.body = prometheus(
        {"metric": STEP, "value": [1e308, "1e308"]},
        {"metric": {"__name__": "vae_train_target_steps", "run": "r"}, "value": [1, "1e-308"]},
        {"metric": STEP | {"run": "\x1b[2J\nOK: all is well"}, "value": [1, "NaN"]},
    )
    assert job("watch", "--url", stranger.address, "--once")[0] == 0


@pytest.mark.parametrize("text", [b"vae_train_step{", b"{} 1", b'a{b="c} 1', b"\xff", b"a 1 2 3 4"])
def test_text_that_is_no_metrics_is_told(stranger: Stranger, text: bytes) -> None:
    stranger.body = text
    with contextlib.suppress(UnreachableError):
        look(WatchConfig(url=f"{stranger.address}/metrics"))


def test_a_password_in_somebody_elses_command_is_shown_in_no_form(
    stranger: Stranger, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "env HF_TOKEN=planted bash -c 'python x --password planted https://u:planted@h/x'"
    stranger.body = json.dumps([
        {"submission_id": "a", "status": "RUNNING", "entrypoint": command,
         "message": "\x1b[2J at https://u:planted@h\nOK: all is well"},
    ]).encode()  # fmt: skip
    code, said = job("submit", "--list", "--json", "--address", stranger.address)
    told = capsys.readouterr().out + said
    assert code == 0
    assert json.loads(told.splitlines()[-1])["jobs"][0]["status"] == "RUNNING"
    assert "planted" not in told
    assert "\x1b" not in told
    assert "\nOK" not in told


@pytest.mark.parametrize(
    "target",
    ["{}/evil?x=", "{}/metrics#", "u:p@{}", "metadata.google.internal:80", "169.254.169.254:80",
     "8.8.8.8:53", "example.org:9090", "{}@example.org:80", "", "localhost", "localhost:0",
     "localhost:99999", "localhost:-1", "localhost:80\r\nX: y", "[::1]@8.8.8.8:80", "[fe80::1]:80",
     "0.0.0.0:80", "224.0.0.1:80", "0x7f000001:80", "localhost:٣", 5, None, [], {}],
)  # fmt: skip
def test_a_discovery_file_names_no_address_of_the_internet(
    stranger: Stranger, tmp_path: Path, target: object
) -> None:
    here = stranger.address.removeprefix("http://")
    target = target.format(here) if isinstance(target, str) else target
    (tmp_path / "r").mkdir()
    (tmp_path / "r/run.json").write_text("{}")
    (tmp_path / "r/metrics.json").write_text(json.dumps([{"targets": [target]}]))
    said = refused("watch", "--run", "r", "--storage", str(tmp_path), "--once")
    assert "--url" in said
    assert stranger.asked == []


@pytest.mark.parametrize("text", ["{}", "[]", "[[]]", '[{"targets": 5}]', "5", "[" * 10**5, ""])
def test_a_discovery_file_of_nonsense_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises((RunError, StorageError)):
        endpoint_of(str(tmp_path / "metrics.json"))


@pytest.mark.parametrize(
    "target", ["127.0.0.1:9", "localhost:9090", "10.1.2.3:80", "[::1]:80", "100.64.1.2:9091"]
)
def test_a_discovery_file_of_this_program_is_followed(tmp_path: Path, target: str) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps([{"targets": [target]}]))
    assert endpoint_of(str(tmp_path / "metrics.json")) == f"http://{target}/metrics"


OUT = ["%2e%2e/secret.png", "%2E./secret.png", ".%2e/secret.png", "%252e%252e/secret.png",
       "..%2fsecret.png", "..%5csecret.png", "..\\secret.png", "a/%2e%2e/%2e%2e/secret.png",
       "..;/secret.png", "%25252e%25252e/secret.png", "a/..%2f..%2fsecret.png",
       "%2e%2e%2fsecret.png", "%09../secret.png"]  # fmt: skip


@pytest.mark.parametrize("row", OUT)
def test_a_row_leads_out_of_below_by_no_way_of_writing(
    stranger: Stranger, tmp_path: Path, row: str
) -> None:
    (tmp_path / "l.csv").write_text(f"path\n{stranger.address}/below/{row}\n")
    (found,) = listed_inputs(str(tmp_path / "l.csv"), (f"{stranger.address}/below",), {})
    assert (found.status, found.reason) == ("rejected", "outside")
    assert stranger.asked == []


@pytest.mark.parametrize(
    "to",
    ["/secret.png", "http://127.0.0.1:9/x.png", "../secret.png", "//127.0.0.1:9/x", "%2e%2e/x.png",
     "file:///etc/passwd"],
)  # fmt: skip
def test_a_redirect_leads_no_row_elsewhere(stranger: Stranger, tmp_path: Path, to: str) -> None:
    write_images(tmp_path / "images", range(1))
    (image,) = (tmp_path / "images").rglob("*.png")
    stranger.body = image.read_bytes()
    (tmp_path / "l.csv").write_text(f"path\n{stranger.address}/below/a.png\n")
    below = (f"{stranger.address}/below",)
    (before,) = listed_inputs(str(tmp_path / "l.csv"), below, {})
    assert before.read() == stranger.body
    stranger.moved["/below/a.png"] = to
    (found,) = listed_inputs(str(tmp_path / "l.csv"), below, {})
    assert (found.status, found.reason) == ("rejected", "missing")
    with pytest.raises(Exception, match=r"was not followed|does not exist"):
        before.read()
    assert set(stranger.asked) == {"/below/a.png"}
    stranger.moved["/below/a.png"] = "b.png"
    (found,) = listed_inputs(str(tmp_path / "l.csv"), below, {})
    assert found.status == "", "what stays in its folder is followed"


@pytest.mark.parametrize(
    ("root", "uri", "refused"),
    [
        ("mlflow-artifacts:/a", "http://h:5000", False),
        ("mlflow-artifacts://h:5000/a", "http://h:5000", False),
        ("mlflow-artifacts://H:5000/a", "http://u:p@h:5000", False),
        ("mlflow-artifacts://h/a", "https://h", False),
        ("mlflow-artifacts://h:443/a", "https://h/path", False),
        ("s3://b/a", "http://h", False), ("file:///a", "sqlite:///x", False), ("/a", "x", False),
        ("mlflow-artifacts://evil/a", "http://h", True),
        ("mlflow-artifacts://h:5001/a", "http://h:5000", True),
        ("mlflow-artifacts://h/a", "http://h:5000", True),
        ("mlflow-artifacts://u:p@h:5000/a", "http://h:5000", True),
        ("mlflow-artifacts://h:5000@evil/a", "http://h:5000", True),
        ("mlflow-artifacts://h.evil/a", "http://h", True),
        ("mlflow-artifacts://h/a", "sqlite:///x", True),
        ("MLFLOW-artifacts://e/a", "http://h", True),
        ("http://h/a", "http://h", True), ("https://evil/a", "http://h", True),
        ("mlflow-artifacts://h:x/a", "http://h:5000", True), ("ftp://h/a", "http://h", True),
    ],
)  # fmt: skip
def test_artifacts_are_asked_of_the_tracking_server_alone(
    root: str, uri: str, *, refused: bool
) -> None:
    if refused:
        with pytest.raises(TrackingError, match="another server"):
            check_artifacts_root(root, uri)
    else:
        check_artifacts_root(root, uri)


@pytest.mark.parametrize(
    ("url", "below"),
    [("http://h/d", ()), ("https://h/d", ("https://h/e",)), ("http://h/d", ("http://h/dd",)),
     ("http://h/e/%2e%2e/d", ("http://h/e",)), ("simplecache::http://h/d", ("http://h",)),
     ("hdfs://h/d", ()), ("gs://b/d", ())],
)  # fmt: skip
def test_what_a_file_names_on_the_network_is_asked_only_if_this_command_names_it(
    url: str, below: tuple[str, ...]
) -> None:
    with pytest.raises(StorageError, match="was not asked for"):
        storage.check_place(url, below, "runs/r/run.json", "--data")
    assert storage.check_place("http://h/d/x", ("http://h/d/",), "r", "--data") == "http://h/d/x"
    assert storage.check_place("s3://b/d", (), "r", "--data") == "s3://b/d"


def test_a_pushgateway_makes_nobody_ask_the_store_that_it_names(stranger: Stranger) -> None:
    assert not _is_gone(f"{stranger.address}/store")
    assert stranger.asked == []
