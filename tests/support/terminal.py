"""A real terminal of a given size, by tmux: what a person at it would read."""

import os
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Terminal:
    """One tmux window on a server of its own."""

    def __init__(self, name: str) -> None:
        self._name = name

    def tmux(self, *arguments: str) -> str:
        done = subprocess.run(
            ["tmux", "-L", self._name, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout

    def type(self, *keys: str) -> None:
        """Sends keys by tmux's names, such as `C-c` or `Enter`."""
        self.tmux("send-keys", *keys)

    def lines(self) -> list[str]:
        """What has been written so far, scrolled-away lines included, without empty ones."""
        text = self.tmux("capture-pane", "-p", "-S", "-2000")
        return [line.rstrip() for line in text.splitlines() if line.strip()]

    def wait_for(self, text: str, seconds: float = 120) -> list[str]:
        """The lines, as soon as one holds `text`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            lines = self.lines()
            if any(text in line for line in lines):
                return lines
            time.sleep(0.1)
        raise AssertionError(f"{text!r} was not seen in {seconds} s:\n" + "\n".join(self.lines()))


@contextmanager
def terminal(folder: Path, command: list[str], columns: int = 80) -> Iterator[Terminal]:
    """Runs `command` (after `python`) in a terminal; the last line then is `exit code N`."""
    if shutil.which("tmux") is None:
        message = "tmux is not installed: `make servers` installs it"
        if os.environ.get("REQUIRE_SERVERS"):
            pytest.fail(message)
        pytest.skip(message)
    shown = Terminal(f"vae-test-{uuid.uuid4().hex[:8]}")
    # The shell gets Ctrl-C as well, and would end with the command.
    line = f"trap : INT; {shlex.join([sys.executable, *command])}; echo exit code $?; sleep 600"
    # Whoever starts the tests may have told programs of another width.
    environment = ["-u", "COLUMNS", "-u", "LINES", f"PYTHONPATH={ROOT}", "TERM=xterm-256color"]
    shown.tmux(
        "new-session", "-d", "-x", str(columns), "-y", "40", "-c", str(folder),
        "env", *environment, "sh", "-c", line,
    )  # fmt: skip
    try:
        yield shown
    finally:
        shown.tmux("kill-server")
