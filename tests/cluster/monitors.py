"""A real Prometheus in the namespace `monitoring` that finds its targets by our monitors.

The Prometheus operator is not here. What it writes for a PodMonitor or ServiceMonitor stands here
for those fields that ours use, by its documentation of them; discovery.py gives the targets among
which they select. Rules are loaded as they are.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.k8s.manifests import build, find
from tests.servers.cluster.cluster import Cluster
from tests.servers.cluster.images import HOST

_NAMESPACE = "monitoring"
_PLACE, _TARGETS = "/etc/prometheus", "/targets"


class Prometheus:
    """Started by `start`; asked from inside its pod."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def start(self) -> None:
        """Returns when it is ready; the namespace is there."""
        files = {"prometheus.yml": _config(self._cluster), "rules.yml": find(
            build("gpu"), "PrometheusRule", "vae")["spec"]}  # fmt: skip
        self._cluster.apply([
            *_rights(),
            _operators_service(),
            {
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": "prometheus", "namespace": _NAMESPACE},
                "data": {name: json.dumps(content) for name, content in files.items()},
            },
            _pod(),
        ])  # fmt: skip
        self._cluster.wait("pod", "prometheus", "condition=Ready", namespace=_NAMESPACE)

    def fetch(self, url: str, *options: str) -> str:
        """What curl prints there of a URL; raises where nothing answers."""
        return self._cluster.kubectl(
            "-n", _NAMESPACE, "exec", "prometheus", "-c", "prometheus", "--",
            "curl", "--silent", "--show-error", "--max-time", "5", *options, url,
        )  # fmt: skip

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series that it has now."""
        said = self.fetch(
            "http://localhost:9090/api/v1/query", "--get", "--data-urlencode", f"query={expression}"
        )
        return [(each["metric"], float(each["value"][1])) for each in _result(said)]

    def misses(self, expressions: Sequence[str], seconds: float) -> list[str]:
        """Those that were never true within so long: what is gone takes its series along."""
        left, deadline = list(expressions), time.monotonic() + seconds
        while left and time.monotonic() < deadline:
            left = [each for each in left if not self.query(each)]
            time.sleep(2)
        return left


def _result(said: str) -> list[Any]:
    answer = json.loads(said)
    assert answer["status"] == "success", said
    return list(answer["data"]["result"])


def _config(cluster: Cluster) -> dict[str, Any]:
    objects = build("gpu")
    return {
        "global": {"scrape_interval": "30s", "evaluation_interval": "5s"},
        "rule_files": [f"{_PLACE}/rules.yml"],
        "scrape_configs": [
            scrape
            for monitor in objects
            if monitor["kind"] in ("PodMonitor", "ServiceMonitor")
            for scrape in _scrapes(monitor, cluster)
        ],
    }


def _scrapes(monitor: Mapping[str, Any], cluster: Cluster) -> Iterator[dict[str, Any]]:
    """One for each endpoint: the port's name is looked for on what the selector matches."""
    name, own = monitor["metadata"]["name"], monitor["metadata"]["namespace"]
    is_pod, spec = monitor["kind"] == "PodMonitor", monitor["spec"]
    kind, port_of = ("pod", "pod_container") if is_pod else ("service", "endpoint")
    for endpoint in spec["podMetricsEndpoints" if is_pod else "endpoints"]:
        (namespace,) = spec.get("namespaceSelector", {}).get("matchNames", [own])
        relabelings = [
            _keep("__meta_kubernetes_namespace", namespace),
            *(
                _keep(f"__meta_kubernetes_{kind}_label_{_sanitized(label)}", value)
                for label, value in spec["selector"]["matchLabels"].items()
            ),
            _keep(f"__meta_kubernetes_{port_of}_port_name", endpoint["port"]),
            _copy("__meta_kubernetes_namespace", "namespace"),
            _copy("__meta_kubernetes_pod_name", "pod"),
            {"target_label": "job", "replacement": f"{own}/{name}"},
            *(
                _copy(f"__meta_kubernetes_pod_label_{_sanitized(label)}", _sanitized(label))
                for label in spec.get("podTargetLabels", ())
            ),
            *(
                {"source_labels": rule["sourceLabels"], "target_label": rule["targetLabel"]}
                for rule in endpoint.get("relabelings", ())
            ),
        ]
        scrape = {
            "job_name": f"{monitor['kind']}/{own}/{name}/{endpoint['port']}",
            "scrape_interval": endpoint["interval"],
            "honor_labels": endpoint.get("honorLabels", False),
            "file_sd_configs": [{"files": [f"{_TARGETS}/{'pod' if is_pod else 'endpoints'}.json"]}],
            "relabel_configs": relabelings,
        }  # fmt: skip
        if "basicAuth" in endpoint:
            user, password = (endpoint["basicAuth"][each] for each in ("username", "password"))
            scrape["basic_auth"] = {
                "username": cluster.secret(user["name"], user["key"]),
                "password": cluster.secret(password["name"], password["key"]),
            }
        yield scrape


def _sanitized(label: str) -> str:
    return re.sub(r"\W", "_", label)


def _keep(source: str, value: str) -> dict[str, Any]:
    return {"source_labels": [source], "regex": re.escape(value), "action": "keep"}


def _copy(source: str, target: str) -> dict[str, Any]:
    return {"source_labels": [source], "target_label": target}


def _rights() -> list[dict[str, Any]]:
    """To find targets, and nothing else, as kube-prometheus gives them."""
    group = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount",
         "metadata": {"name": "prometheus", "namespace": _NAMESPACE}},
        {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": {"name": "prometheus"},
         "rules": [{"apiGroups": [""], "resources": ["pods", "services", "endpoints"],
                    "verbs": ["get", "list", "watch"]}]},
        {"apiVersion": f"{group}/v1", "kind": "ClusterRoleBinding",
         "metadata": {"name": "prometheus"},
         "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "prometheus"},
         "subjects": [
             {"kind": "ServiceAccount", "name": "prometheus", "namespace": _NAMESPACE}]},
    ]  # fmt: skip


def _operators_service() -> dict[str, Any]:
    """As KubeRay's chart makes it; its plain manifests name label and port otherwise."""
    return {
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kuberay-operator-of-the-chart", "namespace": "kuberay-operator",
            "labels": {"app.kubernetes.io/name": "kuberay-operator"},
        },
        "spec": {
            "selector": {"app.kubernetes.io/component": "kuberay-operator"},
            "ports": [{"name": "http", "port": 8080, "targetPort": "http"}],
        },
    }  # fmt: skip


def _pod() -> dict[str, Any]:
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "prometheus", "namespace": _NAMESPACE},
        "spec": {
            "serviceAccountName": "prometheus",
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "prometheus", "image": HOST,
                    "command": ["prometheus", f"--config.file={_PLACE}/prometheus.yml",
                                "--storage.tsdb.path=/tmp/series"],
                    "readinessProbe": {
                        "httpGet": {"path": "/-/ready", "port": 9090}, "periodSeconds": 1,
                    },
                    "volumeMounts": [
                        {"name": "config", "mountPath": _PLACE},
                        {"name": "targets", "mountPath": _TARGETS},
                    ],
                },
                {
                    "name": "discovery", "image": HOST,
                    "command": ["python", "-m", "tests.cluster.discovery", _TARGETS,
                                "vae", "kuberay-operator"],
                    "volumeMounts": [{"name": "targets", "mountPath": _TARGETS}],
                },
            ],
            "volumes": [
                {"name": "config", "configMap": {"name": "prometheus"}},
                {"name": "targets", "emptyDir": {}},
            ],
        },
    }  # fmt: skip
