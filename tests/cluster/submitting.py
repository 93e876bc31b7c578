"""Who submits from this machine with the Role `submitter` alone, and what they are told."""

import copy
import datetime
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.servers import rgw
from tests.servers.cluster.cluster import ROOT, Cluster
from tests.support.warm import WarmJob


@dataclass
class Submission:
    """`python -m jobs.submit --kubernetes ...` as it goes on, and as it ended."""

    process: "subprocess.Popen[str]"
    stderr: Path

    @property
    def said(self) -> str:
        """All that it has said on stderr so far."""
        return self.stderr.read_text()

    def says(self, pattern: str, seconds: float = 300) -> str:
        """Waits for a line with this pattern, and returns it; raises with all if none comes."""
        deadline = time.monotonic() + seconds
        while True:
            over = self.process.poll() is not None
            found = re.search(f"^.*(?:{pattern}).*$", self.said, re.MULTILINE)
            if found:
                return found[0]
            if over or time.monotonic() > deadline:
                raise AssertionError(f"{pattern!r} was not said in:\n{self.said}")
            time.sleep(0.2)

    def interrupt(self) -> int:
        """Ctrl-C; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)

    def ends(self, seconds: float = 600) -> tuple[int, Any]:
        """The exit code, and the result: the last line of stdout."""
        stdout, _ = self.process.communicate(timeout=seconds)
        lines = stdout.strip().splitlines()
        return self.process.returncode, json.loads(lines[-1]) if lines else {}


@dataclass
class Submitter:
    """A user of the cluster; `storage` is the environment in which the jobs' S3 is reached."""

    cluster: Cluster
    kubeconfig: Path
    folder: Path
    storage: Mapping[str, str] = field(default_factory=dict)
    count: int = 0

    @classmethod
    def bound(
        cls, cluster: Cluster, name: str, folder: Path, storage: Mapping[str, str] | None = None
    ) -> "Submitter":
        """One who has the Role, by the command that k8s/README.md has for it."""
        readme = (ROOT / "k8s/README.md").read_text()
        (command,) = re.findall(r"`(kubectl -n vae create rolebinding [^`]*)`", readme)
        cluster.bash(command.replace("NAME", name))
        return cls(cluster, cluster.kubeconfig(name), folder, storage or {})

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of this machine's storage."""
        here = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
        own = {"KUBECONFIG": str(self.kubeconfig), "PYTHONPATH": str(ROOT)}
        return {**here, **self.storage, **own}

    def submits(self, *arguments: str) -> Submission:
        """Starts `jobs.submit --kubernetes` with these arguments."""
        self.count += 1
        stderr = self.folder / f"{self.kubeconfig.stem}-{self.count}.log"
        with stderr.open("w") as file:
            process = WarmJob(
                ("jobs.submit", "--kubernetes", *arguments), env=self.environment,
                cwd=self.folder, stdout=subprocess.PIPE, stderr=file, text=True,
            )  # fmt: skip
        return Submission(process, stderr)

    def asks(self, *arguments: str) -> tuple[int, Any, str]:
        """The exit code, the result and all that was said of one that ends by itself."""
        asked = self.submits(*arguments)
        code, result = asked.ends()
        return code, result, asked.said

    def asks_text(self, *arguments: str) -> str:
        """What is printed on stdout."""
        return str(self.submits(*arguments).process.communicate(timeout=120)[0])


def seconds_between(first: str, second: str) -> float:
    """By the times, HH:MM:SS, that two lines of a follower's log begin with; less than a day."""
    begun, ended = (datetime.datetime.strptime(line[:8], "%H:%M:%S") for line in (first, second))
    return (ended - begun).total_seconds() % 86400


@contextmanager
def forwarded(cluster: Cluster, service: str, port: int) -> Iterator[str]:
    """The URL by which a Service is reached from here meanwhile."""
    with subprocess.Popen(
        ["kubectl", "-n", "vae", "port-forward", f"service/{service}", f":{port}"],
        env=cluster.environment(), stdout=subprocess.PIPE, text=True,
    ) as forward:  # fmt: skip
        assert forward.stdout is not None
        found = re.search(r"127\.0\.0\.1:(\d+)", forward.stdout.readline())
        assert found is not None
        # It prints a line a connection, and stands still when nobody reads them.
        threading.Thread(target=forward.stdout.read, daemon=True).start()
        try:
            yield f"http://localhost:{found[1]}"
        finally:
            forward.terminate()


@contextmanager
def s3_from_here(cluster: Cluster) -> Iterator[dict[str, str]]:
    """The environment in which S3 in the cluster is reached, by the README's port-forward."""
    with forwarded(cluster, "s3", 9000) as url:
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": rgw.ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": rgw.SECRET_KEY,
        }


@contextmanager
def operator_away(cluster: Cluster) -> Iterator[None]:
    """No KubeRay looks at anything meanwhile."""
    where = ("-n", "kuberay-operator")
    cluster.kubectl(*where, "scale", "deployment/kuberay-operator", "--replicas=0")
    cluster.kubectl(*where, "wait", "pod", "--all", "--for=delete", "--timeout=60s")
    try:
        yield
    finally:
        cluster.kubectl(*where, "scale", "deployment/kuberay-operator", "--replicas=1")


def template(cluster: Cluster, name: str, change: Callable[[Any], object], of: str = "cpu") -> str:
    """A RayJobTemplate that is another one's copy but for a `change` of its spec; its name."""
    found = copy.deepcopy(cluster.get("rayjobtemplate", of))
    change(found["spec"])
    cluster.apply([{
        "apiVersion": found["apiVersion"], "kind": found["kind"],
        "metadata": {"name": name, "namespace": "vae", "labels": found["metadata"]["labels"]},
        "spec": found["spec"],
    }])  # fmt: skip
    return name


def head_pod(spec: Any) -> Any:
    """Of a template's or a RayJob's spec."""
    return spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]


def head_of(cluster: Cluster, job: str) -> str:
    """The name of the pod in which the driver of a RayJob runs."""
    found = cluster.get("rayjob", job)["status"]["rayClusterName"]
    (head,) = cluster.items("pod", f"ray.io/cluster={found},ray.io/node-type=head")
    return str(head["metadata"]["name"])
