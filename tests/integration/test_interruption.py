"""Ctrl-C and SIGTERM at a training: the first leaves a checkpoint, the second ends it at once."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.killing import start_job
from tests.support.packed_digits import write_digits
from tests.support.terminal import terminal, warm_window

COMMAND = (
    "--steps", "100000", "--global-batch-size", "64", "--image-size", "8", "--channels", "1",
    "--checkpoint-every", "100000", "--evaluate-every", "100000", "--run", "r",
)  # fmt: skip
# As `-m jobs.train`, but for the minute after which the wait is told again, and the 5 s in which
# its time is written down.
IMPATIENT = """
import runpy, sys
from pipeline.cluster import room
from pipeline.runs import goodput
room._SAY_SECONDS = 8.0
goodput.WRITE_SECONDS = 0.3
runpy.run_module("jobs.train", run_name="__main__", alter_sys=True)
"""
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("data"))


def saved_steps(folder: Path) -> list[int]:
    return [int(p.stem[5:]) for p in sorted((folder / "runs/r/checkpoints").glob("step*.json"))]


def told_step(text: str) -> int:
    """The step that the job's own last words name."""
    found = re.findall(r"saved at step (\d+)", text)
    assert found, text
    return int(found[-1])


def wait_until(is_so: Callable[[], bool], folder: Path) -> None:
    end = time.monotonic() + 600
    while not is_so():
        assert time.monotonic() < end, (folder / "log").read_text()
        time.sleep(0.05)


def wait_for_steps(folder: Path) -> None:
    """Until the newest tally of the run's time tells of a step."""
    tallies = folder / "runs/r/time"
    wait_until(
        lambda: any('"step":0,' not in each.read_text() for each in tallies.glob("*.json")), folder
    )


def test_ctrl_c_in_a_terminal_leaves_a_checkpoint_and_names_its_step(
    data: Path, tmp_path: Path
) -> None:
    command = ["-m", "jobs.train", "--data", str(data), *COMMAND, "--workers", "1"]
    with terminal(tmp_path, command, columns=120) as window:
        window.wait_for("elbo", 300)
        window.type("C-c")
        text = " ".join(window.wait_for("exit code", 180))
    assert "exit code 130" in text
    assert "the run stops after a last checkpoint" in text
    assert saved_steps(tmp_path) == [told_step(text)]
    assert "Traceback" not in text
    logs = "".join(path.read_text() for path in (tmp_path / "runs/r/logs").glob("*rank0*"))
    assert told_step(logs) == told_step(text)


@pytest.mark.parametrize("launcher", [(), TORCHRUN], ids=["one process", "torchrun"])
def test_ctrl_c_without_ray_reaches_every_process_and_leaves_one_checkpoint(
    data: Path, tmp_path: Path, launcher: Any
) -> None:
    (tmp_path / "impatient.py").write_text(IMPATIENT)
    process = start_job(
        tmp_path, *launcher, "impatient", "--data", str(data), *COMMAND, "--workers", "0"
    )
    wait_for_steps(tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.communicate(timeout=600)
    text = (tmp_path / "log").read_text()
    assert saved_steps(tmp_path) == [told_step(text)]
    if not launcher:  # torchrun's own end is a traceback of its own
        assert process.returncode == 130
        assert "Traceback" not in text


def test_sigterm_under_ray_which_has_a_handler_of_its_own_leaves_a_checkpoint(
    data: Path, tmp_path: Path
) -> None:
    command = ("jobs.train", "--data", str(data), *COMMAND, "--workers", "1")
    process = start_job(tmp_path, *command)
    wait_for_steps(tmp_path)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=600)
    text = (tmp_path / "log").read_text()
    assert process.returncode == 0, text
    assert saved_steps(tmp_path) == [told_step(text)]


def test_the_second_ctrl_c_ends_at_once_and_says_what_is_saved(data: Path, tmp_path: Path) -> None:
    (tmp_path / "impatient.py").write_text(IMPATIENT)
    command = ("impatient", "--data", str(data), *COMMAND, "--workers", "0")
    process = start_job(tmp_path, *command)
    wait_for_steps(tmp_path)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    process.communicate(timeout=600)
    assert process.returncode == 130
    text = (tmp_path / "log").read_text()
    assert "nothing saved yet" in text
    assert "Traceback" not in text
    assert saved_steps(tmp_path) == []


def test_who_waits_for_room_is_told_what_is_asked_and_there_and_ends_by_one_ctrl_c(
    data: Path, tmp_path: Path
) -> None:
    (tmp_path / "impatient.py").write_text(IMPATIENT)
    command = ["impatient", "--data", str(data), *COMMAND, "--cpus-per-worker", "64"]
    with warm_window(tmp_path, command, columns=200) as window:
        window.wait_for("waits for room: asked are 1 worker with 64 CPUs; the cluster has", 300)
        window.wait_for("the cluster has no room for the workers yet", 120)
        assert "In all it has less than that" in " ".join(window.text().split())
        window.press_ctrl_c()
        assert window.job.wait(120) == 130
    text = window.text()
    assert "nothing saved yet" in text
    assert "Traceback" not in text
