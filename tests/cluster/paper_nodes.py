"""Node objects without a kubelet: the real scheduler binds pods to them, and nothing runs there."""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.servers.cluster.box import until
from tests.servers.cluster.cluster import Cluster


@dataclass(frozen=True)
class PaperNode:
    """What a node of some kind says of itself: what it has to give away, and whom it keeps off."""

    name: str
    allocatable: Mapping[str, str]
    taints: Sequence[Mapping[str, str]] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

    def manifest(self) -> dict[str, Any]:
        return {
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": self.name, "labels": {"kubernetes.io/hostname": self.name, **self.labels},
            },
            "spec": {"taints": list(self.taints)},
        }  # fmt: skip

    def status(self) -> dict[str, Any]:
        """As its kubelet would write it."""
        conditions = [
            {"type": name, "status": "True" if name == "Ready" else "False", "reason": "Paper",
             "lastHeartbeatTime": _now(), "lastTransitionTime": _now()}
            for name in ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure")
        ]  # fmt: skip
        given = dict(self.allocatable)
        return {"status": {"capacity": given, "allocatable": given, "conditions": conditions}}


@contextmanager
def paper_nodes(cluster: Cluster, *nodes: PaperNode) -> Iterator[None]:
    """They are ready as long as the block lasts: their leases are renewed."""
    ended = threading.Event()
    for node in nodes:
        cluster.kubectl("create", "-f", "-", given=json.dumps(node.manifest()))
        cluster.kubectl(
            "patch", "node", node.name, "--subresource=status", "--type=merge", "-p",
            json.dumps(node.status()),
        )  # fmt: skip
    _renew(cluster, nodes)
    thread = threading.Thread(target=_keep, args=(cluster, nodes, ended), daemon=True)
    thread.start()
    try:
        until(lambda: all(_is_open(cluster, node) for node in nodes), "the nodes on paper", 60)
        yield
    finally:
        ended.set()
        thread.join()
        cluster.kubectl("delete", "node", *(node.name for node in nodes))


def _keep(cluster: Cluster, nodes: Sequence[PaperNode], ended: threading.Event) -> None:
    while not ended.wait(5):  # A node that says nothing for 20 s is lost (control_plane.py).
        _renew(cluster, nodes)


def _is_open(cluster: Cluster, node: PaperNode) -> bool:
    """Whether all that keeps pods off is its own: a new node is closed until it is seen ready."""
    found = cluster.get("node", node.name, "")["spec"].get("taints", [])
    return len(found) == len(node.taints)


def _renew(cluster: Cluster, nodes: Sequence[PaperNode]) -> None:
    leases = [
        {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
         "metadata": {"name": node.name, "namespace": "kube-node-lease"},
         "spec": {"holderIdentity": node.name, "leaseDurationSeconds": 40, "renewTime": _now()}}
        for node in nodes
    ]  # fmt: skip
    cluster.apply(leases)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
