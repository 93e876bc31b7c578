"""Tests on a real Kubernetes cluster; `make cluster` builds it and runs them."""

import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.servers import rgw
from tests.servers.cluster import programs
from tests.servers.cluster.cluster import Cluster, cluster
from tests.servers.cluster.operators import offer_volumes, start_dns, start_kuberay

K8S = Path(__file__).parents[2] / "k8s"


@pytest.fixture(scope="session", autouse=True)
def can_start() -> None:
    """Skips all, by name, where no cluster can be started."""
    lacking = programs.missing()
    if lacking:
        pytest.skip(f"no cluster can be started here, for want of: {', '.join(lacking)}")


@contextmanager
def fresh_cluster() -> Iterator[Cluster]:
    """Two nodes, names, volumes, KubeRay and the kind of the templates."""
    with cluster(nodes=2) as found:
        start_dns(found)
        offer_volumes(found)
        start_kuberay(found)
        found.kubectl("apply", "-f", str(K8S / "templates.yaml"))
        yield found


@pytest.fixture(scope="session")
def nodes(can_start: None) -> Iterator[Cluster]:
    """The one that test files share."""
    with fresh_cluster() as found:
        yield found


@pytest.fixture(scope="session")
def vae(nodes: Cluster) -> Cluster:
    """Steps 2 and 3 of k8s/README.md as they stand, on overlays/dev: everything runs, idle."""
    for step in ("kubectl create namespace vae", "kubectl apply -k"):
        nodes.bash(written(step))
    return nodes


def written(begin: str, page: Path = K8S / "README.md") -> str:
    """The block of commands on a page that begins so, for overlays/dev and its S3 server."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    (block,) = [textwrap.dedent(each) for each in blocks if each.strip().startswith(begin)]
    port = rgw.free_ports(1)[0]  # Another cluster's may be forwarded at the same time.
    chosen = {
        "service/mlflow 5000": f"service/mlflow {port}:5000",
        "localhost:5000": f"localhost:{port}",
        "deployment/pushgateway 9091": f"deployment/pushgateway {port}:9091",
        "localhost:9091": f"localhost:{port}",
        "overlays/gpu": "overlays/dev",
        "AWS_ACCESS_KEY_ID=...": f"AWS_ACCESS_KEY_ID={rgw.ACCESS_KEY}",
        "AWS_SECRET_ACCESS_KEY=...": f"AWS_SECRET_ACCESS_KEY={rgw.SECRET_KEY}",
    }
    for said, here in chosen.items():
        block = block.replace(said, here)
    return block
