"""Log lines are JSON where that was asked for, and hold no secret in either form."""

import json
import subprocess
import sys

PROGRAM = """
import logging, sys
from pipeline.log_lines import log_to_stderr
log_to_stderr(sys.argv[1], quiet=sys.argv[2] == "quiet")
logger = logging.getLogger("pipeline.test")
logger.info("begins")
try:
    raise ValueError("at https://me:pass@host/x")
except ValueError:
    logger.exception("ended \\x1b[2J")
"""


def lines(log_format: str, how: str) -> list[str]:
    command = [sys.executable, "-c", PROGRAM, log_format, how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "pass" not in done.stderr
    return done.stderr.splitlines()


def test_a_line_of_text_has_time_level_and_name() -> None:
    first, second = lines("text", "loud")[:2]
    assert first.endswith(" INFO pipeline.test: begins")
    assert second.endswith(r" ERROR pipeline.test: ended \x1b[2J")


def test_a_line_of_json_has_the_error_as_well() -> None:
    first, second = map(json.loads, lines("json", "loud"))
    assert (first["level"], first["logger"], first["message"]) == (
        "INFO",
        "pipeline.test",
        "begins",
    )
    assert first["time"].endswith("+00:00")
    assert second["error"].splitlines()[-1] == "ValueError: at https://...@host/x"


def test_quiet_leaves_warnings_and_errors() -> None:
    (only,) = lines("json", "quiet")
    assert json.loads(only)["level"] == "ERROR"
