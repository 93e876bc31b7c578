"""Store, API server, controllers and scheduler, in the first node's network."""

import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.cluster.box import Box, Program, until
from tests.servers.cluster.certificates import Authority
from tests.servers.cluster.node_files import SERVICES

PORT = 6443
_STORE = "http://127.0.0.1:2379"


@dataclass
class ControlPlane:
    """Started by `start`; each of its `parts` can be killed, and started again."""

    box: Box
    programs: Path
    authority: Authority
    parts: dict[str, Program] = field(init=False, default_factory=dict)

    @property
    def url(self) -> str:
        """Of the API server."""
        return f"https://{self.box.address(1)}:{PORT}"

    def start(self) -> None:
        """Returns when the API server is ready."""
        self._part(
            "etcd", f"--data-dir={self.box.folder / 'etcd'}", "--unsafe-no-fsync",
            f"--listen-client-urls={_STORE}", f"--advertise-client-urls={_STORE}",
            "--listen-peer-urls=http://127.0.0.1:2380", "--log-level=warn",
        )  # fmt: skip
        self._start_api_server()
        until(self.is_ready, "the API server", 60)
        pki = self.authority.folder
        manager = self.authority.kubeconfig("system:kube-controller-manager")
        self._part(
            "kube-controller-manager", f"--kubeconfig={manager}",
            f"--root-ca-file={pki / 'ca.crt'}",
            f"--service-account-private-key-file={pki / 'sa.key'}",
            "--use-service-account-credentials=true", "--leader-elect=false",
            "--allocate-node-cidrs=false", "--bind-address=127.0.0.1",
            # A node that is gone is noticed within seconds, and its pods leave it.
            "--node-monitor-period=2s", "--node-monitor-grace-period=20s",
            # A quota made before its kind was known to be counted waits for the next full look.
            "--resource-quota-sync-period=10s",
        )  # fmt: skip
        scheduler = self.authority.kubeconfig("system:kube-scheduler")
        self._part(
            "kube-scheduler", f"--kubeconfig={scheduler}", "--leader-elect=false",
            "--bind-address=127.0.0.1",
        )  # fmt: skip

    def _start_api_server(self) -> None:
        self.authority.issue("apiserver", "kube-apiserver", [], [
            self.box.address(1), "10.96.0.1", "127.0.0.1", "kubernetes", "kubernetes.default",
            "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
        ])  # fmt: skip
        self.authority.issue("to-kubelet", "kube-apiserver", ["system:masters"])
        pki = self.authority.folder
        self._part(
            "kube-apiserver", f"--etcd-servers={_STORE}",
            f"--advertise-address={self.box.address(1)}",
            f"--secure-port={PORT}", f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            f"--client-ca-file={pki / 'ca.crt'}", "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",  # as installers set it: Pod Security is to say no
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={pki / 'sa.pub'}",
            f"--service-account-signing-key-file={pki / 'sa.key'}",
            f"--service-cluster-ip-range={SERVICES}",
            f"--kubelet-client-certificate={pki / 'to-kubelet.crt'}",
            f"--kubelet-client-key={pki / 'to-kubelet.key'}",
            "--kubelet-preferred-address-types=InternalIP",
        )  # fmt: skip

    def _part(self, name: str, *options: str) -> None:
        command = (str(self.programs / name), *options)
        self.parts[name] = Program(name, command, self.box.init, self.box.folder)

    def is_ready(self) -> bool:
        """Whether the API server says so itself."""
        context = ssl.create_default_context(cafile=str(self.authority.folder / "ca.crt"))
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", context=context, timeout=5) as answer:
                return answer.status == 200
        except (OSError, urllib.error.HTTPError):
            return False
