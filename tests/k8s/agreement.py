"""What no schema sees: whether the objects fit each other. Each check yields what is wrong."""

import re
from collections.abc import Iterator, Sequence

from tests.k8s.manifests import (
    Object,
    Pod,
    called,
    example_secrets,
    of_kind,
    pods,
    selects,
)

MADE_BY_KUBERNETES = {"kube-root-ca.crt"}
MAY_HAVE_A_TOKEN = {"CronJob/nightly/encode"}
"""Containers; KubeRay adds the autoscaler's to heads."""
OF_OPENSHIFT = {"system:openshift:scc:nonroot-v2"}
ELSEWHERE = {
    # templates/service.yaml of KubeRay's chart.
    "kuberay-operator": {
        "kind": "Service",
        "metadata": {
            "name": "kuberay-operator", "labels": {"app.kubernetes.io/name": "kuberay-operator"},
        },
        "spec": {"ports": [{"name": "http", "port": 8080, "targetPort": "http"}]},
    },
}  # fmt: skip
"""Services of other namespaces, by namespace."""
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?")


def names_and_quantities(objects: Sequence[Object]) -> Iterator[str]:
    seen = set()
    for item in objects:
        if not _NAME.fullmatch(item["metadata"]["name"]):
            yield f"{called(item)}: not a name for Kubernetes"
        if called(item) in seen:
            yield f"{called(item)}: twice"
        seen.add(called(item))
    for pod in pods(objects):
        for container in pod.containers:
            resources = container.get("resources", {})
            for kind, amounts in resources.items():
                for what, amount in amounts.items():
                    if not _QUANTITY.fullmatch(str(amount)):
                        yield f"{pod.owner}: {kind}.{what}: {amount!r} is no quantity"
            if "memory" not in resources.get("limits", {}):
                yield f"{pod.owner}/{container['name']}: no limit of memory"


def selectors(objects: Sequence[Object]) -> Iterator[str]:
    """Each selector of workloads, services, budgets and monitors matches something."""
    all_pods = list(pods(objects))
    for item in objects:
        spec, kind = item.get("spec", {}), item["kind"]
        if kind in ("Deployment", "StatefulSet"):
            if not selects(spec["selector"], spec["template"]["metadata"]["labels"]):
                yield f"{called(item)}: its selector does not match its own pods"
        elif kind in ("PodDisruptionBudget", "PodMonitor"):
            if spec.get("minAvailable", 0) > 1:
                yield f"{called(item)}: asks for more pods than there are, which alerts for ever"
            if not any(selects(spec["selector"], pod.labels) for pod in all_pods):
                yield f"{called(item)}: selects no pod"
        elif kind == "Service":
            if not _behind(item, all_pods):
                yield f"{called(item)}: selects no pod"
        elif kind == "ServiceMonitor" and not _watched(item, objects):
            yield f"{called(item)}: selects no service"


def ports(objects: Sequence[Object]) -> Iterator[str]:
    """Each port that a service or a monitor names is one that a container declares."""
    all_pods = list(pods(objects))
    for pod in all_pods:
        names = [port.get("name") for port in pod.ports]
        if len(set(names)) < len(names):
            yield f"{pod.owner}: two ports of one name"
        for container in pod.containers:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                asked = container.get(probe, {}).get("httpGet", {}).get("port")
                if asked is not None and pod.port_of(asked) is None:
                    yield f"{pod.owner}: {probe} asks port {asked}, which no container has"
    for item in objects:
        spec = item.get("spec", {})
        if item["kind"] == "Service":
            for port in spec["ports"]:
                asked = port.get("targetPort", port["port"])
                if any(pod.port_of(asked) is None for pod in _behind(item, all_pods)):
                    yield f"{called(item)}: targetPort {asked} is no port of its pods"
        elif item["kind"] == "PodMonitor":
            watched = [pod for pod in all_pods if selects(spec["selector"], pod.labels)]
            for endpoint in spec["podMetricsEndpoints"]:
                if all(pod.port_of(endpoint["port"]) is None for pod in watched):
                    yield f"{called(item)}: no pod has a port {endpoint['port']}"
        elif item["kind"] == "ServiceMonitor":
            for service in _watched(item, objects):
                have = {port["name"] for port in service["spec"]["ports"]}
                for endpoint in spec["endpoints"]:
                    if endpoint["port"] not in have:
                        yield f"{called(item)}: {called(service)} has no port {endpoint['port']}"


def accounts(objects: Sequence[Object]) -> Iterator[str]:
    have = {item["metadata"]["name"] for item in of_kind(objects, "ServiceAccount")}
    roles = {item["metadata"]["name"] for item in of_kind(objects, "Role")}
    for pod in pods(objects):
        name = pod.spec.get("serviceAccountName")
        if name not in have:
            yield f"{pod.owner}: there is no service account {name}"
    for item in of_kind(objects, "RoleBinding"):
        if item["roleRef"]["name"] not in roles | OF_OPENSHIFT:
            yield f"{called(item)}: there is no role {item['roleRef']['name']}"
        for subject in item["subjects"]:
            if subject["name"] not in have:
                yield f"{called(item)}: there is no service account {subject['name']}"
            if subject.get("namespace") != item["metadata"]["namespace"]:
                yield f"{called(item)}: {subject['name']} is of another namespace"
    for item in of_kind(objects, "Role", "ClusterRole", "ClusterRoleBinding"):
        if item["kind"] != "Role":
            yield f"{called(item)}: nothing here needs rights in other namespaces"
        for rule in item.get("rules", []):
            if "*" in rule["verbs"] + rule["resources"] + rule["apiGroups"]:
                yield f"{called(item)}: a wildcard is more than it needs"


def references(objects: Sequence[Object]) -> Iterator[str]:
    """ConfigMaps, Secrets, claims and volumes that are named are there, with the key named."""
    have = {
        (item["kind"], item["metadata"]["name"]): set(item.get("data") or item["stringData"])
        for item in [*of_kind(objects, "ConfigMap"), *example_secrets()]
    }
    claims = {item["metadata"]["name"] for item in of_kind(objects, "PersistentVolumeClaim")}
    for pod in pods(objects):
        for kind, name, key in _referred(pod):
            if name in MADE_BY_KUBERNETES:
                continue
            if (kind, name) not in have:
                yield f"{pod.owner}: there is no {kind} {name}"
            elif key is not None and key not in have[kind, name]:
                yield f"{pod.owner}: {kind} {name} has no key {key}"
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        for volume in volumes.values():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim is not None and claim not in claims:
                yield f"{pod.owner}: there is no claim {claim}"
        for container in pod.containers:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes.keys() | pod.claims:
                    yield f"{pod.owner}/{container['name']}: there is no volume {mount['name']}"
    for item in of_kind(objects, "ServiceMonitor"):
        for endpoint in item["spec"]["endpoints"]:
            for secret in endpoint.get("basicAuth", {}).values():
                if secret["key"] not in have.get(("Secret", secret["name"]), ()):
                    yield f"{called(item)}: Secret {secret['name']} has no key {secret['key']}"


def network(objects: Sequence[Object]) -> Iterator[str]:
    """Policies match pods and their ports, and what one end may send the other end takes."""
    all_pods = list(pods(objects))
    policies = of_kind(objects, "NetworkPolicy")
    if not any(_denies_all(policy["spec"]) for policy in policies):
        yield "no policy denies what no other allows"
    for policy in policies:
        here = [pod for pod in all_pods if selects(policy["spec"]["podSelector"], pod.labels)]
        if not here:
            yield f"{called(policy)}: selects no pod"
        if _has_ports_of_others(policy, here, all_pods):
            yield f"{called(policy)}: a port that none of those pods has"
    sent, taken = _edges(policies, all_pods, "egress"), _edges(policies, all_pods, "ingress")
    for source, target, port in sorted(sent ^ taken):
        end = "may not be sent" if (source, target, port) in taken else "is not taken"
        yield f"{source} to {target}, port {port}: {end}"


def passwords(objects: Sequence[Object]) -> Iterator[str]:
    """A password of MLflow's is with those alone who may speak with it."""
    edges = _edges(of_kind(objects, "NetworkPolicy"), list(pods(objects)), "egress")
    may = {source for source, target, _ in edges if target == "Deployment/mlflow"}
    for pod in pods(objects):
        held = {name for kind, name, _ in _referred(pod) if kind == "Secret"}
        if "mlflow-credentials" in held and pod.owner not in may:
            yield f"{pod.owner}: has MLflow's password, and may not reach MLflow"


def hardening(objects: Sequence[Object]) -> Iterator[str]:
    """What `restricted` demands, and a root file system that nothing can write to."""
    for pod in pods(objects):
        context = pod.spec.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
            yield f"{pod.owner}: may be root"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{pod.owner}: seccompProfile is not RuntimeDefault"
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.owner}: gets a token that it does not need"
        tokens = {
            volume["name"]
            for volume in pod.spec.get("volumes", [])
            for source in volume.get("projected", {}).get("sources", [])
            if "serviceAccountToken" in source
        }
        for container in pod.containers:
            own, where = container.get("securityContext", {}), f"{pod.owner}/{container['name']}"
            mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
            if tokens & mounts and where not in MAY_HAVE_A_TOKEN:
                yield f"{where}: mounts a token that it does not need"
            if own.get("allowPrivilegeEscalation") is not False:
                yield f"{where}: may gain privileges"
            if own.get("readOnlyRootFilesystem") is not True:
                yield f"{where}: its root file system can be written to"
            if own.get("capabilities", {}).get("drop") != ["ALL"]:
                yield f"{where}: keeps capabilities"


def _behind(service: Object, all_pods: Sequence[Pod]) -> list[Pod]:
    selector = {"matchLabels": service["spec"]["selector"]}
    return [pod for pod in all_pods if selects(selector, pod.labels)]


def _watched(monitor: Object, objects: Sequence[Object]) -> list[Object]:
    selector = monitor["spec"]["selector"]
    services = of_kind(objects, "Service")
    if "namespaceSelector" in monitor["spec"]:
        names = monitor["spec"]["namespaceSelector"]["matchNames"]
        services = [ELSEWHERE[name] for name in names if name in ELSEWHERE]
    return [each for each in services if selects(selector, each["metadata"].get("labels", {}))]


def _referred(pod: Pod) -> Iterator[tuple[str, str, str | None]]:
    """Kind, name and key of each ConfigMap and Secret that a pod can't start without."""
    for container in pod.containers:
        for source in container.get("envFrom", []):
            for kind, field in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                if field in source:
                    # Optional ones are checked too: a misspelt name would go unnoticed.
                    yield kind, source[field]["name"], None
        for variable in container.get("env", []):
            value = variable.get("valueFrom", {})
            for kind, field in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
                if field in value:
                    yield kind, value[field]["name"], value[field]["key"]
    for volume in pod.spec.get("volumes", []):
        sources = [volume, *volume.get("projected", {}).get("sources", [])]
        for source in sources:
            if "configMap" in source:
                yield "ConfigMap", source["configMap"]["name"], None
            if "secret" in source:
                yield (
                    "Secret",
                    source["secret"].get("secretName", source["secret"].get("name")),
                    None,
                )


def _denies_all(spec: Object) -> bool:
    nothing = not spec.get("ingress") and not spec.get("egress")
    return nothing and not spec["podSelector"] and len(spec["policyTypes"]) == 2


def _has_ports_of_others(policy: Object, here: Sequence[Pod], all_pods: Sequence[Pod]) -> bool:
    spec = policy["spec"]
    for rule in spec.get("ingress", []):
        for port in rule.get("ports", []):
            if all(pod.port_of(port["port"]) is None for pod in here):
                return True
    for rule in spec.get("egress", []):
        there = [
            pod
            for pod in all_pods
            for peer in rule["to"]
            if "podSelector" in peer and selects(peer["podSelector"], pod.labels)
        ]
        for port in rule.get("ports", []):
            if there and all(pod.port_of(port["port"]) is None for pod in there):
                return True
    return False


def _edges(
    policies: Sequence[Object], all_pods: Sequence[Pod], direction: str
) -> set[tuple[str, str, str]]:
    """Who may talk to whom inside the namespace, as one side's policies have it."""
    found = set()
    for policy in policies:
        here = [pod for pod in all_pods if selects(policy["spec"]["podSelector"], pod.labels)]
        for rule in policy["spec"].get(direction, []):
            for peer in rule["to" if direction == "egress" else "from"]:
                if "podSelector" not in peer or "namespaceSelector" in peer:
                    continue
                there = [pod for pod in all_pods if selects(peer["podSelector"], pod.labels)]
                if not there:
                    found.add((called(policy), "no pod at all", "-"))
                for one in here:
                    for other in there:
                        ends = (one, other) if direction == "egress" else (other, one)
                        for port in rule.get("ports", [{"port": "any"}]):
                            found.add((ends[0].owner, ends[1].owner, str(port["port"])))
    return found
