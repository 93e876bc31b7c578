"""Ray's workers as forks of a process that has their imports behind it, but for Ray's own.

Of forks of a process that had imported Ray two drew the same random ids (`Trying to put an object
that already existed in plasma`): its C++ half takes its seeds once, at its import.

A warm job has such a process below it, and for its `sys.executable` a program by which Ray starts
workers: each is what Python would have started, but for its parent.
"""

import ctypes
import json
import os
import secrets
import select
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PYTHON = Path(__file__).with_name("python_for_ray.sh")
_PR_SET_PDEATHSIG = 1
_NOT_FOR_US = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def wait_below() -> tuple[dict[str, Any], list[int]] | str:
    """Leaves a process below this one that forks workers; returns its address.

    In a worker, returns what it is to become, with the files of its stdout and stderr.
    """
    assert "ray" not in sys.modules, "its forks would draw the same ids"
    place = f"vae-warm-{os.getpid()}-{secrets.token_hex(4)}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"\0{place}")
    listener.listen(64)
    parent = os.getpid()
    if os.fork():
        listener.close()
        return place
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    for number in (*_NOT_FOR_US, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR)
    for file in (0, 1, 2):
        os.dup2(nothing, file)
    while True:
        connection, _ = listener.accept()
        data, files, _, _ = socket.recv_fds(connection, 2**20, 2)
        asked = json.loads(data) if data else {}
        if data and os.fork() == 0:
            listener.close()
            connection.send(b"1")
            # Open until this process ends, for which the other end waits.
            connection.detach()
            return asked, files
        connection.close()
        for file in files:
            os.close(file)


def take_place(asked: Mapping[str, Any]) -> None:
    """The signals, process group and threads that the process asked for would have."""
    for number in (*_NOT_FOR_US, signal.SIGCHLD):
        ignored = number in asked["ignored"]
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if ignored else usual)
    signal.pthread_sigmask(signal.SIG_SETMASK, asked["blocked"])
    if asked["session"] == os.getsid(0):
        os.setpgid(0, asked["group"])
    else:
        os.setsid()


def count_threads_as_ray_says() -> None:
    """torch, which reads OMP_NUM_THREADS as it is imported, is told what Ray sets only now."""
    import ray._private.utils
    import torch

    set_by_ray = ray._private.utils.set_omp_num_threads_if_unset

    def and_told() -> bool:
        is_set: bool = set_by_ray()
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        return is_set

    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    ray._private.utils.set_omp_num_threads_if_unset = and_told


def main() -> None:
    """Says where a Ray that others start finds its workers, until nobody hears it any more."""
    print(os.environ["WARM_WORKERS"], flush=True)
    hears = select.poll()
    hears.register(1, 0)
    hears.poll()


if __name__ == "__main__":
    main()
