"""A real training and a real encoding under a real Prometheus: panels, counters, secrets, ports.

Both read from the real S3 server through a proxy that fails now and then, some images are broken,
and one worker is killed: so that every metric there is has something to say.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from jobs.demo import write_digits
from k8s.monitoring import dashboards
from pipeline.config import PackConfig
from pipeline.packing.pack import pack
from pipeline.tracking.metric_table import OUTCOME
from tests.servers import rgw
from tests.servers.fault_proxy import FaultProxy, Rule
from tests.servers.mlflow import MlflowServer
from tests.servers.prometheus import PrometheusServer, missing_programs
from tests.servers.rgw import SECRET_KEY
from tests.support import warm
from tests.support.killing import descendants, finish, kill_all, start_job
from tests.support.warm import ROOT

# A minute on an idle machine; on a loaded one, two.
pytestmark = pytest.mark.chaos

PASSWORD, TOKEN = "planted-mlflow-password", "5ec2e7" * 8
SECRETS = (SECRET_KEY, PASSWORD, TOKEN)
TRAIN = (
    "--run", "r", "--workers", "2", "--steps", "1000000", "--global-batch-size", "64",
    "--image-size", "8", "--channels", "1", "--model.kind", "mlp", "--checkpoint-every", "100",
    "--evaluate-every", "100", "--loader.bad-fraction", "1", "--loader.cache-folder", "cache",
    "--tracking.register-every", "200", "--tracking.model", "watched@candidate",
)  # fmt: skip


@dataclass
class Seen:
    """What was found while training and encoding went on."""

    prometheus: PrometheusServer
    folder: Path
    counters: dict[str, float] = field(default_factory=dict)
    panels: set[str] = field(default_factory=set)
    texts: dict[str, str] = field(default_factory=dict)
    training_listens: dict[str, str] = field(default_factory=dict)
    encoding_listens: dict[str, str] = field(default_factory=dict)
    trained: dict[str, Any] = field(default_factory=dict[str, Any])
    encoded: dict[str, Any] = field(default_factory=dict[str, Any])


def dashboard_queries() -> dict[str, str]:
    """Of every panel, as Grafana would send them for all runs and stores."""
    return {
        f"{board['uid']}: {panel['title']}": re.sub(
            r"\$(run|store)", ".*", panel["targets"][0]["expr"].replace("$__rate_interval", "1m")
        )
        for board in dashboards().values()
        for panel in board["panels"]
    }


def listening(pid: int) -> dict[str, str]:
    """ADDRESS:PORT in /proc's own spelling -> command, of every TCP port below a process."""
    inodes = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A":  # LISTEN
                inodes[f"socket:[{columns[9]}]"] = columns[1]
    found = {}
    for each, command in {pid: "driver", **descendants(pid)}.items():
        try:
            for descriptor in (Path("/proc") / str(each) / "fd").iterdir():
                address = inodes.get(os.readlink(descriptor))
                if address:
                    found[address] = command.replace("\0", " ")
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    """One with our own rules; the session's has none."""
    if missing_programs():
        pytest.skip("Prometheus is not installed: `make servers` installs it")
    folder = tmp_path_factory.mktemp("prometheus")
    rules = yaml.safe_load((ROOT / "k8s/base/monitoring/rules.yaml").read_text())["spec"]
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    server = PrometheusServer(folder, rules=folder / "rules.yml")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def operated(
    _s3_process: rgw.S3Server,
    _mlflow_process: MlflowServer,
    prometheus: PrometheusServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Seen]:
    """Trains, kills a worker, stops, encodes; everything that can be asked only meanwhile."""
    seen = Seen(prometheus, tmp_path_factory.mktemp("operated"))
    # A short path: Ray's sockets may not exceed 107 characters.
    short = Path(tempfile.mkdtemp(prefix="op-"))
    _mlflow_process.start()
    environment = {
        **_s3_process.environment,
        "MLFLOW_TRACKING_URI": _mlflow_process.uri,
        "MLFLOW_TRACKING_USERNAME": "planted-user",
        "MLFLOW_TRACKING_PASSWORD": PASSWORD,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "TMPDIR": str(short),
    }
    with FaultProxy(_s3_process.port) as proxy, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        seen.texts["bucket"] = _s3_process.bucket()
        data = broken_digits(seen.folder, seen.texts["bucket"])
        proxy.rules = [Rule(r"^GET .*[.]tar", "status", probability=0.3)]
        seen.trained = trained(seen, data, short)
        proxy.rules = [Rule(r"^GET .*[.]tar", "slow", bytes_per_second=20_000)]
        seen.encoded = encoded(seen, data, proxy)
        # Not through the proxy: it stalls where S3 refuses a body before it was read.
        patch.setenv("AWS_ENDPOINT_URL", _s3_process.environment["AWS_ENDPOINT_URL"])
        complaints(seen)
    for path in _mlflow_process.folder.rglob("*"):
        if path.is_file():
            seen.texts[f"mlflow/{path.name}"] = path.read_bytes().decode(errors="replace")
    yield seen
    shutil.rmtree(short, ignore_errors=True)


def broken_digits(folder: Path, bucket: str) -> str:
    """Packed to S3; in one of 20 the pixels are cut off, which shows when it is decoded."""
    write_digits(folder / "images", range(400))
    for path in sorted((folder / "images").rglob("*.png"))[::20]:
        path.write_bytes(path.read_bytes()[:-30])
    source, output = str(folder / "images"), f"{bucket}/data"
    pack(
        PackConfig(
            source=(source,), output=output, holdout=0.1, workers=1, verify="header",
            shard_bytes=60_000,
        )
    )  # fmt: skip
    return f"{output}/train"


def look(seen: Seen, discovery: Path) -> set[str]:
    """The panels that have had data by now. Notes what the endpoint itself says."""
    queries = dashboard_queries()
    for title in queries.keys() - seen.panels:
        if seen.prometheus.query(queries[title]):
            seen.panels.add(title)
    if discovery.exists():
        (address,) = re.findall(r'"targets":\["([^"]+)"\]', discovery.read_text())
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as answer:
            seen.texts[f"{discovery}: endpoint"] = answer.read().decode()
        seen.texts[f"{discovery}: address"] = address
    return seen.panels


def watched(seen: Seen, process: subprocess.Popen[str], over: Callable[[], bool]) -> None:
    """Returns when `over`; the process lives until then."""

    def done() -> bool:
        assert process.poll() is None, (seen.folder / "log").read_text()[-3000:]
        return over()

    seen.prometheus.until(done, 240)


def trained(seen: Seen, data: str, short: Path) -> dict[str, Any]:
    process = start_job(seen.folder, "jobs.train", "--data", data, *TRAIN)
    try:
        return _trained(seen, process, short)
    finally:
        if process.poll() is None:
            kill_all(process)


def _trained(seen: Seen, process: subprocess.Popen[str], short: Path) -> dict[str, Any]:
    run, number = seen.folder / "runs/r", seen.prometheus.number
    value = seen.prometheus.value
    seen.prometheus.scrape(run / "metrics.json")
    watched(seen, process, lambda: (value("vae_checkpoint_step") or 0) > 0)
    before = number("vae_train_images_total")
    victim = next(p for p, line in descendants(process.pid).items() if "RayTrainWorker" in line)
    os.kill(victim, signal.SIGKILL)
    watched(seen, process, lambda: value("vae_train_restarts_total") == 1)
    restarted = number("vae_train_images_total")
    watched(seen, process, lambda: number("vae_train_images_total") > restarted + 2000)
    seen.counters = {
        "before": before,
        "after": number("vae_train_images_total"),
        "resets": number("resets(vae_train_images_total[10m])"),
        "images": number("rate(vae_train_images_total[10m])"),
        "steps": number("rate(vae_train_steps_total[10m])"),
        "goodput": number("vae:goodput:share5m"),
    }
    queries = dashboard_queries()
    wanted = {t for t, q in queries.items() if t.startswith("vae-training") and "gpu" not in q}
    try:
        watched(seen, process, lambda: wanted <= look(seen, run / "metrics.json"))
    except AssertionError:
        print("no data:", wanted - seen.panels)
    seen.texts["jobs.watch"] = picture(seen, "--run", "r")
    seen.texts["jobs.watch of prometheus"] = picture(seen, "--url", seen.prometheus.url)
    seen.training_listens = listening(process.pid)
    for path in short.glob("vae-ray-*/session_2*/**/*"):
        if path.is_file() and not path.is_symlink():
            seen.texts[f"ray/{path.name}"] = path.read_bytes().decode(errors="replace")
    (run / "STOP").touch()
    return finish(process)


def picture(seen: Seen, *flags: str) -> str:
    found = warm.run(seen.folder, "jobs.watch", "--once", *flags)
    assert found.returncode == 0, found.stderr
    return found.stdout


def encoded(seen: Seen, data: str, proxy: FaultProxy) -> dict[str, Any]:
    store = seen.folder / "store"
    seen.prometheus.scrape(store / "attempts/metrics.json")
    process = start_job(
        seen.folder, "jobs.encode", "--model", "models:/watched@candidate", "--data", data,
        "--output", "store", "--actors", "0", "--bad-fraction", "1", "--tracking.pushgateway",
        seen.prometheus.pushgateway,
    )  # fmt: skip
    queries = dashboard_queries()
    outcome = {t for t, query in queries.items() if any(row.series in query for row in OUTCOME)}
    wanted = {title for title in queries if title.startswith("vae-encoding")} - outcome
    try:
        watched(
            seen, process,
            lambda: wanted <= look(seen, store / "attempts/metrics.json"),
        )  # fmt: skip
        seen.encoding_listens = listening(process.pid)
        seen.texts["jobs.watch of the store"] = picture(seen, "--store", "store")
    finally:
        proxy.rules = []
        if process.poll() is None and not wanted <= seen.panels:
            kill_all(process)
    result = finish(process)
    seen.prometheus.until(lambda: outcome <= look(seen, store / "attempts/metrics.json"))
    return result


def complaints(seen: Seen) -> None:
    """Errors of jobs that have a secret at hand."""
    wrong = {"AWS_SECRET_ACCESS_KEY": f"{SECRET_KEY}-but-wrong"}
    away = {
        "MLFLOW_TRACKING_URI": f"http://planted-user:{PASSWORD}@127.0.0.1:9",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    data = ("--dataset", f"{seen.texts['bucket']}/data/train")
    for name, environment, arguments in (
        ("wrong key", wrong, ("jobs.verify", *data)),
        ("no mlflow", away, ("jobs.models",)),
        ("doctor", away | wrong, ("jobs.doctor", "--storage", seen.texts["bucket"])),
    ):
        found = warm.run(seen.folder, *arguments, **environment)
        assert found.returncode == 1, found.stderr
        seen.texts[name] = found.stdout + found.stderr


def test_counters_go_on_when_a_worker_is_killed_and_rates_are_those_of_the_run(
    operated: Seen,
) -> None:
    found = operated.counters
    assert found["after"] > found["before"] > 0
    assert found["resets"] == 0
    assert found["images"] > 0
    # 64 images a step, less the broken ones (1 in 20) and what the last batch of an epoch lacks.
    assert 0.7 * 64 < found["images"] / found["steps"] <= 64.01
    assert 0 < found["goodput"] <= 1.01
    assert operated.trained["reason"] == "stopped"


def test_every_panel_of_the_dashboards_has_data(operated: Seen) -> None:
    # The share of a GPU's peak is no number of a machine without one.
    without = {
        t for t, q in dashboard_queries().items() if "gpu" in q and not torch.cuda.is_available()
    }
    assert set(dashboard_queries()) - operated.panels == without


def test_the_terminal_shows_the_run_and_the_store(operated: Seen) -> None:
    for name in ("jobs.watch", "jobs.watch of prometheus"):
        text = operated.texts[name]
        assert re.search(r"^r: step [\d,]+ of 1,000,000", text, re.MULTILINE), text
        assert re.search(r"images per second +[\d,]+", text), text
        assert re.search(r"restarts 1, .*bad images [1-9]", text), text
        assert re.search(r"last batch +elbo -?[\d.,]+", text), text
    assert re.search(
        r"store: [\d,]+ images encoded, [\d,]+ left", operated.texts["jobs.watch of the store"]
    )


def test_the_planted_secrets_are_nowhere(operated: Seen) -> None:
    texts = dict(operated.texts)
    for path in operated.folder.rglob("*"):
        if path.is_file():
            texts[str(path)] = path.read_bytes().decode(errors="replace")
    assert any("run.json" in name for name in texts)
    assert any(name.startswith("ray/") for name in texts)
    assert any(name.startswith("mlflow/mlflow.db") for name in texts)
    leaks = [name for name, text in texts.items() if any(secret in text for secret in SECRETS)]
    assert leaks == []


def beyond_loopback(listening: dict[str, str]) -> list[str]:
    """In /proc, 127.0.0.1 is written backwards; the others are ::1 and 127.0.0.1 as IPv6."""
    loopback = ("0100007F:", f"{'0' * 24}01000000:", f"{'0' * 16}FFFF00000100007F:")
    return [command for at, command in listening.items() if not at.startswith(loopback)]


def test_what_we_open_listens_on_loopback(operated: Seen) -> None:
    """With Ray, Ray listens everywhere behind its token, its driver too: SECURITY.md says so."""
    assert operated.encoding_listens
    assert beyond_loopback(operated.encoding_listens) == []
    others = [c for c in beyond_loopback(operated.training_listens) if "ray" not in c.lower()]
    assert set(others) <= {"driver"}
    endpoints = [text for name, text in operated.texts.items() if name.endswith(": address")]
    assert len(endpoints) == 2
    assert all(address.startswith("127.0.0.1:") for address in endpoints)
