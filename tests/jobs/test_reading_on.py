"""A reader of stdout that has read enough, such as `head`, is no error."""

import os
import subprocess
import sys

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
