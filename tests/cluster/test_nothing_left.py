"""A cluster that has ended, however it did, leaves nothing; nodes and servers go and come."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cluster.pods import Pod
from tests.servers.cluster.box import until
from tests.servers.cluster.cluster import ROOT, cluster
from tests.servers.cluster.operators import start_dns

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
SETTINGS = (
    "vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes", "net/ipv4/ip_forward",
    "net/netfilter/nf_conntrack_max",
)  # fmt: skip
"""What a kubelet or a proxy would set for the whole machine."""
FOLDERS = ("/run", "/run/netns", "/var/lib", "/var/log", "/etc/cni", "/var/tmp/vae-cluster")


@dataclass(frozen=True)
class Life:
    """One cluster's process, and all that it started: as (PID, when it began), and its spaces."""

    process: "subprocess.Popen[str]"
    log: Path
    seen: set[tuple[int, str]] = field(default_factory=set)
    spaces: set[str] = field(default_factory=set)

    @classmethod
    def begin(cls, folder: Path) -> "Life":
        command = [sys.executable, "-m", "tests.cluster.short_life"]
        pipe, log = subprocess.PIPE, folder / "log"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=stderr, text=True
            )
        return cls(process, log)

    def programs(self) -> dict[str, int]:
        """Names of all its processes that run now, each with one PID of it."""
        found = {}
        known = {self.process.pid}
        table = processes()
        while more := {pid for pid, one in table.items() if one.parent in known} - known:
            known |= more
        for pid in known & set(table):
            self.seen.add((pid, table[pid].began))
            self.spaces.update({table[pid].space} - {os.readlink("/proc/self/ns/pid"), ""})
            found[table[pid].program] = pid
        return found

    def waits_for(self, program: str) -> None:
        until(lambda: program in self.programs(), program, 60)

    def is_up(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "up\n", self.log.read_text()
        assert {"kubelet", "containerd", "etcd", "coredns", "kubectl"} <= set(self.programs())

    def is_told(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def is_sent(self, number: int) -> None:
        self.process.send_signal(number)

    def left(self) -> list[str]:
        """What of it runs still."""
        return [
            one.program
            for pid, one in processes().items()
            if (pid, one.began) in self.seen or one.space in self.spaces
        ]


@dataclass(frozen=True)
class Process:
    """A line of the table of processes; `space` is its namespace of PIDs."""

    parent: int
    began: str
    program: str
    space: str


def processes() -> dict[int, Process]:
    """All that live; not those that have ended and aren't collected yet."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            words = (stat.parent / "cmdline").read_bytes().split(b"\0")
            space = os.readlink(stat.parent / "ns/pid")
        except OSError:
            continue
        if fields[0] not in "ZX":
            name = next((Path(w.decode()).name for w in words[1:2] if w.endswith(b".py")), "")
            name = name or Path(words[0].decode(errors="replace")).name
            found[int(stat.parent.name)] = Process(int(fields[1]), fields[19], name, space)
    return found


def on_the_host(keep: int | None = None) -> set[str]:
    """Mounts, interfaces, rules, sets, cgroups, files and settings, a line each.

    Of clusters only the one with the number `keep`: others come and go meanwhile.
    """
    tools = {
        "link": "ip -o link", "rule4": "iptables-save", "rule6": "ip6tables-save",
        "nft": "nft list tables", "set": "ipset list -name",
        "route": "ip route show table all",
    }  # fmt: skip
    lines = [f"mount {line.split()[4]}" for line in read("/proc/self/mountinfo").splitlines()]
    for what, command in tools.items():
        said = subprocess.run(command.split(), capture_output=True, text=True, check=False).stdout
        if what == "link":
            said = "\n".join(line.split(": ")[1] for line in said.splitlines())
        lines += [f"{what} {line}" for line in said.splitlines() if not line.startswith("#")]
    for controller in Path("/sys/fs/cgroup").iterdir():
        lines += [f"cgroup {folder}" for folder in controller.glob("*/") if folder.is_dir()]
    for folder in map(Path, FOLDERS):
        lines += [f"file {path}" for path in folder.glob("*") if path.suffix != ".lock"]
    lines += [f"setting {name} {read(f'/proc/sys/{name}')}" for name in SETTINGS]
    return {
        re.sub(r"\[\d+:\d+\]", "", line)
        for line in lines
        if number_of(line) == keep or (number_of(line) is None and not line.startswith("route "))
    }


def number_of(line: str) -> int | None:
    found = re.search(r"\b(?:vae-cluster/|vae-|vae|10\.88\.(?!0\.0/16))(\d)\b", line)
    return int(found[1]) if found else None


def read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def number_kept_by(keeper: int) -> int:
    """The cluster's, by the file that its keeper locks; it has let go of others by then."""
    until(
        lambda: "unshare" in [one.program for one in processes().values() if one.parent == keeper],
        "its namespaces", 10,
    )  # fmt: skip
    files = [os.readlink(file) for file in Path(f"/proc/{keeper}/fd").glob("*")]
    (number,) = [Path(file).stem for file in files if file.endswith(".lock")]
    return int(number)


def ends(life: Life) -> None:
    life.is_up()
    life.is_told("end")


def raises(life: Life) -> None:
    life.is_up()
    life.is_told("raise")


def is_interrupted(life: Life) -> None:
    life.is_up()
    life.is_sent(signal.SIGINT)


def is_terminated(life: Life) -> None:
    life.is_up()
    life.is_sent(signal.SIGTERM)


def is_killed_while_it_starts(life: Life) -> None:
    life.waits_for("kubelet")
    life.is_sent(signal.SIGKILL)


def is_killed_when_it_is_up(life: Life) -> None:
    life.is_up()
    life.is_sent(signal.SIGKILL)


def is_killed_while_it_ends(life: Life) -> None:
    life.is_up()
    life.is_told("end")
    until(lambda: "kubelet" not in life.programs(), "its end to begin", 60)
    life.is_sent(signal.SIGKILL)


def loses_its_keeper(life: Life) -> None:
    life.is_up()
    os.kill(life.programs()["keeper.py"], signal.SIGKILL)
    until(lambda: "kubelet" not in life.programs(), "the end of its programs", 60)
    life.is_told("end")


ENDINGS = (
    ends, raises, is_interrupted, is_terminated, is_killed_while_it_starts,
    is_killed_when_it_is_up, is_killed_while_it_ends, loses_its_keeper,
)  # fmt: skip


@pytest.mark.parametrize("number", range(3))
def test_nothing_is_left_of_a_cluster_that_ends_as_it_should(number: int, tmp_path: Path) -> None:
    test_nothing_of_a_cluster_is_left_however_it_ends(ends, tmp_path)


@pytest.mark.parametrize("ending", ENDINGS[1:])
def test_nothing_of_a_cluster_is_left_however_it_ends(
    ending: Callable[[Life], None], tmp_path: Path
) -> None:
    before = on_the_host()
    life = Life.begin(tmp_path)
    life.waits_for("keeper.py")
    keeper = life.programs()["keeper.py"]
    number = number_kept_by(keeper)
    try:
        ending(life)
        life.process.wait(120)
    finally:
        life.process.kill()
    began = dict(life.seen).get(keeper)
    until(lambda: getattr(processes().get(keeper), "began", None) != began, "the keeper's end", 90)
    assert life.left() == []
    assert on_the_host(keep=number) - before == set()


def test_nodes_are_cordoned_drained_powered_off_and_brought_back() -> None:
    with cluster(nodes=2) as found:
        start_dns(found)

        def where(name: str) -> str | None:
            pod = found.find("pod", name, "default")
            return pod["spec"].get("nodeName") if pod else None

        def runs(name: str) -> str | None:
            found.apply([Pod(name, {"app": "probe"}, (8080,), "default").manifest()])
            found.wait("pod", name, "condition=Ready", namespace="default")
            return where(name)

        found.kubectl("cordon", "node1")
        assert runs("first") == "node2"
        found.kubectl("uncordon", "node1")
        found.kubectl("drain", "node2", "--force", "--timeout=60s")
        assert where("first") is None
        assert runs("second") == "node1"
        found.kubectl("uncordon", "node2")

        server = found.control.parts["kube-apiserver"]
        server.kill()
        assert found.try_kubectl("get", "nodes", seconds=60).returncode
        server.start()
        until(found.control.is_ready, "the API server again", 60)

        found.kubectl("cordon", "node1")
        assert runs("third") == "node2"
        found.nodes[2].power_off()
        found.wait("node", "node2", "condition=Ready=Unknown", namespace="default", seconds=90)
        assert where("third") == "node2"
        found.add_node(2)
        assert runs("fourth") == "node2"
        # Through both nodes' networks, as before.
        found.kubectl("uncordon", "node1")
        fourth = Pod("fourth", {}, (), "default")
        second = Pod("second", {}, (), "default")
        assert second.reaches(found, [f"{fourth.address(found)}:8080"]) == [True]
        assert fourth.reaches(found, [f"{second.address(found)}:8080"]) == [True]
