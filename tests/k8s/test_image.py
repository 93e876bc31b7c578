"""The Dockerfile keeps its promises: pinned, small, not root, one entry for every job."""

import fnmatch
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.k8s.commands import VERSION, dockerfile
from tests.k8s.manifests import ROOT


def instructions(text: str) -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.M))
    lines = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(word.upper(), rest.strip()) for word, rest in lines]


def end_stage() -> list[tuple[str, str]]:
    found = instructions(dockerfile())
    last = max(number for number, (word, _) in enumerate(found) if word == "FROM")
    return found[last:]


def hadolint(text: str, folder: Path) -> subprocess.CompletedProcess:
    program = shutil.which("hadolint") or shutil.which("hadolint", path=Path(sys.executable).parent)
    if program is None:
        pytest.skip("hadolint is not installed: the Dockerfile is not linted")
    (folder / "Dockerfile").write_text(text)
    command = [program, str(folder / "Dockerfile")]
    return subprocess.run(command, capture_output=True, text=True)


def test_hadolint_finds_nothing(tmp_path: Path) -> None:
    found = hadolint(dockerfile(), tmp_path)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("pip install --no-cache-dir --no-deps .", "pip install torch", "DL3042"),
        ("USER 10001:10001", "USER root", "DL3002"),
        ("WORKDIR /tmp", "WORKDIR tmp", "DL3000"),
        ('ENTRYPOINT ["python", "-m", "jobs"]', "ENTRYPOINT python -m jobs", "DL3025"),
    ],
)
def test_hadolint_finds_what_is_planted(tmp_path: Path, old: str, new: str, rule: str) -> None:
    assert old in dockerfile()
    assert rule in hadolint(dockerfile().replace(old, new), tmp_path).stdout


def test_the_end_stage_installs_nothing_and_is_not_root() -> None:
    for word, rest in end_stage():
        if word == "RUN":
            assert not re.search(r"\b(pip|apt|apt-get|curl|wget|gcc)\b", rest), rest
    users = [rest for word, rest in end_stage() if word == "USER"]
    assert len(users) == 1
    assert int(users[0].split(":")[0]) >= 10000


def test_every_job_is_entered_in_the_same_way_and_nothing_is_probed() -> None:
    words = dict(end_stage())
    assert words["ENTRYPOINT"] == '["python", "-m", "jobs"]'
    assert "CMD" not in words
    assert "HEALTHCHECK" not in words


def test_the_dependencies_are_those_of_the_constraints() -> None:
    (install,) = re.findall(r"pip install .*\[cluster\]'", dockerfile())
    assert "--constraint constraints.txt" in install


def test_the_label_has_the_packages_version() -> None:
    assert ("ARG", f"VERSION={VERSION}") in end_stage()
    labels = " ".join(rest for word, rest in end_stage() if word == "LABEL")
    assert 'image.version="${VERSION}"' in labels


def test_the_context_holds_what_the_dockerfile_copies_and_no_more() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines, "everything is left out that is not named"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source.split("/")[0]
        for word, rest in instructions(dockerfile())
        if word == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }
    assert copied == allowed
    for secret in (".git", ".env", "runs", "tests", "id_rsa"):
        assert not any(fnmatch.fnmatch(secret, pattern) for pattern in allowed)


@pytest.mark.parametrize("name", ["verify", "jobs.verify"])
def test_the_entry_runs_the_job_that_is_named_first(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobs", name, "--dataset", "/nowhere"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "/nowhere" in done.stderr
    usage = subprocess.run(
        [sys.executable, "-m", "jobs", name, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert "usage: python -m jobs.verify" in usage.stdout


def test_a_job_that_does_not_exist_is_wrong_usage() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "verfy"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "There is no job verfy" in done.stderr


def test_sigterm_ends_a_job_that_is_the_first_process_of_its_container() -> None:
    # The kernel drops signals that process 1 has no handler for: the pod would wait to be killed.
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode != 0:
        pytest.skip("process namespaces need root: a container's first process can't be had")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        job = [sys.executable, "-m", "jobs", "submit", "--address", address, "--list"]
        process = subprocess.Popen([*unshare, *job], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        connection, _ = silent.accept()  # held: the job waits for an answer now
        with connection:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            os.kill(int(children), signal.SIGTERM)
            _, said = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "run the same command again" in said
