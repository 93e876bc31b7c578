"""A real terminal of a given size, by tmux: what a person at it would read.

Or only the kernel's part of one, for a warm job.
"""

import fcntl
import os
import pty
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.killing import kill_all
from tests.support.warm import ROOT, WarmJob


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


class WarmWindow:
    """A warm job whose stdout and stderr are a terminal, without the shell that waits for it."""

    def __init__(self, folder: Path, arguments: list[str], columns: int) -> None:
        self._screen, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        known = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
        self.job = WarmJob(
            arguments, cwd=folder, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**known, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"},
        )  # fmt: skip
        os.close(theirs)
        self._written = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                self._written += os.read(self._screen, 65_536)
            except OSError:  # Nobody has it open any more.
                return

    def text(self) -> str:
        """All that was written so far, also what was written over; without colours."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._written.decode(errors="replace"))

    def wait_for(self, text: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        while text not in self.text():
            assert time.monotonic() < end, self.text()
            time.sleep(0.1)

    def press_ctrl_c(self) -> None:
        """To all of the window's processes, as a terminal sends it."""
        os.killpg(self.job.pid, signal.SIGINT)

    def close(self) -> None:
        if self.job.poll() is None:
            kill_all(self.job)
        self._reader.join()
        os.close(self._screen)


@contextmanager
def warm_window(folder: Path, arguments: list[str], columns: int = 80) -> Iterator[WarmWindow]:
    """Runs `python -m ARGUMENTS` as a warm job in a terminal of so many columns."""
    shown = WarmWindow(folder, arguments, columns)
    try:
        yield shown
    finally:
        shown.close()
