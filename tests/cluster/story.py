"""What the story of test_way.py is made of: the README's commands in small, and what is seen."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
from PIL import Image

from tests.cluster.conftest import K8S, written
from tests.servers.cluster.box import until
from tests.servers.cluster.cluster import ROOT, Cluster

SMALL = (
    "--global-batch-size", "32", "--image-size", "32", "--model.kind", "mlp",
    "--evaluate-every", "1000", "--checkpoint-every", "500",
)  # fmt: skip
STEPS = 4000
"""About two minutes on two quiet cores: Prometheus looks twice for a rate."""
IMAGES = {f"{number:04d}" for number in range(300)}
_ASK = """
import json, sys, urllib.error, urllib.request
def status(token):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        asked = urllib.request.Request(sys.argv[1] + "/api/jobs/", headers=headers)
        return urllib.request.urlopen(asked, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code
print(json.dumps([status(token) for token in sys.argv[2:]]))
"""


class Ended(NamedTuple):
    """What a job of ours ended with, on this machine."""

    code: int
    result: Any
    said: str


class Night(NamedTuple):
    """How a night ended, and what each of its steps printed."""

    conditions: list[str]
    exit_codes: dict[str, int]
    logs: dict[str, str]

    def result(self, step: str) -> Any:
        """What the step ended with: its last line."""
        return json.loads(self.logs[step].strip().splitlines()[-1])


class Begun(NamedTuple):
    """Doctor and packing, and what could be seen while their clusters were there."""

    doctor: Ended
    pack: Ended
    packers: int
    stdout: str
    token: str
    mounts: dict[str, str]


class Trained(NamedTuple):
    """The training, and what could be seen only meanwhile."""

    ended: Ended
    ready_at_its_begin: list[bool]
    answered_while_it_waited: bool
    tokens: list[int]
    from_elsewhere: list[bool]
    endpoint: str
    missing_series: list[str]


class Promoted(NamedTuple):
    """Step 5, without the variables of the user, and with them."""

    nobody: Ended
    ended: Ended


class Nights(NamedTuple):
    """Of some at once: how each ended, the RayJobs that they made by uid, the store's objects."""

    nights: list[Night]
    rayjobs: dict[str, Any]
    latents: dict[str, str]


class Remains(NamedTuple):
    """What is there when clusters and RayJobs are gone."""

    doctors_log: str
    nights_log: str
    metrics: str
    after_restart: str
    forgotten: str


def submissions() -> dict[str, list[str]]:
    """Of step 4: what stands after `--kubernetes`, for a cluster of two workers without GPUs."""
    found = {}
    for line in written("python -m jobs.submit").replace("\\\n", " ").splitlines():
        if "--dry-run" not in line:
            for said, here in {
                "--gpus 8 ": "",
                "--workers 8": "--workers 2",
                "--steps 100000": f"--steps {STEPS}",
            }.items():
                line = line.replace(said, here)
            words = shlex.split(line)
            assert words[:4] == ["python", "-m", "jobs.submit", "--kubernetes"]
            found[words[words.index("--") + 3].removeprefix("jobs.")] = words[4:]
    return {**found, "train": [*found["train"], *SMALL]}


def inline(begin: str) -> str:
    """The one command that stands so in the README's text."""
    (found,) = re.findall(rf"`({re.escape(begin)}[^`]*)`", (K8S / "README.md").read_text())
    return str(found)


def here(command: str, environment: Mapping[str, str], folder: Path) -> Ended:
    """Runs a command of ours on this machine, which has no keys of any storage."""
    mine = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    program, *words = shlex.split(command)
    assert program == "python"
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False,
        env=mine | {"PYTHONPATH": str(ROOT)} | dict(environment), timeout=300,
    )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    return Ended(done.returncode, json.loads(lines[-1]) if lines else {}, done.stderr)


def answers_to_tokens(cluster: Cluster, job: str, others_token: str) -> list[int]:
    """Of a job's dashboard to a worker: with no token, with another cluster's, with its own."""
    mine = cluster_of(cluster, job)
    worker = pods(cluster, job, "worker")[0]["metadata"]["name"]
    said = cluster.kubectl(
        "-n", "vae", "exec", worker, "-c", "ray-worker", "--", "python", "-c", _ASK,
        f"http://{mine}-head-svc:8265", "", others_token, cluster.secret(mine, "auth_token"),
    )  # fmt: skip
    return list(json.loads(said))


def cluster_of(cluster: Cluster, job: str) -> str:
    """The name of a RayJob's RayCluster."""
    return str(cluster.get("rayjob", job)["status"]["rayClusterName"])


def pods(cluster: Cluster, job: str, kind: str) -> list[Any]:
    """The heads or workers of a RayJob's cluster, but for those that are ending."""
    selector = f"ray.io/cluster={cluster_of(cluster, job)},ray.io/node-type={kind}"
    found = cluster.items("pod", selector)
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether Kubernetes says so."""
    return ("Ready", "True") in [
        (each["type"], each["status"]) for each in pod["status"].get("conditions", ())
    ]


def nights(cluster: Cluster, s3: Any, names: list[str]) -> Nights:
    """Makes the Jobs of these names by the README's command, at once, and waits for them."""
    rayjobs: dict[str, Any] = {}

    def ends(name: str) -> list[str]:
        conditions = cluster.get("job", name)["status"].get("conditions", ())
        return [each["type"] for each in conditions if each["status"] == "True"]

    def all_end() -> bool:
        time.sleep(2)
        found = cluster.find("rayjob", "nightly")
        if found is not None:
            rayjobs[found["metadata"]["uid"]] = found
        return all({"Complete", "Failed"} & set(ends(name)) for name in names)

    for name in names:
        cluster.bash(inline("kubectl -n vae create job").replace("nightly-try", name))
    until(all_end, " and ".join(names), 600)
    listed = s3.list_objects_v2(Bucket="latents", Prefix="photos/latents/").get("Contents", ())
    return Nights(
        [_night(cluster, name, ends(name)) for name in names],
        rayjobs,
        {item["Key"]: item["ETag"] for item in listed},
    )


def _night(cluster: Cluster, name: str, conditions: list[str]) -> Night:
    (pod,) = cluster.items("pod", f"job-name={name}")
    states = [
        *pod["status"]["initContainerStatuses"], *pod["status"]["containerStatuses"]
    ]  # fmt: skip
    return Night(
        conditions,
        {each["name"]: each["state"]["terminated"]["exitCode"] for each in states},
        {
            each["name"]: cluster.kubectl(
                "-n", "vae", "logs", pod["metadata"]["name"], "-c", each["name"]
            )
            for each in states
        },
    )


def put_images(s3: Any) -> None:
    """JPEGs of noise into the bucket `archive`, named by IMAGES."""
    for name in sorted(IMAGES):
        pixels = np.random.default_rng(int(name)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize((64, 64)).save(buffer, "JPEG")
        s3.put_object(Bucket="archive", Key=f"photos/{name}.jpg", Body=buffer.getvalue())


def members(s3: Any, below: str) -> list[str]:
    """Names of the images in all tars below a prefix of the bucket `datasets`."""
    found = []
    for item in s3.list_objects_v2(Bucket="datasets", Prefix=below)["Contents"]:
        if item["Key"].endswith(".tar"):
            body = s3.get_object(Bucket="datasets", Key=item["Key"])["Body"].read()
            with tarfile.open(fileobj=io.BytesIO(body)) as tar:
                found += [Path(unquote(name)).name[:4] for name in tar.getnames() if ".jpg" in name]
    return found


def status(url: str, user: str = "", host: str = "") -> int:
    headers = {"Authorization": f"Basic {b64encode(user.encode()).decode()}"} if user else {}
    headers |= {"Host": host} if host else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
