"""What goes wrong between a submitter and the API server, for real: credentials, webhook, quota.

One job is followed by three whose token is refused all at once; what one of them says at its end
takes five minutes, in which the other faults are made.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.submitting import (
    Submission,
    Submitter,
    head_of,
    s3_from_here,
    seconds_between,
)
from tests.servers.cluster.box import until
from tests.servers.cluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
UNTIL_TOLD = (
    "import pathlib, time\nprint('it has begun', flush=True)\n"
    "while not pathlib.Path('/tmp/go').exists(): time.sleep(0.5)"
)
WALK = ("--id", "walk", "--", "python", "-c", UNTIL_TOLD)
NOTHING = ("--", "python", "-c", "print('ran')")
SECRET = "walker-token"
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
REFUSED = (
    r"WARNING .*Unauthorized: Unauthorized.*log in again.*; the job may well go on\. Waiting\."
)


@dataclass
class Walker:
    """The ServiceAccount `walker`, which has the Role, and whoever has a token of it in a file."""

    cluster: Cluster
    folder: Path

    def make(self) -> None:
        """Also once more: tokens of the account that was there before are refused then."""
        self.cluster.kubectl(
            "-n", "vae", "delete", "serviceaccount", "walker", "--ignore-not-found"
        )
        self.cluster.kubectl("-n", "vae", "create", "serviceaccount", "walker")

    def give_token(self, *names: str) -> None:
        """A fresh one, into the files of these."""
        token = self.cluster.kubectl("-n", "vae", "create", "token", "walker").strip()
        for name in names:
            (self.folder / f"{name}.token").write_text(token)
        self.cluster.apply([{
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": SECRET, "namespace": "vae"},
            "stringData": {
                "token": token, "namespace": "vae",
                "ca.crt": (self.cluster.authority.folder / "ca.crt").read_text(),
            },
        }])  # fmt: skip

    def kubeconfig(self, name: str) -> Path:
        """That reads the token out of the file of this name."""
        found = yaml.safe_load(self.cluster.admin.read_text())
        found["users"][0]["user"] = {"tokenFile": str(self.folder / f"{name}.token")}
        path = self.folder / f"{name}.conf"
        path.write_text(yaml.safe_dump(found))
        return path


def following_pod() -> dict[str, Any]:
    """As strict as the namespace asks for; its token is what the kubelet puts there, and renews."""
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "walking", "namespace": "vae",
            "labels": {"app.kubernetes.io/component": "nightly"},
        },
        "spec": {
            "automountServiceAccountToken": False, "restartPolicy": "Never",
            "securityContext": {
                "runAsNonRoot": True, "runAsUser": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "submit", "image": "vae-pipeline:0.1.0-slim",
                "args": ["submit", "--kubernetes", *WALK],
                "securityContext": {
                    "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": "token", "mountPath": ACCOUNT, "readOnly": True}],
            }],
            "volumes": [{"name": "token", "secret": {"secretName": SECRET}}],
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def here(vae: Cluster) -> Iterator[dict[str, str]]:
    with s3_from_here(vae) as environment:
        yield environment


@pytest.fixture(scope="module")
def carol(vae: Cluster, here: dict[str, str], tmp_path_factory: Any) -> Submitter:
    """By a certificate."""
    return Submitter.bound(vae, "carol", tmp_path_factory.mktemp("carol"), here)


@pytest.fixture(scope="module")
def walker(vae: Cluster, tmp_path_factory: Any) -> Walker:
    found = Walker(vae, tmp_path_factory.mktemp("walker"))
    found.make()
    vae.kubectl("-n", "vae", "create", "rolebinding", "walker", "--role=submitter",
                "--serviceaccount=vae:walker")  # fmt: skip
    return found


@dataclass
class Refused:
    """Two who follow the job from here; the pod `walking` is the third."""

    renewed: Submission
    forgotten: Submission
    user: Submitter
    uid: str


def pod_said(cluster: Cluster) -> str:
    return cluster.kubectl("-n", "vae", "logs", "walking")


@pytest.fixture(scope="module")
def refused(vae: Cluster, walker: Walker, here: dict[str, str]) -> Refused:
    """All three follow; then their account is deleted, and made again."""
    walker.give_token("renewed", "forgotten")
    renewed, forgotten = (
        Submitter(vae, walker.kubeconfig(name), walker.folder, here)
        for name in ("renewed", "forgotten")
    )
    first = renewed.submits(*WALK)
    first.says("submitted to")
    second = forgotten.submits("--resubmit-on-head-loss", "3", *WALK)
    vae.apply([following_pod()])
    for follower in (first, second):
        follower.says("walk: RUNNING")
    until(lambda: "walk: RUNNING" in pod_said(vae), "the pod that follows", 120)
    uid = vae.get("rayjob", "walk")["metadata"]["uid"]
    walker.make()
    return Refused(first, second, forgotten, uid)


def test_a_token_that_is_renewed_on_disk_is_read_anew_by_who_follows(
    vae: Cluster, walker: Walker, refused: Refused
) -> None:
    for follower in (refused.renewed, refused.forgotten):
        follower.says(REFUSED, 60)
    until(lambda: "Unauthorized" in pod_said(vae), "the pod's refusal", 60)
    walker.give_token("renewed")
    refused.renewed.says("Kubernetes, namespace vae refuses it no more", 60)
    # The kubelet looks once a minute or two at what it has mounted.
    until(lambda: "refuses it no more" in pod_said(vae), "the pod's new token", 180)
    assert refused.forgotten.process.poll() is None


WEBHOOK = {
    "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
    "metadata": {"name": "away"},
    "webhooks": [{
        "name": "away.example.internal", "failurePolicy": "Fail",
        "clientConfig": {"url": "https://127.0.0.1:9/"},
        "rules": [{
            "apiGroups": ["ray.io"], "apiVersions": ["v1"], "operations": ["CREATE"],
            "resources": ["rayjobs"],
        }],
        "admissionReviewVersions": ["v1"], "sideEffects": "None",
    }],
}  # fmt: skip
QUOTA = "crowded-jobs"


@contextmanager
def webhook_down(user: Submitter) -> Iterator[None]:
    """Nobody can ask it, so no RayJob is made."""
    user.cluster.apply([WEBHOOK])
    dry = ("--dry-run", "--id", "asked", *NOTHING)
    until(lambda: "failed calling webhook" in user.asks(*dry)[2], "the webhook", 60)
    yield
    user.cluster.kubectl("delete", "validatingwebhookconfiguration", "away")


def now() -> str:
    """As a line of a log says it."""
    return time.strftime("%H:%M:%S")


def used(cluster: Cluster) -> str | None:
    """RayJobs, as the quota counts them."""
    status = cluster.get("resourcequota", QUOTA).get("status", {})
    found: str | None = status.get("used", {}).get("count/rayjobs.ray.io")
    return found


def made_once(cluster: Cluster, submission: Submission, job: str) -> None:
    assert submission.said.count("submitted to") == 1
    selector = f"ray.io/originated-from-cr-name={job},ray.io/originated-from-crd=RayJob"
    assert len(cluster.items("raycluster", selector)) == 1


def test_a_webhook_that_is_down_is_told_and_waited_for(vae: Cluster, carol: Submitter) -> None:
    with webhook_down(carol):
        began, hooked = now(), carol.submits("--id", "hooked", *NOTHING)
        told = hooked.says(r"failed calling webhook.*; asking again, for 300 s at most\.")
        assert seconds_between(began, told) <= 60
        time.sleep(10)
        assert hooked.process.poll() is None
        assert vae.find("rayjob", "hooked") is None
    hooked.says("submitted to", 30)
    code, result = hooked.ends()
    assert (code, result["status"]) == (0, "SUCCEEDED")
    made_once(vae, hooked, "hooked")


def test_a_quota_of_jobs_that_is_full_is_told_and_waited_for(
    vae: Cluster, carol: Submitter
) -> None:
    """It is full with one that has ended: who deletes that makes room."""
    count = str(len(vae.items("rayjob")))
    vae.apply([{
        "apiVersion": "v1", "kind": "ResourceQuota",
        "metadata": {"name": QUOTA, "namespace": "vae"},
        "spec": {"hard": {"count/rayjobs.ray.io": count}},
    }])  # fmt: skip
    until(lambda: used(vae) == count, "the quota to be counted", 60)
    began, crowded = now(), carol.submits("--id", "crowded", *NOTHING)
    told = crowded.says(f"exceeded quota: {QUOTA}.*; asking again, for 300 s at most")
    assert seconds_between(began, told) <= 60
    assert crowded.process.poll() is None
    assert vae.find("rayjob", "crowded") is None
    vae.kubectl("-n", "vae", "delete", "rayjob", "hooked", "--wait=false")
    crowded.says("submitted to", 120)
    vae.kubectl("-n", "vae", "delete", "resourcequota", QUOTA)
    code, result = crowded.ends()
    assert (code, result["status"]) == (0, "SUCCEEDED")
    made_once(vae, crowded, "crowded")


def test_a_token_that_nobody_renews_ends_its_follower_and_not_the_job(
    vae: Cluster, walker: Walker, refused: Refused
) -> None:
    code, result = refused.forgotten.ends(400)
    assert (code, result["status"]) == (4, "LOST")
    assert "could not be looked at for 300 s" in result["message"]
    assert "Unauthorized" in result["message"]
    found = vae.get("rayjob", "walk")
    assert (found["metadata"]["uid"], found["status"]["jobStatus"]) == (refused.uid, "RUNNING")
    walker.give_token("forgotten")
    again = refused.user.submits(*WALK)
    again.says("walk is there already, and is followed")
    again.says("walk: RUNNING")
    head = head_of(vae, "walk")
    vae.kubectl("-n", "vae", "exec", head, "-c", "ray-head", "--", "touch", "/tmp/go")
    for follower in (again, refused.renewed):
        code, result = follower.ends()
        assert (code, result["status"]) == (0, "SUCCEEDED")
    vae.wait("pod", "walking", "jsonpath={.status.phase}=Succeeded", seconds=60)
    assert vae.get("rayjob", "walk")["metadata"]["uid"] == refused.uid
