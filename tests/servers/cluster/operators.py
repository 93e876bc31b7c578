"""What runs in a cluster beside the project: DNS, KubeRay, Kueue, and volumes to be claimed.

The operators' manifests are those in their own modules; their images are the binaries built here.
"""

import shutil
from pathlib import Path

import yaml

from tests.servers.cluster import programs
from tests.servers.cluster.box import until
from tests.servers.cluster.cluster import Cluster
from tests.servers.cluster.images import HOST

_MANIFESTS = Path(__file__).parent / "manifests"


def start_dns(cluster: Cluster) -> None:
    """CoreDNS, by the address that every pod asks."""
    cluster.kubectl("apply", "-f", str(_MANIFESTS / "dns.yaml"))
    cluster.kubectl("-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=60s")


def add_kuberays_kinds(cluster: Cluster) -> None:
    """RayJob and its like, which the API server then checks; nobody works on them."""
    cluster.kubectl("create", "-k", str(programs.folder() / "config/kuberay/crd"))


def add_kind(cluster: Cluster, definition: Path, name: str) -> None:
    """The kind of a file, once the API server serves it."""
    cluster.kubectl("apply", "--server-side", "-f", str(definition))
    # `kubectl wait` fails where there is no condition at all yet.
    until(lambda: cluster.try_kubectl("get", name, "-A").returncode == 0, name, 30)


def start_kuberay(cluster: Cluster) -> None:
    """KubeRay in the namespace that k8s/README.md names."""
    config = _copied(cluster, "kuberay")
    add_kuberays_kinds(cluster)
    _write(config, "kuberay", "kuberay-operator", ["config/rbac", "config/manager"],
           ["--enable-leader-election=false", "--enable-metrics=true"])  # fmt: skip
    cluster.kubectl("create", "namespace", "kuberay-operator")
    cluster.kubectl("apply", "-k", str(config))
    _rolled_out(cluster, "kuberay-operator", "kuberay-operator")


def start_kueue(cluster: Cluster) -> None:
    """Kueue, with its webhooks."""
    config = _copied(cluster, "kueue")
    _write(config, "kueue", "", ["config/default"], None)
    cluster.kubectl("create", "namespace", "kueue-system")
    cluster.kubectl("apply", "--server-side", "-k", str(config))
    _rolled_out(cluster, "kueue-system", "kueue-controller-manager")


def offer_volumes(cluster: Cluster, sizes: tuple[str, ...] = ("1Gi", "20Gi", "20Gi")) -> None:
    """A default storage class, and volumes of it on the first node's disk."""
    found = ["""
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: local
  annotations: {storageclass.kubernetes.io/is-default-class: "true"}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
"""]  # fmt: skip
    for number, size in enumerate(sizes):
        folder = cluster.box.folder / f"volume{number}"
        folder.mkdir()
        found.append(f"""
apiVersion: v1
kind: PersistentVolume
metadata: {{name: volume{number}}}
spec:
  capacity: {{storage: {size}}}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: local
  local: {{path: {folder}}}
  nodeAffinity:
    required:
      nodeSelectorTerms:
        - matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [node1]}}]
""")
    cluster.apply([yaml.safe_load(each) for each in found])


def _copied(cluster: Cluster, name: str) -> Path:
    folder = cluster.box.folder / name
    shutil.copytree(programs.folder() / "config" / name, folder / "config")
    return folder


def _write(
    folder: Path, program: str, namespace: str, resources: list[str], arguments: list[str] | None
) -> None:
    """A kustomization whose Deployment runs our binary in an image that the nodes have."""
    container = "/spec/template/spec/containers/0"
    changes = [
        f"{{op: replace, path: {container}/command, value: [/opt/servers/{program}]}}",
        f"{{op: replace, path: {container}/image, value: {HOST}}}",
        f"{{op: replace, path: {container}/imagePullPolicy, value: Never}}",
        f"{{op: replace, path: {container}/resources, value: {{}}}}",
        "{op: add, path: /spec/template/spec/securityContext/runAsUser, value: 10001}",
    ]
    if arguments is not None:
        changes.append(f"{{op: replace, path: {container}/args, value: {arguments}}}")
    lines = [f"namespace: {namespace}"] if namespace else []
    lines += [f"resources: {resources}", "patches:", "- target: {kind: Deployment}", "  patch: |-"]
    lines += [f"    - {change}" for change in changes]
    (folder / "kustomization.yaml").write_text("\n".join(lines) + "\n")


def _rolled_out(cluster: Cluster, namespace: str, name: str) -> None:
    cluster.kubectl("-n", namespace, "rollout", "status", f"deployment/{name}", "--timeout=120s")
