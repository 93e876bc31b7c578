"""A node: container runtime, kubelet, proxy and policies, in namespaces that end together."""

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.servers.cluster import node_files
from tests.servers.cluster.box import Box, Program, child_of, entered, run, until
from tests.servers.cluster.certificates import Authority
from tests.servers.cluster.images import PAUSE, write_archive
from tests.servers.cluster.keeper import CGROUPS
from tests.servers.cluster.node_files import DNS, SERVICES, pods_of

_SOCKET = "/run/vae/containerd.sock"


@dataclass
class Node:
    """The node of a number, counted from 1. The first one has the control plane's network."""

    number: int
    box: Box
    programs: Path
    authority: Authority
    init: int = field(init=False)
    folder: Path = field(init=False)
    parts: dict[str, Program] = field(init=False, default_factory=dict)

    @property
    def name(self) -> str:
        """What Kubernetes calls it."""
        return f"node{self.number}"

    @property
    def address(self) -> str:
        """Of the node."""
        return self.box.address(self.number)

    def start(self) -> None:
        """Returns when the container runtime answers; the kubelet registers the node by itself."""
        self.folder = self.box.folder / self.name
        self.folder.mkdir(exist_ok=True)
        self._enter_namespaces()
        self._mount()
        if self.number > 1:
            self._connect()
        _make_cgroup(f"vae-{self.box.number}/{self.name}")
        self._start_runtime()
        self._start_kubelet()
        self._start_network()

    def power_off(self) -> None:
        """As when its plug is pulled: all that runs on it ends at once, and says nothing."""
        os.kill(self.init, 9)
        for part in self.parts.values():
            part.process.wait(60)
        ends = Path(f"/proc/{self.box.init}/net/dev")
        until(lambda: f"{self.name}:" not in ends.read_text(), "the end of its cable", 30)

    def run(self, *command: str) -> str:
        """What a command on the node prints."""
        return run(*entered(self.init, *command))

    def part(self, name: str, *command: str) -> None:
        """Starts a program on the node, which ends with it."""
        self.parts[name] = Program(name, command, self.init, self.folder)

    def _enter_namespaces(self) -> None:
        own = [] if self.number == 1 else ["--net"]
        command = entered(
            self.box.init, "unshare", "--pid", "--fork", "--kill-child=SIGKILL",
            "--mount-proc", *own,
            str(self.programs / "pause"),
        )  # fmt: skip
        with (self.folder / "init.log").open("a") as log:
            holder = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self.init = child_of(child_of(holder.pid))
        theirs = os.readlink("/proc/self/ns/mnt"), os.readlink(f"/proc/{self.box.init}/ns/mnt")
        until(
            lambda: os.readlink(f"/proc/{self.init}/ns/mnt") not in theirs
            and Path(f"/proc/{self.init}/comm").read_text().strip() == "pause",
            "the node's namespaces", 10,
        )  # fmt: skip

    def _mount(self) -> None:
        """What the node's programs would write to the host's folders goes to its own."""
        self.run("mount", "--make-rshared", "/")
        for place in ("/run", "/var/lib"):
            self.run("mount", "-t", "tmpfs", "tmpfs", place)
        self.run("mkdir", "-p", "/run/vae", "/run/netns", "/var/lib/kubelet")
        logs = self.folder / "log"
        logs.mkdir(exist_ok=True)
        self.run("mount", "--bind", str(logs), "/var/log")
        # The kubelet would set these for the whole machine.
        for name, value in {
            "vm/overcommit_memory": 1,
            "kernel/panic": 10,
            "kernel/panic_on_oops": 1,
        }.items():
            file = self.folder / name.replace("/", "-")
            file.write_text(str(value))
            self.run("mount", "--bind", str(file), f"/proc/sys/{name}")
        resolver = f"nameserver {DNS}\nsearch svc.cluster.local cluster.local\n"
        (self.folder / "resolv.conf").write_text(resolver)

    def _connect(self) -> None:
        end = f"node{self.number}"
        cable = ("ip", "link", "add", end, "type", "veth", "peer", "name", "nodes")
        # In the network alone: `netns` takes a number as this side counts its processes.
        network = ("nsenter", "--target", str(self.box.init), "--net", "--")
        run(*network, *cable, "netns", str(self.init))
        run(*network, "ip", "link", "set", end, "master", "nodes", "up")
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "link", "set", "nodes", "address", self.box.card(self.number))
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "nodes")
        self.run("ip", "link", "set", "nodes", "up")

    def _start_runtime(self) -> None:
        write_archive(self.folder / "images.tar", self.programs / "pause")
        (self.folder / "base.json").write_text(
            json.dumps(node_files.container_spec(self.run("ctr", "oci", "spec"), self.programs))
        )
        config = (Path(__file__).parent / "manifests/containerd.toml").read_text()
        (self.folder / "containerd.toml").write_text(
            config.replace("FOLDER", str(self.folder)).replace("PAUSE", PAUSE)
        )
        network = self.folder / "cni"
        network.mkdir(exist_ok=True)
        (network / "10-bridge.conflist").write_text(json.dumps(node_files.pod_network(self.number)))
        self.part("containerd", "containerd", "--config", str(self.folder / "containerd.toml"))
        ctr = ("ctr", "--address", _SOCKET)
        until(lambda: _works(self, *ctr, "version"), "containerd", 20)
        images = (*ctr, "--namespace", "k8s.io", "images")
        self.run(*images, "import", str(self.folder / "images.tar"))
        for image in self.run(*images, "ls", "-q").split():
            if "sha256" not in image:
                self.run(*images, "label", image, "io.cri-containerd.pinned=pinned")

    def _start_kubelet(self) -> None:
        file = f"kubelet-{self.name}"
        self.authority.issue(
            file, f"system:node:{self.name}", ["system:nodes"], [self.address, self.name]
        )
        pki = self.authority.folder
        config = yaml.safe_load((Path(__file__).parent / "manifests/kubelet.yaml").read_text())
        config |= {
            "cgroupRoot": f"/vae-{self.box.number}/{self.name}",
            "containerRuntimeEndpoint": f"unix://{_SOCKET}",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(pki / "ca.crt")},
            },
            "tlsCertFile": str(pki / f"{file}.crt"),
            "tlsPrivateKeyFile": str(pki / f"{file}.key"),
            "resolvConf": str(self.folder / "resolv.conf"),
            "podCIDR": pods_of(self.number),
            "clusterDNS": [DNS],
        }
        (self.folder / "kubelet.yaml").write_text(yaml.safe_dump(config))
        credentials = self.authority.kubeconfig(f"system:node:{self.name}", ["system:nodes"])
        self.part(
            "kubelet", str(self.programs / "kubelet"), f"--config={self.folder / 'kubelet.yaml'}",
            f"--kubeconfig={credentials}", f"--hostname-override={self.name}",
            f"--node-ip={self.address}", f"--root-dir={self.folder / 'kubelet'}",
            f"--cert-dir={pki}", "--v=1",
        )  # fmt: skip

    def _start_network(self) -> None:
        self.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.bridge.bridge-nf-call-iptables=1")
        # No default route: what is meant for nobody here goes nowhere.
        self.run("ip", "route", "replace", SERVICES, "dev", "nodes")
        credentials = self.authority.kubeconfig("system:kube-proxy")
        config = node_files.proxy_config(self.name, credentials)
        (self.folder / "proxy.yaml").write_text(yaml.safe_dump(config))
        self.part(
            "kube-proxy", str(self.programs / "kube-proxy"),
            f"--config={self.folder / 'proxy.yaml'}", "--v=1",
        )  # fmt: skip

    def route_to(self, other: "Node") -> None:
        """To the pods of another node."""
        self.run("ip", "route", "replace", pods_of(other.number), "via", other.address)

    def enforce_policies(self) -> None:
        """Begins once the node is registered: before, its program gives up."""
        admin = self.authority.kubeconfig("admin", ["system:masters"])
        self.part(
            "kube-router", str(self.programs / "kube-router"), "--run-router=false",
            "--run-service-proxy=false", "--run-firewall=true", f"--kubeconfig={admin}",
            f"--hostname-override={self.name}", f"--service-cluster-ip-range={SERVICES}",
            "--metrics-port=0",
        )  # fmt: skip


def _make_cgroup(path: str) -> None:
    for controller in CGROUPS.iterdir():
        folder = controller
        for part in path.split("/"):
            above, folder = folder, folder / part
            folder.mkdir(exist_ok=True)
            for setting in ("cpuset.cpus", "cpuset.mems"):  # empty in a new one: nothing could run
                if (above / setting).exists():
                    (folder / setting).write_text((above / setting).read_text())


def _works(node: Node, *command: str) -> bool:
    try:
        node.run(*command)
    except RuntimeError:
        return False
    return True
