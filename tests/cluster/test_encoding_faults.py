"""What happens under an encoding by two worker pods that the autoscaler brings; its store is whole.

All faults fall on one encoding, one after the other. At the end its store has the bytes of one
that was encoded on this machine, by nobody disturbed, and the autoscaler takes the pods away.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.vae import save_bundle
from tests.cluster.submitting import Submission, Submitter, template
from tests.cluster.training import client, open_s3
from tests.servers import rgw
from tests.servers.cluster.box import until
from tests.servers.cluster.cluster import Cluster
from tests.support import warm
from tests.support.small_store import small_dataset, small_vae

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
IMAGES = 900
IDLE_SECONDS = 20
"""Of the autoscaler: after the template's 120 s a cluster whose job has ended goes as a whole."""
JOB = "encode-storm"


def encode(store: str, actors: int) -> tuple[str, ...]:
    return (
        "jobs.encode", "--model", "s3://runs/model", "--data", "s3://datasets/noise",
        "--output", f"s3://latents/{store}", "--actors", str(actors), "--batch-size", "16",
        "--precision", "fp32", "--also", "tests.cluster.slow:Drowsy", "--columns", "label",
    )  # fmt: skip


@dataclass
class Encoding:
    """The one that is disturbed."""

    cluster: Cluster
    follower: Submission
    s3: Any

    def pods(self, kind: str = "worker") -> list[str]:
        """Names of its pods that run, and aren't told to end."""
        found = self.cluster.get("rayjob", JOB)["status"]["rayClusterName"]
        pods = self.cluster.items("pod", f"ray.io/cluster={found},ray.io/node-type={kind}")
        return [
            str(pod["metadata"]["name"]) for pod in pods
            if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
        ]  # fmt: skip

    def receipts(self) -> int:
        """Shards that are done."""
        return sum("/receipts/" in key for key in keys(self.s3, "storm"))

    def goes_on(self, more: int = 3, seconds: float = 240) -> None:
        """Waits until so many more shards are done."""
        goal, deadline = self.receipts() + more, time.monotonic() + seconds
        while self.receipts() < goal:
            assert self.follower.process.poll() is None, self.follower.said
            assert time.monotonic() < deadline, self.follower.said
            time.sleep(0.5)

    def has_workers_but(self, gone: str) -> bool:
        """Two of them, without the one."""
        found = self.pods()
        return len(found) == 2 and gone not in found

    def delete(self, pod: str, *flags: str) -> None:
        self.cluster.kubectl("-n", "vae", "delete", "pod", pod, *flags)


def keys(s3: Any, store: str) -> list[str]:
    """Of all objects of a store."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="latents", Prefix=f"{store}/")
    return [str(item["Key"]) for page in pages for item in page.get("Contents", ())]


def content(s3: Any, store: str) -> dict[str, str]:
    """The digest of each object of a store, but for what says who encoded when."""
    return {
        key.removeprefix(f"{store}/"): hashlib.sha256(
            s3.get_object(Bucket="latents", Key=key)["Body"].read()
        ).hexdigest()
        for key in keys(s3, store)
        if not key.startswith(f"{store}/attempts/")
    }


@pytest.fixture(scope="module")
def storage(vae: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """How the host reaches S3, in which images and model lie."""
    vae.kubectl("-n", "vae", "rollout", "status", "deployment/s3", "--timeout=180s")
    environment, folder = open_s3(vae), tmp_path_factory.mktemp("noise")
    s3 = client(environment)
    small_dataset(folder, range(IMAGES))
    save_bundle(small_vae(), folder / "model")
    for below, bucket, name in (("data", "datasets", "noise"), ("model", "runs", "model")):
        for file in (file for file in (folder / below).rglob("*") if file.is_file()):
            key = f"{name}/{file.relative_to(folder / below)}"
            s3.put_object(Bucket=bucket, Key=key, Body=file.read_bytes())
    return environment


@pytest.fixture(scope="module")
def encoding(
    vae: Cluster, storage: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Encoding]:
    """Its driver begins, and no worker is there yet."""
    user = Submitter.bound(vae, "dora", tmp_path_factory.mktemp("dora"), storage)

    def impatient(spec: Any) -> None:
        spec["rayClusterSpec"]["autoscalerOptions"]["idleTimeoutSeconds"] = IDLE_SECONDS

    pool = template(vae, "impatient", impatient, of="encode")
    follower = user.submits(
        "--id", JOB, "--pool", pool, "--", "python", "-m", *encode("storm", actors=2)
    )
    try:
        follower.says(f"{JOB}: (PENDING|RUNNING)")
        yield Encoding(vae, follower, client(storage))
    finally:
        if follower.process.poll() is None:
            follower.process.kill()


def test_the_autoscaler_brings_worker_pods_once_there_is_work(encoding: Encoding) -> None:
    assert encoding.pods() == []
    until(lambda: len(encoding.pods()) == 2, "two workers", 280)
    encoding.goes_on()


def test_a_worker_pod_that_is_killed_is_replaced_and_its_shards_are_tried_again(
    encoding: Encoding,
) -> None:
    victim = encoding.pods()[0]
    encoding.delete(victim, "--force", "--grace-period=0")
    encoding.goes_on()
    until(lambda: encoding.has_workers_but(victim), "another pod", 180)
    encoding.goes_on()


def test_a_storage_that_is_full_for_a_minute_is_waited_for(encoding: Encoding) -> None:
    def admin(*words: str) -> None:
        encoding.cluster.kubectl(
            "-n", "vae", "exec", "deployment/s3", "-c", "s3", "--", "radosgw-admin", "-c",
            "/data/.ceph/ceph.conf", "-n", "client.rgw", *words,
        )  # fmt: skip

    for words in rgw.FULL:
        admin(*words)
    time.sleep(15)
    before, pods = encoding.receipts(), encoding.pods()
    time.sleep(45)
    assert encoding.receipts() == before
    admin(*rgw.ROOM)
    encoding.goes_on()
    # One that had no work would be taken away by now.
    assert set(pods) <= set(encoding.pods())
    encoding.follower.says(r"actor-\d: .*has failed for \d+ s.*QuotaExceeded 403", 90)


def test_a_worker_that_is_told_half_a_minute_before_is_replaced(encoding: Encoding) -> None:
    victim = encoding.pods()[0]
    encoding.delete(victim, "--grace-period=30")
    until(lambda: encoding.has_workers_but(victim), "another pod", 180)
    encoding.goes_on()


@pytest.fixture(scope="module")
def result(encoding: Encoding) -> Any:
    """Of the encoding, whose work takes no more time now."""
    for pod in encoding.pods():
        hurried = ("exec", pod, "-c", "ray-worker", "--", "touch", "/tmp/hurried")
        encoding.cluster.kubectl("-n", "vae", *hurried)
    code, end = encoding.follower.ends(300)
    assert (code, end["status"]) == (0, "SUCCEEDED"), encoding.follower.said
    return end["result"]


def test_the_autoscaler_takes_pods_away_that_have_no_work_left(
    result: Any, encoding: Encoding
) -> None:
    (head,) = encoding.pods("head")
    until(lambda: encoding.pods() == [], "the workers to go", IDLE_SECONDS + 60)
    assert encoding.pods("head") == [head]


def test_all_counts_add_up(result: Any, encoding: Encoding) -> None:
    assert (result["samples"], result["failed"], result["filtered"]) == (IMAGES, 0, 0)
    assert (result["encoded"], result["complete"], result["lost"]) == (IMAGES, True, [])
    assert result["shards"] == encoding.receipts()
    assert result["retries"] > 0


def test_the_store_has_the_bytes_of_one_that_nobody_disturbed(
    result: Any, encoding: Encoding, storage: dict[str, str], tmp_path: Path
) -> None:
    calm = warm.run(tmp_path, *encode("calm", actors=0), **storage)
    assert calm.returncode == 0, calm.stderr
    assert json.loads(calm.stdout.splitlines()[-1])["snapshot"] == result["snapshot"]
    assert content(encoding.s3, "storm") == content(encoding.s3, "calm")
    whole = warm.run(tmp_path, "jobs.verify", "--store", "s3://latents/storm", **storage)
    assert json.loads(whole.stdout.splitlines()[-1]) == {"ok": True, "problems": []}
