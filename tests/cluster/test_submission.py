"""Submission for real: one job's whole life at a time, seen by whoever submits, follows and stops.

The user has the Role `submitter` and nothing else. Expected is what k8s/README.md says.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.cluster.submitting import (
    Submission,
    Submitter,
    head_of,
    operator_away,
    s3_from_here,
    template,
)
from tests.servers.cluster.box import until
from tests.servers.cluster.cluster import Cluster
from tests.support import warm
from tests.support.small_store import write_images

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
UNTIL_TOLD = (
    "import pathlib, time\nprint('it has begun', flush=True)\n"
    "while not pathlib.Path('/tmp/go').exists(): time.sleep(0.5)\nprint('{\"went\": true}')"
)
"""A job that ends when a file is made beside it."""
ASK = (
    "import sys, urllib.request, urllib.error\n"
    "asked = urllib.request.Request('http://127.0.0.1:8265/api/jobs/', headers={'Authorization': "
    "'Bearer ' + sys.argv[1]} if sys.argv[1:] else {})\n"
    "try: print(urllib.request.urlopen(asked).status)\n"
    "except urllib.error.HTTPError as error: print(error.code)"
)
"""Prints what the dashboard answers, with the token that is given or with none."""
PYTHON = ("--", "python", "-c")


@pytest.fixture(scope="module")
def here(vae: Cluster) -> Iterator[dict[str, str]]:
    with s3_from_here(vae) as environment:
        yield environment


@pytest.fixture(scope="module")
def alice(
    vae: Cluster, here: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Submitter:
    return Submitter.bound(vae, "alice", tmp_path_factory.mktemp("alice"), here)


@pytest.fixture(scope="module")
def bob(vae: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Submitter:
    """Has the Role, and not the storage."""
    return Submitter.bound(vae, "bob", tmp_path_factory.mktemp("bob"))


@pytest.fixture(scope="module")
def reader(
    vae: Cluster, here: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Submitter:
    """Has the Role, and a key that may read the bucket `runs` and nothing else."""
    vae.kubectl(
        "-n", "vae", "exec", "deployment/s3", "-c", "s3", "--", "radosgw-admin", "-c",
        "/data/.ceph/ceph.conf", "-n", "client.rgw", "user", "create", "--uid=reader",
        "--display-name=reader", "--access-key=reader", "--secret-key=reading",
    )  # fmt: skip
    allowed = {"Effect": "Allow", "Principal": {"AWS": ["arn:aws:iam:::user/reader"]},
               "Action": ["s3:GetObject", "s3:ListBucket"],
               "Resource": ["arn:aws:s3:::runs", "arn:aws:s3:::runs/*"]}  # fmt: skip
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    objects(here).put_bucket_policy(Bucket="runs", Policy=policy)
    keys = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "reading"}
    return Submitter.bound(vae, "reader", tmp_path_factory.mktemp("reader"), {**here, **keys})


def objects(here: Mapping[str, str]) -> Any:
    """A client of the cluster's S3."""
    return boto3.client(
        "s3", endpoint_url=here["AWS_ENDPOINT_URL"], region_name="us-east-1",
        aws_access_key_id=here["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=here["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip


def has_ended(here: Mapping[str, str], run: str) -> bool:
    """Whether the run's folder says so."""
    listed = objects(here).list_objects_v2(Bucket="runs", Prefix=f"train/{run}/ended.json")
    return bool(listed["KeyCount"])


def left_in(here: Mapping[str, str], run: str) -> tuple[Any, int]:
    """What the run's folder says of its end, and the step of its newest checkpoint."""
    found = objects(here).get_object(Bucket="runs", Key=f"train/{run}/ended.json")
    ended = json.load(found["Body"])
    return ended["result"], checkpoints(here, run)[-1]


def checkpoints(here: Mapping[str, str], run: str) -> list[int]:
    """The steps of a run's checkpoints."""
    prefix = f"train/{run}/checkpoints/step-"
    listed = objects(here).list_objects_v2(Bucket="runs", Prefix=prefix).get("Contents", [])
    names = [each["Key"].removeprefix(prefix) for each in listed]
    return sorted(int(name[:8]) for name in names if name.endswith(".json"))


def new_uid(cluster: Cluster, job: str) -> str | None:
    found = cluster.find("rayjob", job)
    return None if found is None else found["metadata"]["uid"]


def submitting_pod(*arguments: str) -> dict[str, Any]:
    """As strict as the namespace asks for."""
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "inside", "namespace": "vae",
            "labels": {"app.kubernetes.io/component": "nightly"},
        },
        "spec": {
            "serviceAccountName": "submitter", "automountServiceAccountToken": True,
            "restartPolicy": "Never",
            "securityContext": {
                "runAsNonRoot": True, "runAsUser": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "submit", "image": "vae-pipeline:0.1.0-slim",
                "args": ["submit", "--kubernetes", *arguments],
                "securityContext": {
                    "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    }  # fmt: skip


def training(run: str, batch: int = 16, steps: int = 1000000) -> tuple[str, ...]:
    """A command that trains on s3://datasets/photos, as good as for ever if not told otherwise."""
    return (
        "--", "python", "-m", "jobs.train", "--data", "s3://datasets/photos", "--run", run,
        "--storage", "s3://runs/train", "--workers", "1", "--steps", str(steps),
        "--global-batch-size", str(batch), "--image-size", "8", "--channels", "1",
        "--model.kind", "mlp", "--model.width", "8", "--checkpoint-every", "200",
        "--evaluate-every", "1000000", "--tracking.metrics", "0.0.0.0:9464", "--no-register",
    )  # fmt: skip


def is_failed_for_the_operator(cluster: Cluster, job: str) -> bool:
    """Whether KubeRay's metrics have it as failed."""
    (pod,) = cluster.items("pod", namespace="kuberay-operator")
    path = f"/api/v1/namespaces/kuberay-operator/pods/{pod['metadata']['name']}:8080/proxy/metrics"
    return any(
        line.startswith("kuberay_job_deployment_status{")
        and 'deployment_status="Failed"' in line and f'name="{job}"' in line
        for line in cluster.kubectl("get", "--raw", path).splitlines()
    )  # fmt: skip


def in_head(cluster: Cluster, job: str, *command: str) -> str:
    return cluster.kubectl(
        "-n", "vae", "exec", head_of(cluster, job), "-c", "ray-head", "--", *command
    ).strip()


def token_of(cluster: Cluster, job: str) -> str:
    def cluster_of() -> Any:
        found = cluster.find("rayjob", job) or {}
        return found.get("status", {}).get("rayClusterName")

    until(cluster_of, "a RayCluster", 60)
    name = cluster_of()
    cluster.wait("secret", name, "create")
    return cluster.bash(
        f"kubectl -n vae get secret {name} -o jsonpath='{{.data.auth_token}}' | base64 -d"
    )


@pytest.fixture(scope="module")
def limited(alice: Submitter) -> Submission:
    """May take 90 seconds, and would take an hour: it is looked at once that is over."""
    return alice.submits(
        "--id", "limited", "--retries", "2", "--deadline-hours", "0.025",
        *PYTHON, "import time; time.sleep(3600)",
    )  # fmt: skip


def test_a_job_is_followed_left_and_followed_again_by_the_same_command(
    vae: Cluster, alice: Submitter, bob: Submitter, limited: Submission
) -> None:
    command = ("--id", "told", *PYTHON, UNTIL_TOLD)
    first = alice.submits(*command)
    others = token_of(vae, "limited")
    first.says("it has begun$")
    uid = vae.get("rayjob", "told")["metadata"]["uid"]
    assert first.interrupt() == 130
    assert "the same command follows it again" in first.said
    again = alice.submits(*command)
    again.says("told is there already, and is followed")
    again.says("it has begun$")
    taken = alice.asks("--id", "told", *PYTHON, "print('another')")
    assert taken[0] == 2
    assert "told is RUNNING, and is another command" in taken[2]
    # The readiness probe failed while Ray began, and its event stays for an hour.
    code, now, _ = bob.asks("--status", "--id", "told")
    assert (code, now["status"]) == (0, "RUNNING")
    assert now["message"] == "Job is currently running."
    assert in_head(vae, "told", "python", "-c", ASK) == "401"
    assert in_head(vae, "told", "python", "-c", ASK, "wrong") == "403"
    assert in_head(vae, "told", "python", "-c", ASK, others) == "403"
    assert in_head(vae, "told", "python", "-c", ASK, token_of(vae, "told")) == "200"
    in_head(vae, "told", "touch", "/tmp/go")
    code, result = again.ends()
    assert (code, result["status"], result["result"]) == (0, "SUCCEEDED", {"went": True})
    assert vae.get("rayjob", "told")["metadata"]["uid"] == uid


def test_what_failed_is_tried_again_and_every_trys_cause_is_told(
    vae: Cluster, alice: Submitter
) -> None:
    failing = alice.submits(
        "--id", "failing", "--retries", "1", *PYTHON, "raise ValueError('wrong from the start')"
    )
    failing.says("failing: try 1 of 2 failed, and it is tried again: ValueError: wrong from the")
    code, now, said = alice.asks("--status", "--id", "failing")
    assert code == 0, said
    assert "try 1 of 2 failed: ValueError: wrong from the start" in now["message"]
    code, result = failing.ends()
    assert (code, result["status"]) == (1, "FAILED")
    assert result["message"] == "exit code 1: ValueError: wrong from the start"
    assert vae.get("rayjob", "failing")["status"]["failed"] == 2
    log = alice.asks_text("--logs", "--id", "failing")
    assert log.count("ValueError: wrong from the start") == 2
    # What VaeJobFailed looks at ends with the RayJob.
    assert is_failed_for_the_operator(vae, "failing")
    vae.kubectl("-n", "vae", "delete", "rayjob", "failing")
    until(lambda: not is_failed_for_the_operator(vae, "failing"), "its series' end", 60)


def test_a_job_that_takes_too_long_is_given_up_for_good(vae: Cluster, limited: Submission) -> None:
    code, result = limited.ends()
    assert (code, result["status"]) == (1, "FAILED")
    assert "DeadlineExceeded" in result["message"]
    assert vae.get("rayjob", "limited")["status"].get("failed", 0) <= 1


def test_a_training_leaves_a_last_checkpoint_however_it_is_stopped_and_goes_on_from_there(
    alice: Submitter, bob: Submitter, here: dict[str, str], tmp_path: Path
) -> None:
    """Bob can't write its STOP: he deletes the RayJob, whose driver then has time to leave one."""
    write_images(tmp_path / "images", range(60))
    packed = warm.run(
        tmp_path, "jobs.pack", "--source", "images", "--output", "s3://datasets/photos", **here
    )
    assert packed.returncode == 0, packed.stderr
    first = alice.submits(*training("long"))
    first.says("train-long: RUNNING")
    until(lambda: checkpoints(here, "long"), "a checkpoint", 300)
    code, stopped, said = bob.asks("--stop", "--id", "train-long")
    assert (code, stopped["status"]) == (0, "STOPPED"), said
    assert "whether it still left a last checkpoint, its run's folder says" in stopped["message"]
    until(lambda: has_ended(here, "long"), "its end", 300)
    ended, newest = left_in(here, "long")
    assert (ended["reason"], ended["steps"]) == ("stopped", newest)
    assert first.ends()[0] == 5

    second = alice.submits(*training("long"))
    until(lambda: checkpoints(here, "long")[-1] > newest, "another checkpoint", 300)
    code, stopped, said = alice.asks("--stop", "--id", "train-long")
    assert (code, stopped["status"]) == (0, "STOPPED"), said
    code, result = second.ends()
    assert (code, result["status"]) == (5, "STOPPED")
    ended, last = left_in(here, "long")
    assert last == ended["steps"] > newest
    assert result["message"].startswith(f"stopped at step {last}, where it left a checkpoint")
    # Whoever has no storage is told what KubeRay says, and what can't be seen.
    code, status, _ = bob.asks("--status", "--id", "train-long")
    assert (code, status["status"]) == (0, "SUCCEEDED")
    assert "can't be seen from here" in status["message"]


def test_a_key_that_may_read_runs_follows_and_can_not_ask_for_a_last_checkpoint(
    alice: Submitter, reader: Submitter, here: dict[str, str]
) -> None:
    """After the training before, which goes on once more; deleted, it leaves a checkpoint still."""
    newest = checkpoints(here, "long")[-1]
    third = alice.submits(*training("long"))
    until(lambda: checkpoints(here, "long")[-1] > newest, "another checkpoint", 300)
    code, now, said = reader.asks("--status", "--id", "train-long")
    assert (code, now["status"]) == (0, "RUNNING"), said
    assert f"from step {newest}" in reader.asks_text("--logs", "--id", "train-long")
    code, stopped, said = reader.asks("--stop", "--id", "train-long")
    assert (code, stopped["status"]) == (0, "STOPPED"), said
    assert "train-long can't be asked for a last checkpoint from here" in said
    assert third.ends()[0] == 5


def test_a_trained_run_that_mlflow_does_not_take_is_kept_and_not_tried_again(
    vae: Cluster, alice: Submitter, here: dict[str, str]
) -> None:
    """After the training before, which leaves images."""
    command = ("--id", "kept", "--retries", "1", *training("kept", steps=6000))
    first = alice.submits(*command)
    first.says("kept: RUNNING")
    until(lambda: checkpoints(here, "kept"), "a checkpoint", 300)
    vae.kubectl("-n", "vae", "scale", "deployment/mlflow", "--replicas=0")
    code, result = first.ends()
    assert code != 0
    assert "is trained and its bundle is s3://runs/train/kept/bundle" in result["message"]
    status = vae.get("rayjob", "kept")["status"]
    assert (status["jobStatus"], status.get("failed", 0)) == ("STOPPED", 0)
    log = alice.asks_text("--logs", "--id", "kept")
    assert "Not repeated, since the same command can only fail again" in log
    assert objects(here).head_object(Bucket="runs", Key="train/kept/bundle/bundle.json")
    vae.kubectl("-n", "vae", "scale", "deployment/mlflow", "--replicas=1")
    vae.kubectl("-n", "vae", "rollout", "status", "deployment/mlflow", "--timeout=180s")
    code, result = alice.submits(*command).ends()
    assert (code, result["status"]) == (0, "SUCCEEDED")
    assert result["result"]["run_id"]


def test_wrong_usage_and_quarantine_are_told_by_their_own_codes_and_never_repeated(
    vae: Cluster, alice: Submitter, bob: Submitter, here: dict[str, str], tmp_path: Path
) -> None:
    write_images(tmp_path, range(5))
    for path in tmp_path.rglob("*.png"):
        objects(here).upload_file(str(path), "archive", f"broken/a/{path.name}")
    objects(here).put_object(Bucket="archive", Key="broken/a/none.png", Body=b"no image at all")
    wrong = alice.submits("--id", "wrong", *training("long", batch=8))
    broken = alice.submits(
        "--id", "broken", "--", "python", "-m", "jobs.pack", "--source", "s3://archive/broken",
        "--output", "s3://datasets/broken",
    )  # fmt: skip
    for name, follower, expected in (("wrong", wrong, 2), ("broken", broken, 3)):
        code, result = follower.ends()
        assert code == expected, follower.said
        assert f"exit code {expected}" in result["message"]
        status = vae.get("rayjob", name)["status"]
        assert (status["jobDeploymentStatus"], status["jobStatus"]) == ("Complete", "STOPPED")
        assert not status.get("failed")
        log = alice.asks_text("--logs", "--id", name)
        assert (
            f"Not repeated, since the same command can only fail again: exit code {expected}" in log
        )
        code, seen, _ = bob.asks("--status", "--id", name)
        assert (code, seen["status"]) == (5, "STOPPED")
        assert "exit code 2 or 3" in seen["message"]


def test_a_job_is_submitted_by_the_nights_account_from_inside(
    vae: Cluster, alice: Submitter
) -> None:
    """A pod of component `nightly` with the account `submitter`, as the CronJob's."""
    vae.apply([submitting_pod("--id", "inside", "--detach", *PYTHON, "print('ran')")])
    vae.wait("pod", "inside", "jsonpath={.status.phase}=Succeeded")
    assert (
        vae.get("rayjob", "inside")["spec"]["entrypoint"]
        == "exec python -c 'print('\"'\"'ran'\"'\"')'"
    )
    code, stopped, _ = alice.asks("--stop", "--id", "inside")
    assert (code, stopped["status"]) == (0, "STOPPED")
    assert vae.find("rayjob", "inside") is None


def test_rules_of_kuberay_that_a_template_breaks_are_told(vae: Cluster, alice: Submitter) -> None:
    template(vae, "invalid", lambda spec: spec.update(shutdownAfterJobFinishes=False))
    code, result, _ = alice.asks("--id", "invalid", "--pool", "invalid", *PYTHON, "print(1)")
    assert (code, result["status"]) == (1, "FAILED")
    assert "cannot have TTLSecondsAfterFinished" in result["message"]


def test_a_head_that_is_lost_is_told_and_submitted_again_as_often_as_said(
    vae: Cluster, alice: Submitter
) -> None:
    """KubeRay 1.7 writes this status; 1.6 never does, so here the test does."""
    lost = {"jobDeploymentStatus": "Failed", "jobStatus": "RUNNING",
            "reason": "JobStatusCheckTimeoutExceeded", "message": "no answer"}  # fmt: skip
    uids: set[str] = set()
    with operator_away(vae):
        follower = alice.submits(
            "--id", "lost", "--resubmit-on-head-loss", "1", *PYTHON, "print('ran')"
        )
        for said in ("submitted to", "it is submitted again, 1 times more"):
            follower.says(said)
            until(lambda: new_uid(vae, "lost") not in (None, *uids), "a RayJob", 60)
            uids.add(vae.get("rayjob", "lost")["metadata"]["uid"])
            vae.kubectl("-n", "vae", "patch", "rayjob", "lost", "--subresource=status",
                        "--type=merge", "-p", json.dumps({"status": lost}))  # fmt: skip
        code, result = follower.ends()
        vae.kubectl("-n", "vae", "delete", "rayjob", "lost")
    assert (code, result["status"]) == (4, "LOST")
    assert len(uids) == 2
