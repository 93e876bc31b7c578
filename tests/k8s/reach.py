"""Who reaches what lies outside the namespace: DNS, storage, the API server, a node's own agents.

Checks yield what is wrong.
"""

import ipaddress
from collections.abc import Iterator, Sequence
from typing import Any

from tests.k8s.manifests import RAY, Object, Pod, called, find, of_kind, pods, selects

NODES = ipaddress.ip_network("169.254.0.0/16")
"""Where a node's own agents answer; its metadata hands out the node's rights."""
AGENTS = {
    # docs.aws.amazon.com, "EKS Pod Identity Agent".
    ("169.254.170.23/32", 80),
    # cloud.google.com, "Use network policy with Workload Identity Federation for GKE".
    ("169.254.169.254/32", 80), ("169.254.169.252/32", 988),
}  # fmt: skip
NODE_CACHE = "169.254.20.10/32"
"""kubernetes.io, "Using NodeLocal DNSCache"."""
SERVERS = {
    # kubeadm's and every vendor's CoreDNS; a policy sees the port of the pod, not of the service.
    "kube-system": ({"k8s-app": "kube-dns"}, 53),
    # openshift/cluster-dns-operator.
    "openshift-dns": ({"dns.operator.openshift.io/daemonset-dns": "default"}, 5353),
}
"""The pods that answer for names, by namespace: labels and port."""


def nodes(objects: Sequence[Object]) -> Iterator[str]:
    """No rule lets a pod reach its node's agents, but those that hand out the pod's own rights."""
    for policy, rule, peer in _rules_outside(objects):
        block = peer["ipBlock"]
        if not ipaddress.ip_network(block["cidr"]).overlaps(NODES):
            continue
        left_out = [ipaddress.ip_network(each) for each in block.get("except", [])]
        if NODES in left_out or block["cidr"] == NODE_CACHE:
            continue
        if any((block["cidr"], each["port"]) not in AGENTS for each in rule.get("ports", [{}])):
            yield f"{called(policy)}: {block['cidr']} reaches a node's own metadata"
        elif _selected(policy, objects) != _selected(_named(objects, "to-storage"), objects):
            yield f"{called(policy)}: gives rights to others than have to do with the storage"


def names(objects: Sequence[Object]) -> Iterator[str]:
    """Every pod may ask the servers for names, by UDP and, for long answers, by TCP."""
    for policy in of_kind(objects, "NetworkPolicy"):
        for rule in policy["spec"].get("egress", []):
            ports = {(each["protocol"], each["port"]) for each in rule.get("ports", [])}
            asked = {port for _, port in ports} & {53, 5353}
            for peer in rule["to"]:
                space = peer.get("namespaceSelector", {}).get("matchLabels", {})
                server = SERVERS.get(space.get("kubernetes.io/metadata.name", ""))
                is_cache = peer.get("ipBlock", {}).get("cidr") == NODE_CACHE
                if not (asked or server or is_cache):
                    continue
                labels, port = server or ({}, 53)
                if not selects(peer.get("podSelector", {}), labels):
                    yield f"{called(policy)}: selects no server for names"
                if ports != {("UDP", port), ("TCP", port)}:
                    yield f"{called(policy)}: names are asked for at {port}, by UDP and TCP"
                if policy["spec"]["podSelector"]:
                    yield f"{called(policy)}: some pods can't ask for names"


def storage(objects: Sequence[Object]) -> Iterator[str]:
    """Who has the storage's keys reaches it, and nobody else."""
    have = {
        pod.owner
        for pod in pods(objects)
        if any("storage-credentials" in str(each.get("envFrom")) for each in pod.containers)
    }
    for name in ("to-storage", "to-s3"):
        for policy in of_kind(objects, "NetworkPolicy"):
            if policy["metadata"]["name"] == name and _selected(policy, objects) != have:
                odd = sorted(_selected(policy, objects) ^ have)
                yield f"{called(policy)}: {odd} have the storage's keys or this way to it alone"


def api_server(objects: Sequence[Object]) -> Iterator[str]:
    """Who has a token for it reaches it: heads with an autoscaler, and the night; nobody else."""
    have = {pod.owner for pod in pods(objects) if pod.owner.startswith("CronJob/") and _tokens(pod)}
    for job in of_kind(objects, *RAY):
        if job["spec"]["rayClusterSpec"].get("enableInTreeAutoscaling"):
            have.add(f"{called(job)}/head")
    reach = {
        owner
        for policy, rule, _ in _rules_outside(objects)
        if 6443 in [each["port"] for each in rule["ports"]]
        for owner in _selected(policy, objects)
    }
    for owner in sorted(have - reach):
        yield f"{owner}: may not reach the API server"
    for owner in sorted(reach - have):
        yield f"{owner}: may reach the API server, and has no business with it"


def _rules_outside(objects: Sequence[Object]) -> Iterator[tuple[Object, Any, Any]]:
    for policy in of_kind(objects, "NetworkPolicy"):
        for rule in policy["spec"].get("egress", []):
            for peer in rule["to"]:
                if "ipBlock" in peer:
                    yield policy, rule, peer


def _named(objects: Sequence[Object], name: str) -> Object:
    return find(objects, "NetworkPolicy", name)


def _selected(policy: Object, objects: Sequence[Object]) -> set[str]:
    """The owners of the pods that a policy is for."""
    selector = policy["spec"]["podSelector"]
    return {pod.owner for pod in pods(objects) if selects(selector, pod.labels)}


def _tokens(pod: Pod) -> bool:
    return "serviceAccountToken" in str(pod.spec.get("volumes", []))
