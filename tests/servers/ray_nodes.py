"""A real Ray cluster of several nodes on this machine, each a `ray start --block` of its own."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.rgw import free_ports
from tests.support.killing import descendants
from tests.support.warm import ROOT

_RAY = Path(sys.executable).with_name("ray")
_TOKEN = "0" * 48

_ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": _TOKEN,
    "RAY_USAGE_STATS_ENABLED": "0",
    # All nodes share this machine, and its host name need not be an address of it.
    "GLOO_SOCKET_IFNAME": "lo",
    # A dead node is noticed after 2 s instead of 16 s.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_timeout_ms": "1000",
}


@dataclass
class RayNodes:
    """Nodes by name; the first one started is the head. `folder` needs a short path: sockets."""

    folder: Path
    extra: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=lambda: free_ports(1)[0])
    dashboard_port: int | None = None
    _nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What a driver needs to join."""
        return {**_ENVIRONMENT, **self.extra, "RAY_ADDRESS": f"127.0.0.1:{self.port}"}

    def start(self, name: str, cpus: int) -> None:
        """Returns when the node is part of the cluster."""
        place = (
            ("--head", f"--port={self.port}", *self._dashboard(),
             f"--temp-dir={self.folder}", f"--ray-client-server-port={free_ports(1)[0]}")
            if not self._nodes
            else (f"--address=127.0.0.1:{self.port}",)
        )  # fmt: skip
        command = [
            str(_RAY), "start", "--block", *place, "--node-ip-address=127.0.0.1",
            f"--num-cpus={cpus}", "--object-store-memory=100000000", "--disable-usage-stats",
            "--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0",
        ]  # fmt: skip
        environment = {**os.environ, **_ENVIRONMENT, **self.extra}
        with self._log(name).open("w") as log:
            self._nodes[name] = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 600
        while "Ray runtime started" not in self._log(name).read_text():
            if self._nodes[name].poll() is not None or time.monotonic() > deadline:
                raise AssertionError(self._log(name).read_text())
            time.sleep(0.1)

    def _dashboard(self) -> tuple[str, ...]:
        """The Jobs API is a part of it."""
        if self.dashboard_port is None:
            return ("--include-dashboard=false",)
        return ("--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard_port}")

    def _log(self, name: str) -> Path:
        return self.folder.parent / f"{self.folder.name}-{name}.log"

    def send(self, name: str, number: signal.Signals) -> None:
        """To `ray start` itself: on SIGTERM it has its node drained, as a deleted pod would be."""
        os.kill(self._nodes[name].pid, number)

    def kill_raylet(self, name: str) -> None:
        """SIGKILL to the node's raylet, whose workers end with it; `ray start` then ends too."""
        (raylet,) = (
            pid
            for pid, line in descendants(self._nodes[name].pid).items()
            if line.split("\0", 1)[0].endswith("/raylet/raylet")
        )
        os.kill(raylet, signal.SIGKILL)
        self._nodes[name].wait(timeout=600)

    def wait(self, name: str, seconds: float) -> None:
        """Returns when the node has ended by itself."""
        self._nodes[name].wait(timeout=seconds)

    def processes(self, word: str) -> list[int]:
        """Process ids of all nodes whose command line holds `word`."""
        return [
            pid
            for node in self._nodes.values()
            for pid, line in descendants(node.pid).items()
            if word in line
        ]

    def stop(self) -> None:
        """SIGKILL to everything that was started here."""
        for node in reversed(self._nodes.values()):
            below = descendants(node.pid)
            for pid in (node.pid, *below):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            node.wait()
