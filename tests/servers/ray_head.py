"""A real Ray head with dashboard and token on loopback, whose parts tests kill one by one."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.servers.rgw import free_ports
from tests.support.warm import ROOT

TOKEN = "c0ffee" * 8


@dataclass
class RayHead:
    """`start` may be called again after `kill`: another head then answers at the same address."""

    cpus: int = 2
    port: int = field(default_factory=lambda: free_ports(1)[0])
    dashboard_port: int = field(default_factory=lambda: free_ports(1)[0])
    # A short path: the sockets inside may not exceed 107 characters.
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="ray-")))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What `jobs.submit` needs; what a driver needs to join comes from Ray itself."""
        return {
            "RAY_API_SERVER_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
        }

    def start(self) -> None:
        """Returns when the Jobs API answers. Not `--block`: that ends all when one part dies."""
        ports = free_ports(5)
        environment = {
            **os.environ,
            **self.environment,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RAY_USAGE_STATS_ENABLED": "0",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--head",
            "--node-ip-address=127.0.0.1", f"--port={self.port}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard_port}", f"--num-cpus={self.cpus}",
            "--object-store-memory=100000000", f"--temp-dir={self.folder}", "--disable-usage-stats",
            "--min-worker-port=0", "--max-worker-port=0", f"--ray-client-server-port={ports[0]}",
            f"--dashboard-agent-listen-port={ports[1]}", f"--dashboard-agent-grpc-port={ports[2]}",
            f"--metrics-export-port={ports[3]}",
        ]  # fmt: skip
        log = self.folder.parent / f"{self.folder.name}.log"
        with log.open("a") as out:
            done = subprocess.run(
                command, env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                timeout=240,
            )  # fmt: skip
        assert done.returncode == 0, log.read_text()
        deadline = time.monotonic() + 600
        while not self._answers():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)

    def send(self, number: signal.Signals, word: str = "") -> list[int]:
        """A signal to those of its processes whose command line holds `word`."""
        named = [each for each in _processes() if self._is_named(each) and word in each.line]
        return [each.pid for each in named if _sent(each.pid, number)]

    def kill(self) -> None:
        """SIGKILL to everything; drivers end when their raylet is gone.

        To agents and workers as well, which rename themselves: they would spin for minutes.
        """
        while True:
            all_of_them = _processes()
            own = {each.pid for each in all_of_them if self._is_named(each)}
            own |= {each.pid for each in all_of_them if each.parent in own}
            if not [pid for pid in own if _sent(pid, signal.SIGKILL)]:
                return
            time.sleep(0.2)

    def _is_named(self, process: "_Process") -> bool:
        """Whether its command line holds the head's folder, or the address of its store."""
        return str(self.folder) in process.line or f":{self.port}\0" in process.line

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder.parent / f"{self.folder.name}.log").unlink(missing_ok=True)

    def _answers(self) -> bool:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        request = urllib.request.Request(f"{self.address}/api/jobs/", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False


class _Process(NamedTuple):
    pid: int
    parent: int
    line: str
    """Its arguments, a NUL after each; empty once it has ended."""


def _processes() -> list[_Process]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (line := (entry / "cmdline").read_text()):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                found.append(_Process(int(entry.name), parent, line))
        except OSError:
            continue
    return found


def _sent(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
