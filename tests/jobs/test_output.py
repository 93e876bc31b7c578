"""How a job talks: to people at a terminal, to programs and files elsewhere."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.warm import ROOT

TALKS = """
import logging, sys, time
from jobs.command import Outcome, run_job
from pipeline.config import VerifyConfig
from pipeline.progress import Progress

def main(config):
    with Progress("reading", 10, "images") as progress:
        for number in range(10):
            progress.advance()
            time.sleep(0.03)
            if number == 5:
                logging.getLogger("pipeline").info("a note")
                logging.getLogger("pipeline").warning("a warning")
    return Outcome({"images": 10}, summary=["10 images read."])

run_job(VerifyConfig, main, ["--store", "s", *sys.argv[1:]])
"""
RESULT = '{"images": 10}'
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
KNOWN = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}


def at_a_terminal(*flags: str, **environment: str) -> str:
    """Every byte that such a job writes to its terminal."""
    ours, theirs = pty.openpty()
    job = subprocess.Popen(
        [sys.executable, "-c", TALKS, *flags], stdin=theirs, stdout=theirs, stderr=theirs,
        env={**KNOWN, **environment},
    )  # fmt: skip
    os.close(theirs)
    said = b""
    while True:
        try:
            said += os.read(ours, 4096)
        except OSError:  # The other end is closed.
            break
    os.close(ours)
    assert job.wait() == 0
    return said.decode()


def in_files(folder: Path, *flags: str) -> tuple[str, str]:
    """What it leaves in the files that its stdout and its stderr are."""
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        subprocess.run(
            [sys.executable, "-c", TALKS, *flags], stdout=out, stderr=err, env=KNOWN, check=True
        )
    return (folder / "out").read_text(), (folder / "err").read_text()


def test_a_terminal_gets_lines_for_people_and_the_json_only_if_asked() -> None:
    assert "10 images read." in (said := at_a_terminal())
    assert RESULT not in said
    assert RESULT in at_a_terminal("--json")


def test_a_file_gets_the_result_as_its_last_line_and_no_character_for_terminals(
    tmp_path: Path,
) -> None:
    out, err = in_files(tmp_path)
    assert out.splitlines() == ["10 images read.", RESULT]
    assert not set("\x1b\r") & set(out + err)
    assert [line for line in err.splitlines() if line.startswith("reading: 10/10 images")]
    assert err.splitlines()[1].endswith("WARNING pipeline: a warning")


def test_nothing_is_told_by_a_colour_that_somebody_might_not_want() -> None:
    assert not COLOUR.findall(at_a_terminal(COLORTERM="truecolor"))


@pytest.mark.parametrize("is_terminal", [True, False])
def test_quiet_leaves_the_warning_and_the_result(is_terminal: bool, tmp_path: Path) -> None:
    said = at_a_terminal("--quiet") if is_terminal else "".join(in_files(tmp_path, "--quiet"))
    assert "a warning" in said
    assert "10 images read." in said
    assert "a note" not in said
    assert "reading" not in said


@pytest.mark.parametrize("is_terminal", [True, False])
def test_as_json_each_line_is_one_the_progress_as_well(is_terminal: bool, tmp_path: Path) -> None:
    flags = ("--log-format", "json")
    said = at_a_terminal(*flags) if is_terminal else in_files(tmp_path, *flags)[1]
    lines = [line for line in said.splitlines() if line != "10 images read."]
    messages = [json.loads(line)["message"] for line in lines]
    assert messages[:2] == ["a note", "a warning"]
    assert messages[2].startswith("reading: 10/10 images")
