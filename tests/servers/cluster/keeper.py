"""Holds the namespaces that a cluster lives in, and leaves nothing of it when its starter ends.

    python keeper.py PAUSE STARTER    prints {"number": ..., "folder": ..., "init": ...} and waits

All processes of the cluster are in one PID namespace: when its first process goes, the kernel ends
all others, and takes their network and mounts along. Cgroups, files and the cluster's clients on
the host are left for the keeper. If it is killed itself its end is that of the first process, and
its starter takes away what lies there (`Box.stop`), or the next keeper of any number.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PLACE = Path("/var/tmp/vae-cluster")
CGROUPS = Path("/sys/fs/cgroup")
MOST = 8
"""Clusters at once: each has a number, and by it addresses, cgroups and a folder of its own."""
_PR_SET_PDEATHSIG = 1


def main(pause: str, starter: int) -> None:
    """Until the parent process, `starter`, ends, by whatever, or sends SIGTERM."""
    told = list[int]()
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda received, _frame: told.append(received))
    number, _held = _take_number()
    # A client that outlives its cluster asks nobody: by the default route it would ask the world.
    _run("ip", "route", "replace", *_nobody(number))
    folder = PLACE / str(number)
    folder.mkdir(parents=True)
    command = ("unshare", "--pid", "--fork", "--kill-child=SIGKILL", "--net", "--mount-proc", pause)
    with (folder / "init.log").open("w") as log:
        box = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=_die_with_parent)
    init = _child(box.pid)
    try:
        print(json.dumps({"number": number, "folder": str(folder), "init": init}), flush=True)
        while not told and os.getppid() == starter and box.poll() is None:
            time.sleep(0.1)
    finally:
        box.kill()
        box.wait()
        _wait_for_end(init)
        _sweep(number)


def _take_number() -> tuple[int, int]:
    """The first that is free, and its lock; what lies at any other free one is taken away."""
    taken = None
    for number in range(MOST):
        lock = _lock(number)
        if lock is None:
            continue
        _sweep(number)
        if taken is None:
            taken = number, lock
        else:
            os.close(lock)
    return taken or sys.exit(f"{MOST} clusters run here already")


def _lock(number: int) -> int | None:
    """A file that keeps a number for this process, or None where another has it."""
    PLACE.mkdir(parents=True, exist_ok=True)
    lock = os.open(PLACE / f"{number}.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def sweep_unless_kept(number: int) -> None:
    """Takes away what a keeper has left that was killed."""
    lock = _lock(number)
    if lock is not None:
        _sweep(number)
        os.close(lock)


def _sweep(number: int) -> None:
    """What is left of a number: clients, then cgroups once empty, cable and folder."""
    _end_clients(PLACE / str(number))
    deadline = time.monotonic() + 30
    while not _remove_cgroups(number) and time.monotonic() < deadline:
        time.sleep(0.1)
    # It goes with the namespaces, but only after a while.
    _run("ip", "link", "del", f"vae{number}")
    _run("ip", "route", "del", *_nobody(number))
    shutil.rmtree(PLACE / str(number), ignore_errors=True)


def _nobody(number: int) -> tuple[str, ...]:
    """A cluster's addresses, for as long as there is no cable to them."""
    return "unreachable", f"10.88.{number}.0/24", "metric", "4096"


def _run(*command: str) -> None:
    """Where there is nothing to take away, that is well."""
    subprocess.run(command, capture_output=True, check=False)


def _end_clients(folder: Path) -> None:
    """Ends who was started with this KUBECONFIG: it would wait for long, and for nobody."""
    theirs = f"KUBECONFIG={folder}/".encode()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if any(each.startswith(theirs) for each in environment.read_bytes().split(b"\0")):
                os.kill(int(environment.parent.name), signal.SIGKILL)


def _remove_cgroups(number: int) -> bool:
    for controller in CGROUPS.iterdir():
        for folder, _, _ in os.walk(controller / f"vae-{number}", topdown=False):
            try:
                os.rmdir(folder)
            except OSError:  # A process in it is dying still.
                return False
    return True


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_for_end(init: int) -> None:
    """The first process of a namespace is the last to end."""
    deadline = time.monotonic() + 30
    with contextlib.suppress(OSError):
        while time.monotonic() < deadline:
            if Path(f"/proc/{init}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
            time.sleep(0.02)


def _child(pid: int) -> int:
    while True:
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                    return int(stat.parent.name)
            except OSError:
                continue
        time.sleep(0.01)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
