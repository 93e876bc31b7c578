"""What a node's programs are configured by."""

import json
import sys
from pathlib import Path
from typing import Any

SERVICES = "10.96.0.0/16"
DNS = "10.96.0.10"
_PODS = "10.244.0.0/16"
_PROJECT = Path(__file__).parents[3]


def pods_of(node: int) -> str:
    """The addresses of a node's pods."""
    return f"10.244.{node}.0/24"


def container_spec(plain: str, programs: Path) -> dict[str, Any]:
    """A container's, in which the host's programs, Python and the project are, read-only."""
    spec: dict[str, Any] = json.loads(plain)
    python = str(Path(sys.executable).resolve().parents[1])
    mounts = {
        "/usr": "/usr", python: python, "/opt/venv": sys.prefix, "/opt/project": str(_PROJECT),
        "/opt/servers": str(programs),
    }  # fmt: skip
    for inside, outside in mounts.items():
        if inside == "/usr" or not inside.startswith("/usr/"):
            spec["mounts"].append({
                "destination": inside, "type": "bind", "source": str(Path(outside).resolve()),
                "options": ["rbind", "ro", "rprivate", "nosuid", "nodev"],
            })  # fmt: skip
    return spec


def pod_network(node: int) -> dict[str, Any]:
    """One bridge a node."""
    bridge = {
        "type": "bridge", "bridge": "cni0", "isGateway": True, "isDefaultGateway": True,
        "hairpinMode": True, "ipMasq": False,
        "ipam": {
            "type": "host-local", "dataDir": "/run/vae/ipam",
            "ranges": [[{"subnet": pods_of(node)}]],
        },
    }  # fmt: skip
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": "bridge", "plugins": [bridge, ports]}


def proxy_config(name: str, credentials: Path) -> dict[str, Any]:
    """Services by iptables; the machine's own limits of connections stay."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": str(credentials)},
        "clusterCIDR": _PODS,
        "hostnameOverride": name,
        "oomScoreAdj": 0,
        "conntrack": {
            "maxPerCore": 0, "min": 0,
            "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
        },
    }  # fmt: skip
