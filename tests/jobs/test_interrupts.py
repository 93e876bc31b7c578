"""Ctrl-C and SIGTERM at any job: the first ends it in order, and the job says what is kept."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import (
    EncodeConfig,
    EvaluateConfig,
    ExplainConfig,
    PackConfig,
    SubmitConfig,
    TrainConfig,
    VerifyConfig,
)
from tests.support.killing import start_job
from tests.support.packed_digits import write_digits
from tests.support.terminal import terminal
from tests.support.warm import ROOT
from tests.walks.test_walks import crop

# A job that works for a minute; `slow`: and then tidies up for another.
WORKS = """
import sys, time
from jobs.command import Outcome, run_job
from pipeline import config
def main(config):
    try:
        print("works", file=sys.stderr, flush=True)
        time.sleep(60)
    finally:
        print("tidies up", file=sys.stderr, flush=True)
        time.sleep(60 * (sys.argv[3] == "slow"))
    return Outcome({})
run_job(getattr(config, sys.argv[1]), main, sys.argv[2].split())
"""
JOBS = (
    (PackConfig, "--source s --output o"),
    (EncodeConfig, "--model m --data d --output o"),
    (EvaluateConfig, "--model m --data d"),
    (ExplainConfig, "--run r"),
    (VerifyConfig, "--store s"),
    (SubmitConfig, "--list"),
    (TrainConfig, "--data d --run r"),
)


def working(config_type: type[Any], flags: str, end: str = "quick") -> subprocess.Popen[str]:
    """Such a job, as soon as it works."""
    job = subprocess.Popen(
        [sys.executable, "-c", WORKS, config_type.__name__, flags, end], text=True,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert job.stderr is not None
    assert job.stderr.readline() == "works\n"
    return job


@pytest.mark.parametrize(
    ("config_type", "flags", "number"),
    [*((*job, signal.SIGINT) for job in JOBS), (*JOBS[0], signal.SIGTERM)],
)
def test_the_first_signal_ends_a_job_in_order_and_says_what_is_kept(
    config_type: type[Any], flags: str, number: signal.Signals
) -> None:
    job = working(config_type, flags)
    job.send_signal(number)
    _, said = job.communicate(timeout=30)
    assert job.returncode == 130
    assert said.splitlines() == ["tidies up", f"Interrupted: {config_type.interrupted}"]


def test_the_second_ctrl_c_waits_for_nothing() -> None:
    job = working(*JOBS[0], "slow")
    for _ in range(2):
        job.send_signal(signal.SIGINT)
        time.sleep(0.5)
    _, said = job.communicate(timeout=30)
    assert job.returncode == 130
    assert said == "tidies up\n"


def test_a_sigterm_that_is_passed_on_as_well_is_one_signal() -> None:
    job = working(*JOBS[0], "slow")
    for _ in range(2):
        job.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    assert job.poll() is None
    job.kill()
    job.communicate()


def test_ctrl_c_in_a_terminal_ends_a_packing_that_then_goes_on_where_it_was(
    tmp_path: Path,
) -> None:
    crop(tmp_path / "photos", 400)
    flags = ["--source", "photos", "--output", "out", "--shard-bytes", "65536"]
    with terminal(tmp_path, ["-m", "jobs.pack", *flags]) as window:
        window.wait_for("packing:")
        window.type("C-c")
        text = " ".join(window.wait_for("exit code"))
    assert "exit code 130" in text
    assert "finished shards are kept" in text
    assert "Traceback" not in text
    job = start_job(tmp_path, "jobs.pack", *flags)
    out, _ = job.communicate(timeout=120)
    assert "800 seen = 800 packed" in out


@pytest.mark.parametrize("workers", ["0", pytest.param("1", marks=pytest.mark.chaos)])
def test_a_window_that_is_closed_ends_a_training_after_a_checkpoint(
    tmp_path: Path, workers: str
) -> None:
    data = write_digits(tmp_path / "data")
    flags = ["--steps", "100000", "--global-batch-size", "64", "--image-size", "8"]
    flags += ["--channels", "1", "--checkpoint-every", "100000", "--evaluate-every", "100000"]
    command = ["-m", "jobs.train", "--data", str(data), "--run", "r", *flags]
    with terminal(tmp_path, [*command, "--workers", workers]) as window:
        window.wait_for("elbo", 300)
    # The window is gone; the job ends in its own time, which its run's folder tells.
    ended = tmp_path / "runs/r/ended.json"
    end = time.monotonic() + 180
    while not ended.exists():
        assert time.monotonic() < end
        time.sleep(0.2)
    assert '"reason":"stopped"' in ended.read_text().replace(" ", "")
    assert list((tmp_path / "runs/r/checkpoints").glob("step*.json"))
