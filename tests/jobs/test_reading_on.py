"""A reader of stdout that has read enough, such as `head`, is no error."""

import os
import subprocess
import sys

import pytest

from tests.support.warm import ROOT

SOURCE = """
from jobs.command import while_read
for _ in range(2):
    with while_read():
        print("x" * 10**6)
raise SystemExit(5)
"""


def test_a_job_whose_reader_has_gone_says_nothing_and_keeps_its_exit_code() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", SOURCE], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (5, "")


@pytest.mark.parametrize("flag", ["--help", "--print-config"])
def test_neither_help_nor_configuration_needs_a_reader(flag: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "jobs.train", "--data", "d", "--run", "r", flag]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
