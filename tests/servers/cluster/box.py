"""What a cluster's programs run in: namespaces that end together, and how one starts inside."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.servers.cluster import keeper


@dataclass
class Program:
    """A program inside the namespaces of the process `inside`; its log is `folder`/NAME.log."""

    name: str
    command: Sequence[str]
    inside: int
    folder: Path
    process: "subprocess.Popen[bytes]" = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Starts it, also once more after `kill`."""
        with (self.folder / f"{self.name}.log").open("a") as log:
            self.process = subprocess.Popen(
                entered(self.inside, *self.command), stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal to the program itself, and waits for its end."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        self.process.wait(60)

    @property
    def pid(self) -> int:
        """Of the program, not of `nsenter` before it."""
        return child_of(self.process.pid)

    def log(self) -> str:
        """The end of what it wrote."""
        return (self.folder / f"{self.name}.log").read_text(errors="replace")[-3000:]


@dataclass
class Box:
    """The cluster's outermost namespaces. `number` gives its addresses: 10.88.NUMBER.0/24."""

    number: int
    folder: Path
    init: int
    keeper: "subprocess.Popen[bytes]"

    @classmethod
    def make(cls, programs: Path) -> "Box":
        """New namespaces with a bridge in them, to which the host has one end of a cable."""
        process = subprocess.Popen(
            [sys.executable, keeper.__file__, str(programs / "pause"), str(os.getpid())],
            stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        box = cls(told["number"], Path(told["folder"]), told["init"], process)
        try:
            box._connect()
        except BaseException:  # a half-made one would stay as long as this process
            box.stop()
            raise
        return box

    def address(self, host: int) -> str:
        """Of a node, counted from 1; 254 is the machine that the tests run on."""
        return f"10.88.{self.number}.{host}"

    def card(self, host: int) -> str:
        """The hardware's address of a node: a bridge would change its own with its ports."""
        return f"02:88:00:00:{self.number:02x}:{host:02x}"

    def _connect(self) -> None:
        mine, theirs = f"vae{self.number}", f"vae{self.number}in"
        run("ip", "link", "add", mine, "type", "veth", "peer", "name", theirs)
        run("ip", "link", "set", theirs, "netns", str(self.init))
        run("ip", "address", "add", f"{self.address(254)}/24", "dev", mine)
        run("ip", "link", "set", mine, "up")
        for command in (
            "ip link set lo up",
            f"ip link add nodes address {self.card(1)} type bridge",
            f"ip link set {theirs} master nodes up",
            f"ip address add {self.address(1)}/24 dev nodes",
            "ip link set nodes up",
        ):
            run(*entered(self.init, *command.split()))

    def stop(self) -> None:
        """Ends all that runs inside; returns when nothing of it is left."""
        self.keeper.send_signal(signal.SIGTERM)
        self.keeper.wait(90)
        keeper.sweep_unless_kept(self.number)


def entered(inside: int, *command: str) -> list[str]:
    """The command, started in the network, mounts and PIDs of a process."""
    return ["nsenter", "--target", str(inside), "--net", "--mount", "--pid", "--", *command]


def run(*command: str, **given: Any) -> str:
    """What a command prints; raises with what it said when it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, **given
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
    return done.stdout


def child_of(pid: int) -> int:
    """The first child of a process, once it has one."""
    found: list[int] = []

    def look() -> bool:
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(stat.parent.name))
        return bool(found)

    until(look, "its first process", 10)
    return found[0]


def until(holds: Callable[[], object], what: str, seconds: float) -> None:
    """Waits until something holds; raises after so long."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.1)
