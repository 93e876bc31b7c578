"""A cluster with two nodes and some pods, which ends when its standard input says how.

    python -m tests.cluster.short_life      prints "up" when all runs

It is told `end`, or `raise`; or it is killed.
"""

import subprocess
import sys

from tests.cluster.pods import Pod
from tests.servers.cluster.cluster import Cluster, cluster
from tests.servers.cluster.operators import start_dns


def _fill(found: Cluster) -> None:
    start_dns(found)
    pods = [
        {**pod, "spec": {**pod["spec"], "nodeName": name, "volumes": volumes}}
        for name in ("node1", "node2")
        for pod in [Pod(f"on-{name}", {"app": "short"}, (8080,), "default").manifest()]
        for volumes in [[
            {"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory"}},
        ]]
    ]  # fmt: skip
    for pod in pods:
        pod["spec"]["containers"][0]["volumeMounts"] = [
            {"name": name, "mountPath": f"/{name}"} for name in ("disk", "memory")
        ]
    found.apply(pods)
    found.kubectl("expose", "pod", "on-node1", "--port=8080")
    for name in ("on-node1", "on-node2"):
        found.wait("pod", name, "condition=Ready", namespace="default")


def main() -> None:
    """Until a line comes in."""
    with cluster(nodes=2) as found:
        _fill(found)
        # Left to itself on purpose, as by a test that was killed.
        subprocess.Popen(
            ["kubectl", "get", "pods", "--watch"], env=found.environment(),
            stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        print("up", flush=True)
        if sys.stdin.readline().strip() == "raise":
            raise RuntimeError("as when a test fails")


if __name__ == "__main__":
    main()
