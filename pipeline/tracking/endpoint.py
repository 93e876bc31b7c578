"""`/metrics` of one run or one encoding: its registry, fed by reports, and its HTTP server."""

import ipaddress
import math
import re
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from pipeline import storage
from pipeline.errors import ConfigError, RunError, StorageError
from pipeline.masking import safe_line, shell_word
from pipeline.tracking.metric import Metric, Report
from pipeline.tracking.metric_table import BUILD

_MOST_BYTES = 64 * 2**10
"""Of a discovery file, which has one line."""
_SHARED = ipaddress.ip_network("100.64.0.0/10")
"""Where clusters give pods addresses when they have used up the private ones."""
RELEASE_SECONDS = 10.0
"""A killed recorder's process is gone, and its port free, within a second or two."""


class Endpoint:
    """The metrics `rows` of what `label` names: `Endpoint(TRAINING, "run", "first", version())`.

    The first report of a group of workers says where counters begin: a continued run shows no
    burst. From then on they hold what was gained: steps that are replayed count once, and the
    seconds of a group of workers stay when another one takes its place.
    """

    def __init__(self, rows: Sequence[Metric], label: str, name: str, build: str) -> None:
        self.registry = CollectorRegistry()
        self._rows, self._name = rows, name
        self._lock = threading.Lock()
        self._has_begun = False
        self._seen: dict[tuple[str, int, str | None], float] = {}
        self._server: WSGIServer | None = None
        self._series = {row.name: self._make(row, label) for row in (*rows, BUILD)}
        self._take(BUILD, 0, build, 1.0, begins=False)

    def update(self, report: Report, restart: int | None = 0) -> None:
        """Takes a report of the worker group `restart` (None: there was none yet).

        What the report does not know leaves its metric as it is. So does what is not finite: one
        NaN would make each average over an hour NaN, and blind the alerts.
        """
        with self._lock:
            begins = not self._has_begun and restart is not None
            self._has_begun = self._has_begun or begins
            for row in self._rows:
                value = getattr(report, row.source)
                if value is None:
                    continue
                for label, number in value.items() if row.label else [(None, value)]:
                    if math.isfinite(number):
                        self._take(row, restart or 0, label, float(number), begins=begins)

    def serve(self, host: str, port: int) -> str:
        """Serves `/metrics` on HOST:PORT (0: a free one); returns where others find it."""
        try:
            self._server, _ = start_http_server(port, addr=host, registry=self.registry)
        except OSError as error:
            raise ConfigError(
                f"/metrics can't be served on {host}:{port}: {error.strerror or error}. Give "
                f"another address, or a free port by `--tracking.metrics {shell_word(host)}:0`."
            ) from None
        return f"{_own_host(host)}:{self._server.server_port}"

    def close(self) -> None:
        """Ends the server."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _take(
        self, row: Metric, restart: int, label: str | None, number: float, *, begins: bool
    ) -> None:
        series = self._series[row.name]
        child = series.labels(self._name, label) if row.label else series.labels(self._name)
        if isinstance(child, Gauge):
            child.set(number)
            return
        seen = (row.name, restart if row.per_restart else 0, label)
        known = not begins or row.since_first_start
        gain = number - self._seen.get(seen, 0.0) if known else 0.0
        if begins or gain > 0:
            child.inc(gain)
            self._seen[seen] = number

    def _make(self, row: Metric, label: str) -> Counter | Gauge:
        kind = Counter if row.kind == "counter" else Gauge
        labels = (label, row.label) if row.label else (label,)
        return kind(row.name, row.help, labels, registry=self.registry)


def refuse_taken(host: str, port: int) -> None:
    """Raises `ConfigError` where `/metrics` can't be served on HOST:PORT; any free port can.

    A recorder whose driver was killed holds its port for a moment, which is waited for.
    """
    trial = Endpoint((), "run", "trial", "")
    deadline = time.monotonic() + RELEASE_SECONDS
    while port:
        try:
            trial.serve(host, port)
        except ConfigError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            trial.close()
            return


def _own_host(host: str) -> str:
    """The host to name where it is served on every address: the one that leads out of here."""
    if host not in ("", "0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; an address kept for documentation
        except OSError:
            return "127.0.0.1"
        found: str = probe.getsockname()[0]
        return found


def discovery(address: str, label: str, name: str) -> bytes:
    """A file for Prometheus's file_sd: where a free port can be found."""
    return storage.canonical_json([{"targets": [address], "labels": {label: name}}])


def endpoint_of(url: str) -> str:
    """The address of `/metrics` that a discovery file names: http://HOST:PORT/metrics.

    Whoever may write the file chooses whom its readers ask: only a host of theirs, or of a network
    that is not the Internet's, is asked for nothing but metrics. Raises `RunError` for any other,
    `ObjectNotFoundError` for no file.
    """
    found = storage.parse_json(storage.read_bounded(url, _MOST_BYTES), url)
    target = ""
    if isinstance(found, list) and len(found) == 1 and isinstance(found[0], dict):
        targets = found[0].get("targets")
        if isinstance(targets, list) and len(targets) == 1:
            target = str(targets[0])
    host, _, port = target.rpartition(":")
    is_port = re.fullmatch(r"\d{1,5}", port, re.ASCII) is not None and 0 < int(port) < 65536
    if not is_port or not _is_near(host):
        raise RunError(
            f"{storage.shown(url)}: names {safe_line(repr(target)[:100])}, which is no HOST:PORT "
            "of this machine or of a private network. Nothing was asked for: if you trust it, name "
            "it yourself, `python -m jobs.watch --url http://HOST:PORT/metrics`."
        )
    return f"http://{target}/metrics"


def _is_near(host: str) -> bool:
    """Whether a host is this machine, or an address of a network of one's own."""
    if host in ("localhost", socket.gethostname(), socket.getfqdn()):
        return True
    try:
        address = ipaddress.ip_address(
            host[1:-1] if host.startswith("[") and host.endswith("]") else host
        )
    except ValueError:
        return False
    # A cloud tells a machine's secrets at an address that is local to its link.
    away = address.is_link_local or address.is_multicast or address.is_unspecified
    return not away and (address.is_private or address in _SHARED)


def forget(url: str, named: bytes) -> None:
    """Removes a discovery file, unless another process has put its own there since."""
    with suppress(StorageError):
        if storage.read(url) == named:
            storage.delete(url)
