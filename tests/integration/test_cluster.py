"""The whole way on a real cluster, by the documents' own commands.

Two raylets and a head with token and Jobs API, S3, MLflow on PostgreSQL, Prometheus: a training is
submitted, a node of it drained and replaced; the champion encodes, is pulled, and decodes.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.data import Dataset
from pipeline.latents import LatentStore
from tests.servers import rgw
from tests.servers.mlflow import MlflowServer
from tests.servers.prometheus import PrometheusServer
from tests.servers.ray_nodes import RayNodes
from tests.servers.rgw import free_ports
from tests.support.killing import start_job
from tests.support.packed_digits import write_digits
from tests.support.warm import ROOT

pytestmark = pytest.mark.chaos

SMALL = (
    "--workers", "2", "--steps", "1500", "--global-batch-size", "64", "--image-size", "8",
    "--channels", "1", "--model.kind", "mlp", "--evaluate-every", "500", "--checkpoint-every",
    "100", "--tracking.model", "cluster@candidate",
)  # fmt: skip


@dataclass
class World:
    """Where everything is; `run` speaks as the documents do."""

    folder: Path
    bucket: str
    nodes: RayNodes
    prometheus: PrometheusServer
    metrics_port: int

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.metrics_port}"

    @property
    def metrics(self) -> tuple[str, ...]:
        """A bucket is no folder that Prometheus could read: the port is a fixed one, as in pods."""
        return ("--tracking.metrics", f"127.0.0.1:{self.metrics_port}")

    def command(self, begin: str) -> list[str]:
        """The documents' command that begins so, with this world's places in it."""
        text = "".join(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))
        text = re.sub(r"^vae ", "python -m jobs.", text.replace("\\\n", " "), flags=re.MULTILINE)
        found = next(line for line in text.splitlines() if line.strip().startswith(begin))
        words = shlex.split(found.partition("  #")[0])
        places = {
            "s3://datasets/photos": f"{self.bucket}/data/train", "s3://runs": f"{self.bucket}/runs",
            "runs/latents": f"{self.bucket}/latents", "runs/photos/train":
            f"{self.bucket}/data/train", "models:/first@candidate": "models:/cluster@candidate",
            "models:/first@champion": "models:/cluster@champion", "runs/images": "decoded",
        }  # fmt: skip
        return [places.get(word, word) for word in words]

    def run(self, *command: str) -> dict[str, Any]:
        """Its result; it must end with 0."""
        process = self.start(*command)
        out, _ = process.communicate(timeout=600)
        assert process.returncode == 0, self.log() + out
        return json.loads(out.splitlines()[-1])

    def start(self, *command: str) -> subprocess.Popen[str]:
        assert command[:2] == ("python", "-m"), command
        return start_job(self.folder, *command[2:])

    def log(self) -> str:
        return (self.folder / "log").read_text()[-5000:]

    def until(self, condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 600
        while not condition():
            assert process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)


@pytest.fixture
def world(
    s3_server: rgw.S3Server,
    mlflow_on_postgres: MlflowServer,
    prometheus: PrometheusServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[World]:
    bucket = s3_server.bucket()
    dashboard, metrics = free_ports(2)
    folder = Path(tempfile.mkdtemp(prefix="cl-"))
    extra = {
        **s3_server.environment,
        "MLFLOW_TRACKING_URI": mlflow_on_postgres.uri,
        # A job finds its program as on the image.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    nodes = RayNodes(folder / "r", extra, dashboard_port=dashboard)
    for name, value in nodes.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{dashboard}")
    targets = tmp_path / "targets.json"
    targets.write_text(json.dumps([{"targets": [f"127.0.0.1:{metrics}"]}]))
    prometheus.scrape(targets)
    try:
        nodes.start("head", 0)
        nodes.start("one", 1)
        nodes.start("two", 1)
        yield World(tmp_path, bucket, nodes, prometheus, metrics)
    finally:
        nodes.stop()
        shutil.rmtree(folder, ignore_errors=True)


def upload(folder: Path, url: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            storage.publish(f"{url}/{path.relative_to(folder)}", path.read_bytes())


def test_the_whole_way_on_a_cluster_while_a_node_is_drained(world: World) -> None:
    upload(write_digits(world.folder).parent, f"{world.bucket}/data")
    value, number = world.prometheus.value, world.prometheus.number
    train = [*world.command("python -m jobs.submit -- python -m jobs.train"), *SMALL]
    training = world.start(*train, *world.metrics)
    world.until(lambda: (value("vae_checkpoint_step") or 0) >= 200, training)
    watched = time.monotonic()
    world.nodes.send("two", signal.SIGTERM)
    world.until(lambda: "a node is being taken away" in world.log(), training)
    world.nodes.wait("two", 120)
    before = number("vae_train_images_total")
    world.nodes.start("three", 1)
    world.until(lambda: (value("vae_train_images_total") or 0) > before, training)
    seconds = round(time.monotonic() - watched)
    assert value(f'min_over_time(up{{instance="{world.endpoint}"}}[{seconds}s])') == 1
    out, _ = training.communicate(timeout=600)
    assert training.returncode == 0, world.log()
    told = json.loads(out.splitlines()[-1])
    assert (told["submission_id"], told["status"]) == ("train-v1-1", "SUCCEEDED")
    assert told["result"]["steps"] == 1500
    # Drained, not dead: the counters of the run never began anew, and no image counted twice.
    assert value("resets(vae_train_images_total[1h])") == 0
    assert number("max_over_time(vae_train_images_total[1h])") <= told["result"]["samples"]
    assert number("max_over_time(vae_train_restarts_total[1h])") >= 1
    # The same command joins what is finished, and trains nothing.
    assert world.run(*train, *world.metrics)["result"]["digest"] == told["result"]["digest"]

    promoted = world.run(*world.command("python -m jobs.models --promote models:/first@candidate"))
    assert "cluster" in json.dumps(promoted)
    encode = (
        "python", "-m", "jobs.encode", "--model", "models:/cluster@champion", "--data",
        f"{world.bucket}/data/train", "--output", f"{world.bucket}/latents", "--actors", "2",
        "--tracking.pushgateway", world.prometheus.pushgateway, *world.metrics,
    )  # fmt: skip
    encoded = world.run("python", "-m", "jobs.submit", "--", *encode)
    dataset = Dataset.open(f"{world.bucket}/data/train")
    assert encoded["result"]["samples"] == len(dataset)
    store = f'{{store="{world.bucket}/latents"}}'
    world.prometheus.until(lambda: value(f"vae_encode_last_images{store}") == len(dataset))
    verified = world.run(*world.command("python -m jobs.verify --store runs/latents")[:5])
    assert verified["ok"] is True

    pulled = world.run(
        "python", "-m", "jobs.pull", "--model", "models:/cluster@champion", "--output", "pulled"
    )
    assert pulled["digest"] == told["result"]["digest"]
    decode = world.command("python -m jobs.decode --store runs/latents --output runs/images")
    decode.remove("--sheet")
    assert world.run(*decode, "--limit", "5", "--model", "pulled")["images"] == 5
    assert LatentStore.open(f"{world.bucket}/latents").model_digest == pulled["digest"]
    assert len(list((world.folder / "decoded").rglob("*.png"))) == 5
