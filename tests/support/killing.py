"""Starting jobs as processes of their own, and finding what is theirs to kill."""

import hashlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.support.warm import ROOT, WarmJob


def start_job(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """`python -m ARGUMENTS` in `folder`, in a process group of its own; stderr goes to `log`."""
    with (folder / "log").open("a") as log:
        return WarmJob(
            arguments, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True,
            start_new_session=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The job's result, once it has ended with 0."""
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    return json.loads(out.splitlines()[-1])


def kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the job's group and to everything it started."""
    below = descendants(process.pid)
    os.killpg(process.pid, signal.SIGKILL)
    for pid in below:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def descendants(pid: int) -> dict[int, str]:
    """Process ids below `pid` and their command lines."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            try:
                found[child] = (Path("/proc") / str(child) / "cmdline").read_text()
            except OSError:
                continue
            waiting.append(child)
    return found


def tree(folder: Path) -> dict[str, str]:
    """Every file's checksum, but for `attempts`: the only files of a store that may differ."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "attempts" not in path.parts
    }
