"""A real MLflow server for tests, on loopback, which can be stopped and started again midway."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.rgw import free_ports

READY_SECONDS = 240


@dataclass
class MlflowServer:
    """Tracking, registry and proxied artifacts below `folder`; `store` is its database's URI."""

    folder: Path
    store: str
    port: int = field(default_factory=lambda: free_ports(1)[0])
    _process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when the server answers; one that runs already is left alone."""
        if self._process is not None:
            return
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1",
            "--port", str(self.port), "--workers", "1", "--backend-store-uri", self.store,
            "--serve-artifacts", "--artifacts-destination", (self.folder / "artifacts").as_uri(),
        ]  # fmt: skip
        environment = {
            **os.environ,
            # Seven consumers of a job queue that nothing here uses: 0.9 GB and 8 s.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        with (self.folder / "mlflow.log").open("a") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + READY_SECONDS
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError((self.folder / "mlflow.log").read_text())
            time.sleep(0.1)

    def stop(self) -> None:
        """Kills the server with all its children; its database and artifacts stay."""
        if self._process is not None:
            self.send(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the whole group: under SIGSTOP it takes connections, never answers."""
        assert self._process is not None, "the server runs"
        os.killpg(self._process.pid, number)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False
