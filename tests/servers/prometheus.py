"""A real Prometheus and its Pushgateway for tests, on loopback, in process groups of their own."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.rgw import free_ports

PROGRAMS = ("prometheus", "promtool", "prometheus-pushgateway")
_CONFIG = """\
global: {{scrape_interval: {interval}, scrape_timeout: {interval}, evaluation_interval: {interval}}}
rule_files: [{rules}]
scrape_configs:
  - job_name: vae-runs
    file_sd_configs: [{{files: [{files}], refresh_interval: 1s}}]
  - job_name: vae-pushgateway
    honor_labels: true
    static_configs: [{{targets: ["127.0.0.1:{pushgateway}"]}}]
"""


@dataclass(frozen=True)
class Series:
    """One element of an answer."""

    labels: dict[str, str]
    value: float


@dataclass
class PrometheusServer:
    """Scrapes every second what discovery files name: FOLDER/targets/*.json and `targets`."""

    folder: Path
    targets: Sequence[str] = ()
    rules: Path | None = None
    port: int = field(default_factory=lambda: free_ports(1)[0])
    pushgateway_port: int = field(default_factory=lambda: free_ports(1)[0])
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pushgateway(self) -> str:
        return f"http://127.0.0.1:{self.pushgateway_port}"

    def start(self) -> None:
        """Returns when both answer."""
        (self.folder / "targets").mkdir()
        config = self.folder / "prometheus.yml"
        config.write_text(
            _CONFIG.format(
                interval="1s",
                rules=json.dumps(str(self.rules)) if self.rules else "",
                files=", ".join(map(json.dumps, ["targets/*.json", *self.targets])),
                pushgateway=self.pushgateway_port,
            )
        )
        self._run(
            "prometheus", f"--config.file={config}", f"--storage.tsdb.path={self.folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        )  # fmt: skip
        self._run(  # it keeps nothing: Debian's build would read what another test's had kept
            "prometheus-pushgateway", f"--web.listen-address=127.0.0.1:{self.pushgateway_port}",
            "--persistence.file=",
        )  # fmt: skip
        self.until(lambda: all(map(_is_ready, (self.url, self.pushgateway))))

    def stop(self) -> None:
        for process in self._processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def scrape(self, discovery: Path) -> None:
        """From now on scrapes what the file at `discovery` names, whenever it does."""
        name = hashlib.sha256(str(discovery).encode()).hexdigest()[:12]
        (self.folder / "targets" / f"{name}.json").symlink_to(discovery)

    def query(self, expression: str) -> list[Series]:
        """The instant vector of `expression` now."""
        question = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{question}", timeout=60) as answer:
            found = json.load(answer)["data"]["result"]
        return [Series(each["metric"], float(each["value"][1])) for each in found]

    def value(self, expression: str) -> float | None:
        """The one value of `expression`, None where there is none yet."""
        found = self.query(expression)
        assert len(found) < 2, found
        return found[0].value if found else None

    def number(self, expression: str) -> float:
        """The one value of `expression`, which has one."""
        found = self.value(expression)
        assert found is not None, expression
        return found

    def until(self, condition: Callable[[], bool], seconds: float = 180) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.2)

    def _run(self, *command: str) -> None:
        with (self.folder / "log").open("a") as log:
            self._processes.append(
                subprocess.Popen(
                    command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
                )
            )


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False
