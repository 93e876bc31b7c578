"""Pods that listen where they are told, and say which of others they reach."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.servers.cluster.cluster import Cluster
from tests.servers.cluster.images import HOST

_LISTEN = """
import signal, socket, sys, threading
def serve(listener):
    while True:
        listener.accept()[0].close()
for port in map(int, sys.argv[1:]):
    listener = socket.create_server(("0.0.0.0", port), backlog=64)
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
signal.pause()
"""
_REACH = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def reached(place):
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError:
        return False
    return True
with ThreadPoolExecutor(64) as pool:
    print(json.dumps(list(pool.map(reached, sys.argv[1:]))))
"""


@dataclass(frozen=True)
class Pod:
    """One that listens on ports; its name is that of what it stands for."""

    name: str
    labels: Mapping[str, str]
    ports: Sequence[int]
    namespace: str

    def manifest(self) -> dict[str, Any]:
        """As strict as the namespace asks for; ports below 1024 are anybody's."""
        return {
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": self.name, "namespace": self.namespace, "labels": dict(self.labels),
            },
            "spec": {
                "automountServiceAccountToken": False,
                "terminationGracePeriodSeconds": 1,
                "securityContext": {
                    "runAsNonRoot": True, "runAsUser": 10001,
                    "seccompProfile": {"type": "RuntimeDefault"},
                    "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}],
                },
                "containers": [{
                    "name": "listen", "image": HOST,
                    "command": ["python", "-c", _LISTEN, *map(str, self.ports)],
                    "securityContext": {
                        "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
                    },
                }],
            },
        }  # fmt: skip

    def address(self, cluster: Cluster) -> str:
        """Its own."""
        return str(cluster.get("pod", self.name, self.namespace)["status"]["podIP"])

    def reaches(self, cluster: Cluster, places: Sequence[str]) -> list[bool]:
        """Whether it can open a connection to each ADDRESS:PORT."""
        said = cluster.kubectl(
            "-n", self.namespace, "exec", self.name, "--", "python", "-c", _REACH, *places
        )
        return list(json.loads(said))
