"""The image builds, and is what KubeRay expects of it; minutes and gigabytes, so not always."""

import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from jobs.demo import write_digits as write_pngs
from pipeline.errors import UnreachableError
from pipeline.web import ask
from tests.k8s.commands import VERSION
from tests.k8s.manifests import ROOT
from tests.servers import rgw
from tests.servers.rgw import free_ports

pytestmark = pytest.mark.chaos
DOCKERFILE = (ROOT / "Dockerfile").read_text()
BUILDAH = ["buildah", *shlex.split(os.environ.get("BUILDAH_STORE", ""))]


def _need_a_base() -> None:
    """The base is here or can be pulled, or the test is skipped."""
    engines = {"docker": ["docker"], "podman": ["podman"], "buildah": BUILDAH}
    (told,) = re.findall(r"^ARG BASE=(.+)$", DOCKERFILE, re.MULTILINE)
    base = os.environ.get("BASE") or told
    for program, engine in engines.items():
        for command in (["inspect", base], ["pull", "--quiet", base]):
            known = shutil.which(program) is not None
            if known and subprocess.run([*engine, *command], capture_output=True).returncode == 0:
                return
    pytest.skip(f"docker, podman or buildah with {base}; tests/image/stand_in.sh makes a base")


def test_the_image_builds_and_its_user_is_not_root_and_the_doctor_is_content() -> None:
    _need_a_base()
    done = subprocess.run(["make", "image"], cwd=ROOT, capture_output=True, text=True)
    if "no engine is here" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1])["ok"] is True


def test_what_the_slim_image_installs_packs_submits_and_is_listed_without_torch_and_ray(
    tmp_path: Path,
) -> None:
    """Its environment as the Dockerfile makes it, without the container around it."""
    uv = Path(sys.executable).with_name("uv")
    for name in ("venv", "sbom"):
        subprocess.run([uv, "venv", "--quiet", "--seed", tmp_path / name], check=True)
        lock = "slim" if name == "venv" else "sbom"
        install = ["pip", "install", "--quiet", "--no-deps", "--require-hashes", "-r"]
        subprocess.run(
            [uv, *install, ROOT / f"image/locks/{lock}.txt"],
            check=True, env=os.environ | {"VIRTUAL_ENV": str(tmp_path / name)},
        )  # fmt: skip
    python = tmp_path / "venv/bin/python"

    def job(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, "-m", "jobs", *words], cwd=ROOT, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "KUBECONFIG": "/nowhere"},
        )  # fmt: skip

    write_pngs(tmp_path / "digits", range(30))
    folders = ("--source", str(tmp_path / "digits"), "--output", str(tmp_path / "data"))
    packed = job("pack", *folders, "--holdout", "0.1")
    assert json.loads(packed.stdout.splitlines()[-1])["packed"] == 30
    assert job("verify", "--dataset", str(tmp_path / "data/train")).returncode == 0
    encode = ["python", "-m", "jobs.encode", "--model", "m", "--data", "d", "--output", "o"]
    assert job("submit", "--kubernetes", "--dry-run", "--", *encode).returncode == 0
    assert job("doctor", "--storage", str(tmp_path / "runs")).returncode == 0
    listed = subprocess.run(
        [tmp_path / "sbom/bin/cyclonedx-py", "environment", "--output-reproducible", python],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    found = {each["name"]: each["version"] for each in json.loads(listed.stdout)["components"]}
    pins = re.findall(
        r"^([^=\s]+)==(\S+)", (ROOT / "image/locks/slim.txt").read_text(), re.MULTILINE
    )
    assert {(canonicalize_name(name), version) for name, version in found.items()} >= set(pins)
    assert not {"torch", "ray"} & set(found)


def said(*command: str) -> str:
    done = subprocess.run([*BUILDAH, *command], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@contextmanager
def ray_node(environment: dict[str, str], arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A container with the command that KubeRay makes of rayStartParams."""
    container = said("from", "--pull-never", f"localhost/vae-pipeline:{VERSION}")
    variables = [f"--env={name}={value}" for name, value in environment.items()]
    start = f"ulimit -n 65536; ray start {arguments} --block --object-store-memory=200000000"
    shell = ["--", "/bin/bash", "-c", "--", start]
    process = subprocess.Popen(
        [*BUILDAH, "run", "--isolation", "chroot", *variables, container, *shell]
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=120)
        said("rm", container)


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.5)


def status_of(url: str) -> int:
    try:
        return ask("GET", url).status
    except UnreachableError:
        return 0


def test_ray_of_the_image_trains_as_kuberay_starts_it(
    s3_server: rgw.S3Server, tmp_path: Path
) -> None:
    image = ["inspect", f"localhost/vae-pipeline:{VERSION}"]
    if (
        shutil.which("buildah") is None
        or subprocess.run([*BUILDAH, *image], capture_output=True).returncode
    ):
        pytest.skip("buildah has no image vae-pipeline: `make image` with buildah makes one")
    bucket = s3_server.bucket()
    write_pngs(tmp_path / "digits", range(200))
    pack = ["jobs.pack", "--source", str(tmp_path / "digits"), "--output", f"{bucket}/digits"]
    subprocess.run([sys.executable, "-m", *pack], cwd=ROOT, check=True)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(24)}
    environment = {**s3_server.environment, **token, "GLOO_SOCKET_IFNAME": "lo"}
    gcs, dashboard, agent, metrics, agent2, metrics2 = free_ports(6)
    here = "--node-ip-address=127.0.0.1 --temp-dir=/tmp/ray"
    head = (
        f"--head --port={gcs} --dashboard-host=127.0.0.1 --dashboard-port={dashboard} "
        f"--dashboard-agent-listen-port={agent} --metrics-export-port={metrics} --num-cpus=0 {here}"
    )
    worker = (
        f"--address=127.0.0.1:{gcs} --dashboard-agent-listen-port={agent2} "
        f"--metrics-export-port={metrics2} --num-cpus=1 {here}"
    )
    train = [
        "python", "-m", "jobs.train", "--data", f"{bucket}/digits", "--run", "in-the-image",
        "--storage", f"{bucket}/runs", "--workers", "1", "--steps", "20", "--image-size", "16",
        "--global-batch-size", "16", "--channels", "1",
    ]  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    with ray_node(environment, head) as process:
        # What KubeRay's probes ask.
        until(lambda: status_of(f"http://127.0.0.1:{agent}/api/healthz") == 200, process)
        assert status_of(f"{address}/api/jobs/") == 401, "the dashboard asks for the token"
        with ray_node(environment, worker):
            submit = [sys.executable, "-m", "jobs.submit", "--address", address, "--", *train]
            done = subprocess.run(
                submit, cwd=ROOT, env=os.environ | token, stdout=subprocess.PIPE, text=True
            )
    assert done.returncode == 0
    assert json.loads(done.stdout.splitlines()[-1])["result"]["steps"] == 20
