"""A real Pushgateway with the manifest's own arguments."""

import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.k8s.manifests import build, find
from tests.servers.rgw import free_ports

PROGRAM = "prometheus-pushgateway"


@contextmanager
def pushgateway(arguments: list[str], log: Path) -> Iterator[str]:
    """Its URL; it is killed at the end, as by a node that is lost."""
    (port,) = free_ports(1)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [PROGRAM, f"--web.listen-address=127.0.0.1:{port}", *arguments],
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        until(lambda: asked(f"http://127.0.0.1:{port}/-/ready") is not None)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def asked(url: str, body: bytes | None = None) -> str | None:
    try:
        with urllib.request.urlopen(url, body) as answer:
            return str(answer.read().decode())
    except urllib.error.URLError:
        return None


def until(holds: Any) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_the_pushgateway_was_told_outlives_a_kill(tmp_path: Path) -> None:
    if shutil.which(PROGRAM) is None:
        pytest.skip(f"{PROGRAM} is not installed: `make servers` installs it")
    pod = find(build("gpu"), "Deployment", "pushgateway")["spec"]["template"]["spec"]
    arguments = [each.replace("/data/", f"{tmp_path}/") for each in pod["containers"][0]["args"]]
    with pushgateway(arguments, tmp_path / "first.log") as url:
        assert asked(f"{url}/metrics/job/vae-encode", b"night_is_told 1\n") is not None
        until(lambda: (tmp_path / "outcomes").exists())
    with pushgateway(arguments, tmp_path / "second.log") as url:
        assert "night_is_told{" in (asked(f"{url}/metrics") or "")
