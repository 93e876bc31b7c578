"""`jobs.submit` as a process, and jobs for it to run."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.killing import start_job


def submit(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return start_job(folder, "jobs.submit", *arguments)


def ended(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    out, _ = process.communicate(timeout=600)
    return process.returncode, json.loads(out.splitlines()[-1]) if out else {}


def until(condition: Callable[[], bool], process: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.1)


def python(source: str) -> tuple[str, ...]:
    return ("--", "python", "-c", source)


def sleeping(marker: Path, more: str = "") -> str:
    """A job that notes each start of it, and goes on until the file `over` lies beside that."""
    return (
        f"import pathlib, time; m = pathlib.Path({str(marker)!r}); {more}\n"
        "open(m, 'a').write('started\\n')\n"
        "while not m.with_name('over').exists(): time.sleep(0.1)"
    )
