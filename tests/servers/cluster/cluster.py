"""A real Kubernetes cluster on this machine: `with cluster(nodes=2) as found:`; needs root.

Nothing of it outlives the process that started it (keeper.py), or leaves the machine.
"""

import base64
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.servers.cluster import programs
from tests.servers.cluster.box import Box, until
from tests.servers.cluster.certificates import Authority
from tests.servers.cluster.control_plane import PORT, ControlPlane
from tests.servers.cluster.node import Node

ROOT = Path(__file__).parents[3]


@dataclass
class Cluster:
    """Nodes are counted from 1; the first has the control plane's network and stays."""

    box: Box
    control: ControlPlane
    authority: Authority
    nodes: dict[int, Node] = field(default_factory=dict)

    def add_node(self, number: int) -> Node:
        """A new node; or one that was powered off, back again."""
        node = Node(number, self.box, programs.folder(), self.authority)
        before = self._heartbeat(node)
        node.start()
        self.nodes[number] = node
        until(lambda: self._heartbeat(node) != before, f"{node.name} to register", 60)
        node.enforce_policies()
        for other in self.nodes.values():
            if other is not node:
                other.route_to(node)
                node.route_to(other)
        self.wait("node", node.name, "condition=Ready", seconds=60)
        return node

    def _heartbeat(self, node: Node) -> str | None:
        """When the node was last heard of; one that comes back is known, but isn't there yet."""
        lease = self.find("lease", node.name, "kube-node-lease")
        return str(lease["spec"]["renewTime"]) if lease else None

    def kubeconfig(self, user: str, groups: Sequence[str] = (), namespace: str = "vae") -> Path:
        """With which somebody is this user; rights are given by bindings."""
        return self.authority.kubeconfig(user, groups, namespace)

    @property
    def admin(self) -> Path:
        """With which everything is allowed."""
        return self.authority.folder / "admin.conf"

    def kubectl(self, *arguments: str, given: str = "", user: Path | None = None) -> str:
        """What `kubectl` prints; raises with what it said when it fails."""
        done = self.try_kubectl(*arguments, given=given, user=user)
        if done.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr or done.stdout}")
        return done.stdout

    def try_kubectl(
        self, *arguments: str, given: str = "", user: Path | None = None, seconds: float = 300
    ) -> "subprocess.CompletedProcess[str]":
        """The same, with its exit code and both outputs."""
        return subprocess.run(
            ["kubectl", *arguments], env=self.environment(user), input=given,
            capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip

    def bash(self, commands: str, user: Path | None = None, seconds: float = 600) -> str:
        """What commands print that a user would type at the root of the project.

        The first that fails ends them and raises; what they left in the background ends with them.
        """
        script = f"set -euo pipefail; trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{commands}"
        done = subprocess.run(
            ["bash", "-c", script], cwd=ROOT, env=self.environment(user), capture_output=True,
            text=True, timeout=seconds, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{commands}: {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def environment(self, user: Path | None = None) -> dict[str, str]:
        """Of a process on this machine that is this user of the cluster, by default the admin."""
        # kubectl keeps what kinds there are by an address, which the next cluster has as well.
        cache = {"KUBECACHEDIR": str(self.box.folder / "kubectl")}
        return {**os.environ, **cache, "KUBECONFIG": str(user or self.admin)}

    def apply(self, objects: Sequence[Mapping[str, Any]]) -> None:
        """Applies objects, all in one call."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "--server-side", "-f", "-", given=json.dumps(listed))

    def get(self, kind: str, name: str, namespace: str = "vae") -> Any:
        """An object as it is now; raises where it is not."""
        return json.loads(self.kubectl("-n", namespace, "get", kind, name, "-o", "json"))

    def find(self, kind: str, name: str, namespace: str = "vae") -> Any:
        """An object as it is now, or None."""
        found = self.try_kubectl("-n", namespace, "get", kind, name, "-o", "json")
        return json.loads(found.stdout) if found.returncode == 0 else None

    def items(self, kind: str, selector: str = "", namespace: str = "vae") -> list[Any]:
        """All objects of a kind with these labels."""
        listed = self.kubectl("-n", namespace, "get", kind, "-l", selector, "-o", "json")
        return list(json.loads(listed)["items"])

    def secret(self, name: str, key: str, namespace: str = "vae") -> str:
        """What a Secret holds under a key."""
        return base64.b64decode(self.get("secret", name, namespace)["data"][key]).decode()

    def wait(
        self, kind: str, name: str, condition: str, *, namespace: str = "vae", seconds: float = 120
    ) -> None:
        """Until an object has a condition (`condition=Ready`, `jsonpath=...`, `delete`)."""
        self.kubectl(
            "-n", namespace, "wait", kind, name, f"--for={condition}", f"--timeout={seconds:.0f}s"
        )

    def logs(self) -> str:
        """The ends of all that its programs wrote."""
        parts = [
            *self.control.parts.values(),
            *(p for n in self.nodes.values() for p in n.parts.values()),
        ]
        return "\n".join(f"== {part.name}\n{part.log()}" for part in parts)


@contextmanager
def cluster(nodes: int = 1) -> Iterator[Cluster]:
    """A cluster whose nodes are ready; it is gone when the block ends."""
    built = programs.folder()
    box = Box.make(built)
    try:
        authority = Authority(box.folder / "pki", f"https://{box.address(1)}:{PORT}")
        control = ControlPlane(box, built, authority)
        found = Cluster(box, control, authority)
        authority.kubeconfig("admin", ["system:masters"])
        control.start()
        for number in range(1, nodes + 1):
            found.add_node(number)
        yield found
    finally:
        box.stop()
