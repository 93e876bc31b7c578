"""What Prometheus' own Kubernetes discovery finds: Debian's Prometheus is built without it.

    python -m tests.cluster.discovery FOLDER NAMESPACE...

Writes FOLDER/pod.json and endpoints.json, every second, with the labels that the documentation of
`kubernetes_sd_configs` has for these roles: what selects among them is what the monitors say.
"""

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes

_META = "__meta_kubernetes"


def main(folder: Path, namespaces: list[str]) -> None:
    """For as long as the pod lives."""
    kubernetes.config.load_incluster_config()
    api = kubernetes.client.CoreV1Api()
    while True:
        found: dict[str, list[dict[str, Any]]] = {"pod": [], "endpoints": []}
        for namespace in namespaces:
            for pod in api.list_namespaced_pod(namespace).items:
                found["pod"] += _of_pod(pod)
            for service in api.list_namespaced_service(namespace).items:
                endpoints = api.list_namespaced_endpoints(
                    namespace, field_selector=f"metadata.name={service.metadata.name}"
                )
                for each in endpoints.items:
                    found["endpoints"] += _of_service(service, each)
        for role, targets in found.items():
            new = folder / f"{role}.new"
            new.write_text(json.dumps(targets))
            new.rename(folder / f"{role}.json")
        time.sleep(1)


def _of_pod(pod: Any) -> Iterator[dict[str, Any]]:
    """A target for each port that a container names; none of a pod without address, or ended."""
    if not pod.status.pod_ip or pod.status.phase in ("Succeeded", "Failed"):
        return
    labels = {
        f"{_META}_namespace": pod.metadata.namespace, f"{_META}_pod_name": pod.metadata.name,
        **_named("pod_label", pod.metadata.labels),
        **_named("pod_annotation", pod.metadata.annotations),
    }  # fmt: skip
    for container in pod.spec.containers:
        for port in container.ports or ():
            yield {
                "targets": [f"{pod.status.pod_ip}:{port.container_port}"],
                "labels": labels | {f"{_META}_pod_container_port_name": port.name or ""},
            }


def _of_service(service: Any, endpoints: Any) -> Iterator[dict[str, Any]]:
    for subset in endpoints.subsets or ():
        for address in subset.addresses or ():
            for port in subset.ports or ():
                yield {
                    "targets": [f"{address.ip}:{port.port}"],
                    "labels": {
                        f"{_META}_namespace": service.metadata.namespace,
                        f"{_META}_pod_name": address.target_ref.name if address.target_ref else "",
                        **_named("service_label", service.metadata.labels),
                        f"{_META}_endpoint_port_name": port.name or "",
                    },
                }


def _named(what: str, values: dict[str, str] | None) -> dict[str, str]:
    return {
        f"{_META}_{what}_{re.sub(r'[^a-zA-Z0-9_]', '_', name)}": value
        for name, value in (values or {}).items()
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
