"""Holds the namespaces that a cluster lives in, and leaves nothing of it when its starter ends.

    python keeper.py PAUSE      prints {"number": ..., "folder": ..., "init": ...} and waits

All processes of the cluster are in one PID namespace: when its first process goes, the kernel ends
all others, and takes their network and mounts along. Cgroups and files are left for the keeper.
If it is killed itself its end is that of the first process, and the next keeper of that number
takes away what lies there.
"""

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
ADDRESSES = "10.88.0.0/16 metric 4096"
MOST = 8
"""Clusters at once: each has a number, and by it addresses, cgroups and a folder of its own."""
_PR_SET_PDEATHSIG = 1


def main(pause: str) -> None:
    """Until the parent process ends, by whatever, or sends SIGTERM."""
    parent, told = os.getppid(), list[int]()
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda received, _frame: told.append(received))
    number, _lock = _take_number()
    sweep(number)
    # A client that outlives its cluster asks nobody: by the default route it would ask the world.
    # This one thing stays, until the machine is started anew.
    subprocess.run(["ip", "route", "replace", "unreachable", *ADDRESSES.split()], check=True)
    folder = PLACE / str(number)
    folder.mkdir(parents=True)
    command = ("unshare", "--pid", "--fork", "--kill-child=SIGKILL", "--net", "--mount-proc", pause)
    with (folder / "init.log").open("w") as log:
        box = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=_die_with_parent)
    try:
        init = _child(box.pid)
        print(json.dumps({"number": number, "folder": str(folder), "init": init}), flush=True)
        while not told and os.getppid() == parent and box.poll() is None:
            time.sleep(0.1)
    finally:
        box.kill()
        box.wait()
        sweep(number)


def _take_number() -> tuple[int, int]:
    PLACE.mkdir(parents=True, exist_ok=True)
    for number in range(MOST):
        lock = os.open(PLACE / f"{number}.lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return number, lock
    sys.exit(f"{MOST} clusters run here already")


def sweep(number: int) -> None:
    """Takes away what a cluster of this number has left: cgroups, once empty, cable and folder."""
    deadline = time.monotonic() + 30
    while not _remove_cgroups(number) and time.monotonic() < deadline:
        time.sleep(0.1)
    # It goes with the namespaces, but only after a while.
    subprocess.run(["ip", "link", "del", f"vae{number}"], capture_output=True, check=False)
    shutil.rmtree(PLACE / str(number), ignore_errors=True)


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
    main(sys.argv[1])
