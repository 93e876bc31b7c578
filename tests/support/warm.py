"""Jobs as forks of a process that has their imports behind it: 0.1 s instead of 4 to 11.

What such a job sees is what `python -m JOB` sees: arguments, folder, environment, stdout, stderr,
process group, signals, exit code. Tests of the start itself start a Python of their own.
"""

import contextlib
import ctypes
import functools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.warm_workers import PYTHON

ROOT = Path(__file__).parents[2]
_PR_SET_CHILD_SUBREAPER = 36


class WarmJob(subprocess.Popen[str]):
    """`WarmJob(("jobs.train", ...), cwd=...)`: `python -m jobs.train ...` as any other child."""

    def _execute_child(self, args: Sequence[str], *given: Any) -> None:
        """What `Popen` calls to start the process, once it has opened the pipes."""
        folder, environment, new_session = given[4], given[5], given[20]
        pipes = given[9:15]
        asked = {
            "arguments": list(map(str, args)),
            "folder": str(folder or os.getcwd()),
            "environment": dict(os.environ if environment is None else environment),
            "new_session": bool(new_session),
        }
        out, err = (own if file == -1 else file for own, file in ((1, pipes[3]), (2, pipes[5])))
        self.pid = _start(asked, (out, err))
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m ARGUMENTS` in `folder` to its end, with `environment` added to this one's."""
    known = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    pipe = subprocess.PIPE
    with WarmJob(arguments, cwd=folder, env=known, stdout=pipe, stderr=pipe, text=True) as job:
        try:
            out, err = job.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            job.kill()
            raise
    return subprocess.CompletedProcess(arguments, job.returncode, out, err)


def run_ranks(folder: Path, count: int, module: str, *arguments: str) -> None:
    """`python -m MODULE RANK COUNT ARGUMENTS` for every rank at once, to their end.

    Where one fails, the others, which wait for it, are killed; its stderr is the error.
    """
    known = {**os.environ, "PYTHONPATH": str(ROOT)}
    with contextlib.ExitStack() as opened:
        logs = [opened.enter_context((folder / f"rank-{n}.log").open("w+")) for n in range(count)]
        jobs = [
            WarmJob(
                (module, str(rank), str(count), *arguments), cwd=folder, env=known, stdout=log,
                stderr=log, text=True,
            )
            for rank, log in enumerate(logs)
        ]  # fmt: skip
        while any(job.poll() is None for job in jobs) and not any(job.poll() for job in jobs):
            time.sleep(0.01)
        failed = [rank for rank, job in enumerate(jobs) if job.poll()]
        for job in jobs:
            job.kill()  # Does nothing to one that has ended.
            job.wait()
        for rank in failed:
            logs[rank].seek(0)
            raise AssertionError(f"rank {rank} of {module}: {logs[rank].read()[-3000:]}")


def ray_workers() -> tuple[WarmJob, dict[str, str]]:
    """A process for the workers of one Ray node, and the variables that lead Ray there.

    It ends with this process, or when it is killed.
    """
    job = WarmJob(
        ("tests.support.warm_workers",), stdout=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert job.stdout is not None
    place = job.stdout.readline().strip()
    return job, {"WARM_WORKERS": place, "WARM_PYTHON": sys.executable}


@contextlib.contextmanager
def ray_workers_here() -> Iterator[None]:
    """A Ray that this process starts within takes its workers from a warm process."""
    job, variables = ray_workers()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.setattr(sys, "executable", str(PYTHON))
        yield
    job.kill()
    job.communicate()


def _start(asked: Mapping[str, Any], files: tuple[int, int]) -> int:
    connection = _server()
    # Only now: at other times what a killed job leaves behind is init's, not the tests'.
    _adopt_orphans(True)
    try:
        socket.send_fds(connection, [json.dumps(asked).encode()], files)
        answer = connection.recv(100)
    finally:
        _adopt_orphans(False)
    assert answer, "the warm process has ended"
    return int(answer)


@functools.cache
def _server() -> socket.socket:
    """Ends with this process, which holds the other end of its socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.support.warm_server", str(theirs.fileno())]
    subprocess.Popen(
        command, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    theirs.close()
    return ours


def _adopt_orphans(yes: bool) -> None:
    """Whether a process below this one whose parent ends becomes this one's child."""
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0):
        raise OSError("the kernel refused PR_SET_CHILD_SUBREAPER")
