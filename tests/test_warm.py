"""A job that is forked from the warm process can't be told from one that Python started."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.warm import ROOT, WarmJob

PROGRAM = """
import atexit, json, os, sys, tempfile, threading, time
atexit.register(print, "last")
threading.Thread(target=lambda: (time.sleep(0.5), print("thread", flush=True))).start()
print(json.dumps({
    "name": __name__, "module": sys.modules["__main__"].__spec__.name, "arguments": sys.argv[1:],
    "path": sys.path[0], "folder": os.getcwd(), "group": os.getpgid(0) == os.getpid(),
    "environment": os.environ.get("OF_THE_TEST"), "temporary": tempfile.gettempdir(),
}), flush=True)
print("said", file=sys.stderr)
if sys.argv[1] == "raise":
    raise ValueError("told")
if sys.argv[1] == "wait":
    time.sleep(60)
sys.exit(sys.argv[1] if sys.argv[1] == "words" else int(sys.argv[1]))
"""

# A worker with a runtime environment in each of so many clusters, one after the other.
ON_RAY = """
import json, os, signal, sys
from pipeline.cluster.ray_cluster import ray_cluster
def asked():
    import os, signal, sys
    warm = "torch" in sys.modules
    import torch
    return {
        "program": os.path.basename(sys.argv[0]), "folder": os.getcwd(),
        "environment": [os.environ.get(n) for n in ("OF_THE_TEST", "GIVEN", "OMP_NUM_THREADS")],
        "threads": torch.get_num_threads(), "session": os.getsid(0),
        "group": os.getpgid(0), "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "handlers": [str(signal.getsignal(n)) for n in (signal.SIGHUP, signal.SIGINT)],
        "title": open("/proc/self/cmdline").read().split(chr(0))[0],
    }, warm
for _ in range(int(sys.argv[1])):
    with ray_cluster(2):
        import ray
        there = {"env_vars": {"GIVEN": "${OF_THE_TEST}${NOBODY}"}}
        told, warm = ray.get(ray.remote(asked).options(num_cpus=2, runtime_env=there).remote())
        for name in ("session", "group"):
            told[name] = told[name] == os.getpid()
        print(json.dumps([told, warm]), flush=True)
"""

Start = Callable[..., subprocess.Popen[str]]


def cold(arguments: tuple[str, ...], **given: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", *arguments], **given)


def end(start: Start, folder: Path, argument: str) -> tuple[int, str, str]:
    pipe = subprocess.PIPE
    environment = {
        **os.environ, "OF_THE_TEST": argument, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)
    }  # fmt: skip
    process = start(
        ("program", argument), cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True,
        start_new_session=True,
    )  # fmt: skip
    if argument == "wait":
        assert process.stdout is not None
        first = process.stdout.readline() + process.stdout.readline()
        os.killpg(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=600)
        return process.returncode, first + out, err
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err.splitlines()[-1]


@pytest.mark.parametrize("argument", ["0", "3", "words", "raise", "wait"])
def test_a_warm_job_is_what_python_would_have_started(tmp_path: Path, argument: str) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    warm = end(WarmJob, tmp_path, argument)
    assert warm == end(cold, tmp_path, argument)
    told = json.loads(next(line for line in warm[1].splitlines() if line.startswith("{")))
    assert told["arguments"] == [argument]
    assert told["folder"] == told["path"] == told["temporary"] == str(tmp_path)
    assert told["group"]


def test_two_warm_jobs_run_at_once_and_each_is_waited_for_by_its_own_id(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    known = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    jobs = [
        WarmJob(("program", code), cwd=tmp_path, env=known, stdout=pipe, stderr=pipe, text=True)
        for code in ("4", "5")
    ]
    assert [job.wait(60) for job in reversed(jobs)] == [5, 4]
    for job in jobs:
        job.communicate()


@pytest.mark.chaos
def test_a_worker_of_ray_that_is_forked_is_what_ray_would_have_started(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(ON_RAY)
    known = {**os.environ, "OF_THE_TEST": "1", "PYTHONPATH": str(ROOT)}
    known.pop("OMP_NUM_THREADS", None)

    def told(start: Start, clusters: str) -> list[Any]:
        job = start(
            ("program", clusters), cwd=tmp_path, env=known, stdout=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        out, _ = job.communicate(timeout=600)
        return [json.loads(line) for line in out.splitlines()]

    (here, warm), (again, _) = told(WarmJob, "2")
    assert warm
    assert here["environment"] == ["1", "1", "2"]
    assert here["threads"] == 2
    assert again == here
    assert told(cold, "1") == [[here, False]]
