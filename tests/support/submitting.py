"""`jobs.submit` as a process, and jobs for it to run."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.killing import start_job
from tests.support.warm import ROOT


def submit(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return start_job(folder, "jobs.submit", *arguments)


def hasty_submit(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A submission that calls a silent head lost after 3 seconds instead of minutes."""
    source = (
        "from jobs import submit; submit.SubmitConfig.lost_seconds = 3.0; "
        "submit.run_job(submit.SubmitConfig, submit.main)"
    )
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-c", source, *arguments], cwd=folder, stdout=subprocess.PIPE,
            stderr=log, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip


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
