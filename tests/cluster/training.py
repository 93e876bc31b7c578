"""A training that runs in the cluster, its follower on the host, and how far it is."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.servers import rgw
from tests.servers.cluster.cluster import ROOT, Cluster

EVERY = 50
"""Steps between checkpoints."""


def open_s3(cluster: Cluster) -> dict[str, str]:
    """The environment in which the host reaches the cluster's S3, over its first node.

    Not by a port-forward, which ends with the API server.
    """
    service = cluster.get("service", "s3")["spec"]["clusterIP"]
    node = cluster.nodes[1]
    node.part("to-s3", "socat", "TCP-LISTEN:19000,fork,reuseaddr", f"TCP:{service}:9000")
    return {
        "AWS_ENDPOINT_URL": f"http://{node.address}:19000",
        "AWS_ACCESS_KEY_ID": rgw.ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": rgw.SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def client(storage: Mapping[str, str]) -> Any:
    """Of S3; it gives up soon."""
    return boto3.client(
        "s3", endpoint_url=storage["AWS_ENDPOINT_URL"],
        aws_access_key_id=storage["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=storage["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1",
        config=Config(connect_timeout=3, read_timeout=3, retries={"total_max_attempts": 1}),
    )  # fmt: skip


def put_below(storage: Mapping[str, str], prefix: str, folder: Path) -> None:
    """A folder's files into the bucket `datasets`."""
    for file in (file for file in folder.rglob("*") if file.is_file()):
        key = f"{prefix}/{file.relative_to(folder)}"
        client(storage).put_object(Bucket="datasets", Key=key, Body=file.read_bytes())


@dataclass(frozen=True)
class Training:
    """The run `name` below s3://runs/train; what its follower says goes to `log`.

    `every`: steps between its checkpoints.
    """

    cluster: Cluster
    name: str
    follower: "subprocess.Popen[str]"
    log: Path
    s3: Any
    every: int = EVERY

    @classmethod
    def start(
        cls, cluster: Cluster, storage: Mapping[str, str], folder: Path, user: Path, *flags: str
    ) -> "Training":
        """Submits `jobs.train FLAGS`, one of which is `--run NAME`, as a user of the cluster."""
        name = flags[flags.index("--run") + 1]
        words = [sys.executable, "-m", "jobs.submit", "--kubernetes"]
        job = ["python", "-m", "jobs.train", "--storage", "s3://runs/train", *flags]
        log = folder / f"{name}.log"
        environment = {**cluster.environment(user), **storage, "PYTHONPATH": str(ROOT)}
        with log.open("w") as stderr:
            follower = subprocess.Popen(
                [*words, "--", *job], stdout=subprocess.PIPE, stderr=stderr, text=True,
                cwd=folder, env=environment,
            )  # fmt: skip
        return cls(cluster, name, follower, log, client(storage))

    def newest(self) -> int:
        """The newest checkpoint's step; 0 while there is none, or no answer."""
        return max(self.checkpoints(), default=0)

    def checkpoints(self) -> list[int]:
        """Steps of which there is one."""
        keys = self._objects("checkpoints/")
        found = (re.search(r"step-(\d+)\.json$", key) for key in keys)
        return sorted(int(each[1]) for each in found if each)

    def groups(self, size: int) -> int:
        """Worker groups of that size so far; each rank's log begins with its place."""
        return len(self._groups_of(size))

    def made_by(self, size: int) -> int:
        """Steps that groups of that size have made beyond all before, by the run's own tallies."""
        groups, made, furthest = self._groups_of(size), 0, 0
        for key in sorted(self._objects("time/")):
            step = json.loads(self._read(key))["step"]
            if Path(key).stem in groups:
                made += step - furthest
            furthest = step
        return made

    def _groups_of(self, size: int) -> set[str]:
        """By the names of their claims."""
        keys = [key for key in self._objects("logs/") if "rank0" in key]
        said = f"rank 0 of {size} starts".encode()
        return {Path(key).name.partition("-")[0] for key in keys if said in self._read(key)}

    def left(self) -> int:
        """The step of the checkpoint with which the newest group ended; 0 if it says of none."""
        keys = sorted(key for key in self._objects("logs/") if "rank0" in key)
        found = re.search(rb"saved at step (\d+)", self._read(keys[-1]))
        return int(found[1]) if found else 0

    def _read(self, key: str) -> bytes:
        return bytes(self.s3.get_object(Bucket="runs", Key=key)["Body"].read())

    def _objects(self, prefix: str) -> list[str]:
        try:
            listed = self.s3.list_objects_v2(Bucket="runs", Prefix=f"train/{self.name}/{prefix}")
        except (BotoCoreError, ClientError):
            return []
        return [str(item["Key"]) for item in listed.get("Contents", ())]

    def goes_on(self, beyond: int | None = None, seconds: float = 600) -> None:
        """Waits until there are two checkpoints more than now, or beyond a step."""
        goal = (self.newest() if beyond is None else beyond) + self.every + 1
        deadline = time.monotonic() + seconds
        while self.newest() < goal:
            assert self.follower.poll() is None, self.said()
            assert time.monotonic() < deadline, f"step {self.newest()} of {goal}: {self.said()}"
            time.sleep(0.5)

    def said(self) -> str:
        """By the follower."""
        return self.log.read_text()

    def pods(self, kind: str) -> list[Any]:
        """Its `head` or `worker` pods that run, and aren't told to end."""
        found = self.cluster.get("rayjob", f"train-{self.name}")["status"]["rayClusterName"]
        pods = self.cluster.items("pod", f"ray.io/cluster={found},ray.io/node-type={kind}")
        return [
            pod for pod in pods
            if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
        ]  # fmt: skip

    def inside(self, pod: Any, *command: str) -> None:
        """Runs a command in a worker's pod."""
        name = pod["metadata"]["name"]
        self.cluster.kubectl("-n", "vae", "exec", name, "-c", "ray-worker", "--", *command)

    def hurries(self) -> None:
        """Its steps take no time any more."""
        for pod in self.pods("worker"):
            self.inside(pod, "touch", "/tmp/hurried")

    def result(self, seconds: float = 600) -> tuple[int, Any]:
        """The follower's exit code and its last line."""
        out, _ = self.follower.communicate(timeout=seconds)
        lines = out.splitlines()
        return self.follower.returncode, json.loads(lines[-1]) if lines else {}

    def end(self) -> None:
        """Of the follower, if it still runs."""
        if self.follower.poll() is None:
            self.follower.kill()
            self.follower.communicate()
