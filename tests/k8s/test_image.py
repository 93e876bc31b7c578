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
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from image.lock import SLIM_IS_WITHOUT, needed
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


def hadolint(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
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
        (
            "pip install --no-cache-dir --no-deps --no-build-isolation .",
            "pip install torch",
            "DL3042",
        ),
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


LOCKS = {path.stem: path.read_text() for path in (ROOT / "image/locks").glob("*.txt")}
LOCKS_OF = {"cpu": "base torch", "gpu": "base torch", "slim": "slim"}


def pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", LOCKS[lock], flags=re.M))


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_of_an_image_has_one_version_and_the_hashes_of_its_files(lock: str) -> None:
    joined = LOCKS[lock].replace("\\\n", " ").splitlines()
    names = [line.partition("==")[0] for line in joined]
    assert names == sorted(set(names))
    for line in joined:
        assert re.fullmatch(r"[a-z0-9.-]+==\S+( +--hash=sha256:[0-9a-f]{64})+", line), line
    assert "://" not in LOCKS[lock]


@pytest.mark.parametrize("lock", sorted(set(LOCKS) - {"sbom"}))
def test_versions_are_those_of_the_constraints(lock: str) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    known = {canonicalize_name(n): v for n, _, v in (line.partition("==") for line in lines)}
    differ = {n: v for n, v in pins(lock).items() if known.get(canonicalize_name(n), v) != v}
    assert differ == {}, "run `make locks`"


@pytest.mark.parametrize(("lock", "without"), [("base", ("torch",)), ("slim", SLIM_IS_WITHOUT)])
def test_the_locks_hold_what_the_package_asks_for(lock: str, without: tuple[str, ...]) -> None:
    for text in needed("cluster"):
        asked = Requirement(text)
        there = pins(lock).get(canonicalize_name(asked.name))
        assert (there is None) == (asked.name in without), f"{asked.name}: run `make locks`"
        assert there is None or asked.specifier.contains(there), text
    assert pins("torch")["torch"]


def test_nothing_that_computes_is_in_the_slim_image() -> None:
    heavy = re.compile(r"torch|triton|ray|nvidia.*|cuda.*")
    assert [name for name in pins("slim") if heavy.fullmatch(name)] == []


@pytest.mark.parametrize("variant", LOCKS_OF)
def test_pip_takes_no_file_without_its_hash(variant: str) -> None:
    """All of an image's packages come from locks; the build's own come with them."""
    (line,) = [rest for _, rest in instructions(dockerfile()) if "VARIANT:$CPU_INDEX" in rest]
    assert f"set -- {LOCKS_OF[variant]}" in line
    for word, rest in instructions(dockerfile()):
        for install in re.findall(r"pip install [^&;|]*", rest) if word == "RUN" else ():
            assert "--no-deps" in install
            # Of our own code, and of another index's torch, whose hash RELEASE=1 asks for.
            ours = install.strip().endswith(" .") and "--no-build-isolation" in install
            assert "--require-hashes" in install or ours or "$CPU_INDEX" in install


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({}, 0),
        ({"RELEASE": "0"}, 0),
        ({"RELEASE": "1"}, 1),
        ({"RELEASE": "1", "BASE": "python@sha256:" + "0" * 64}, 0),
        ({"RELEASE": "1", "BASE": "python@sha256:0", "CPU_INDEX": "https://cpu.example"}, 1),
        ({"RELEASE": "1", "BASE": "python@sha256:0", "CPU_INDEX": "https://cpu.example",
          "CPU_HASH": "sha256:0"}, 0),
    ],
)  # fmt: skip
def test_a_release_is_made_of_a_digest_and_never_of_a_tag(given: dict[str, str], code: int) -> None:
    (check,) = [rest for word, rest in instructions(dockerfile()) if "RELEASE=1:" in rest]
    variables = {"BASE": "python:3.11-slim-bookworm", "CPU_INDEX": "", "CPU_HASH": "",
                 "RELEASE": "0", "PATH": os.environ["PATH"]} | given  # fmt: skip
    done = subprocess.run(["sh", "-c", check], env=variables, capture_output=True, text=True)
    assert done.returncode == code
    assert ("RELEASE=1" in done.stderr) == bool(code)


def test_what_is_in_an_image_is_listed_in_it() -> None:
    stages = [rest for word, rest in instructions(dockerfile()) if word == "FROM"]
    assert "build AS sbom" in stages
    copied = [rest for word, rest in end_stage() if word == "COPY" and "--from=sbom" in rest]
    assert len(copied) == 1
    assert "cyclonedx-bom" in pins("sbom")
    # Without the interpreter it lists the packages of its own environment.
    (listing,) = [rest for word, rest in instructions(dockerfile()) if "cyclonedx-py" in rest]
    shipped = [rest.split()[-1] for word, rest in end_stage() if word == "COPY" and "venv" in rest]
    command = re.search(r"cyclonedx-py environment ([^&;|]*)", listing)
    assert command is not None
    assert command[1].split()[-1] == f"{shipped[0]}/bin/python"


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
    assert (
        said
        == "Interrupted: a job that was submitted goes on; the same command follows it again.\n"
    )
