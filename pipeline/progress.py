"""Progress of long work on stderr: one live line on a terminal, a plain line a minute in a log.

In a notebook somebody looks, and nothing can be drawn over: a line after 5 s, and then every 15.

On a terminal all bars share one live area below whatever else is written, so a log line never
stands in the middle of a bar; every line is cut to the width that there is. Elsewhere (a file, a
pod) a line is written a minute, and only when something has changed.
"""

import logging
import os
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

logger = logging.getLogger(__name__)

# A day of training is then 1,440 lines of log, not 17,000.
_LOG_SECONDS = 60.0
_NOTEBOOK_SECONDS = (5.0, 15.0)
"""Before the first line, and between two."""
_REFRESHES_PER_SECOND = 5
"""Enough for a bar that moves evenly."""
_BAR_CELLS = 20
"""A cell is 5%; a line of 80 columns has room for the numbers beside it."""
_BURST = 0.01
"""Of the time since the start: who looks once a second tells a short run's steps at once."""
_LEAST_CELLS = 4
"""A shorter bar shows less than its percentage."""


class Progress:
    """Counts `unit`s of work towards `total` (None: not known) and shows rate and time left.

    Used as a context manager; `note` is a text shown behind the numbers, on a terminal below them.
    The rate counts from the first finished unit on: what a job needs to start is no part of it.
    """

    def __init__(self, label: str, total: int | None, unit: str, done: int = 0) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done = done
        self._note = ""
        self._start = self._shown_at = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._last = self._start
        self._shown: tuple[int, str] | None = None

    def __enter__(self) -> "Progress":
        _screen.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        if not _screen.remove(self):
            self._log()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Adds `count` units of finished work."""
        self._done += count
        self._note = self._note if note is None else note
        now = time.monotonic()
        if count:
            self._last = now
            if self._first is None:
                self._first = (now, self._done)
        first, then = _NOTEBOOK_SECONDS if _is_notebook() else (_LOG_SECONDS, _LOG_SECONDS)
        due = first if self._shown is None else then
        if not _screen.is_live and now - self._shown_at >= due:
            self._log()

    @property
    def rate(self) -> float | None:
        """Units a second between the first finished one and the last; None before the second.

        None also where all were told of in one burst, whose length is no time that they took.
        """
        if self._first is None:
            return None
        seconds = self._last - self._first[0]
        if seconds <= _BURST * (self._last - self._start):
            return None
        return (self._done - self._first[1]) / seconds

    def lines(self, columns: int = 200) -> list[str]:
        """The bar's line, and the note's if there is one, on as many as it needs.

        Where room is short the bar gives way, then the rate, then the time left.
        """
        parts = [f"{self._label}:", self._count(), self._unit]
        times = self._times()
        if self._total:
            parts.insert(1, f"{min(1.0, self._done / self._total):4.0%}")
        while len(times) > 1 and len(_line(parts, times)) > columns:
            times.pop()
        if self._total:
            cells = min(_BAR_CELLS, columns - len(_line(parts, times)) - 1)
            if cells >= _LEAST_CELLS:
                filled = round(min(1.0, self._done / self._total) * cells)
                parts.insert(2, "━" * filled + "─" * (cells - filled))
        return [_line(parts, times), *_wrapped(self._note, columns)]

    def _log(self) -> None:
        self._shown_at = time.monotonic()
        if _screen.quiet or self._shown == (self._done, self._note):
            return
        self._shown = (self._done, self._note)
        note = f", {self._note}" if self._note else ""
        times = ", ".join(self._times())
        text = f"{self._label}: {self._count()} {self._unit} [{times}{note}]"
        if _screen.by_log_lines:
            logger.info("%s", text)
            return
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def _count(self) -> str:
        return f"{self._done}" if self._total is None else f"{self._done}/{self._total}"

    def _times(self) -> list[str]:
        rate, parts = self.rate, [_clock(time.monotonic() - self._start)]
        if rate and self._total is not None and self._done < self._total:
            parts.append(f"{_clock((self._total - self._done) / rate)} left")
        if rate:
            parts.append(
                f"{rate:,.{0 if rate >= 100 else 1}f} {self._unit}/s"
                if rate >= 1
                else f"{1 / rate:,.1f} s each"
            )
        return parts


def _is_notebook() -> bool:
    """Whether a Jupyter kernel carries what is written to its reader."""
    return type(sys.stderr).__module__.partition(".")[0] == "ipykernel"


def _line(parts: list[str], times: list[str]) -> str:
    return f"{' '.join(parts)} [{', '.join(times)}]"


def _wrapped(note: str, columns: int) -> list[str]:
    """A note on lines of its own, broken between its parts: what is cut off nobody reads."""
    lines: list[str] = []
    for part in note.split(", ") if note else ():
        if lines and len(f"{lines[-1]}, {part},") <= columns:
            lines[-1] += f", {part}"
            continue
        if lines:
            lines[-1] += ","
        lines.append(f"  {part}")
    return lines


class _Phase:
    """Something that is waited for, and for how long already."""

    def __init__(self, label: str) -> None:
        self._label, self._start = label, time.monotonic()

    def lines(self, columns: int = 200) -> list[str]:
        """Its line."""
        return [f"{self._label} ... {_clock(time.monotonic() - self._start)}"]


@contextmanager
def phase(label: str) -> Iterator[None]:
    """Names what a reader at a terminal or a notebook waits for, such as "starting Ray"."""
    shown = _Phase(label)
    _screen.add(shown)
    if _is_notebook() and not _screen.quiet:
        sys.stderr.write(f"{label} ...\n")
    try:
        yield
    finally:
        _screen.remove(shown, keep=False)


def be_quiet() -> None:
    """From now on this process shows no progress; warnings and errors are shown as ever."""
    _screen.quiet = True


def leave_terminal() -> None:
    """After its window was closed: what is written goes nowhere, where it would be an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        if stat.S_ISCHR(os.fstat(stream).st_mode):  # No file, no pipe: those are still read.
            os.dup2(nowhere, stream)


def by_log_lines() -> None:
    """From now on this process's progress is a log line a minute, a terminal's too."""
    _screen.by_log_lines = True


class _Screen:
    """What is shown at the moment, in one live area of rich's; used from several threads."""

    def __init__(self) -> None:
        self.quiet = self.by_log_lines = False
        self._lock = threading.RLock()
        self._shown: list[Progress | _Phase] = []
        self._live: Live | None = None

    @property
    def is_live(self) -> bool:
        return self._live is not None

    def add(self, what: "Progress | _Phase") -> None:
        with self._lock:
            self._shown.append(what)
            console = Console(file=sys.stderr, highlight=False)
            # A dumb terminal, as CI's and Emacs's, can't draw over what it has shown.
            is_live = sys.stderr.isatty() and not console.is_dumb_terminal
            if self._live is None and is_live and not (self.quiet or self.by_log_lines):
                self._live = Live(
                    console=console,
                    get_renderable=self._picture,
                    refresh_per_second=_REFRESHES_PER_SECOND,
                    transient=True,
                    redirect_stdout=sys.stdout.isatty(),
                )
                self._live.start()

    def remove(self, what: "Progress | _Phase", *, keep: bool = True) -> bool:
        """Ends showing it, its last state kept above if so asked; False where nothing is live."""
        with self._lock:
            live, is_last = self._live, self._shown == [what]
            if live is not None and is_last:
                live.stop()
                self._live = None
            self._shown.remove(what)
            if live is not None and keep:
                for line in what.lines(live.console.width):
                    live.console.print(line, no_wrap=True, overflow="ellipsis", markup=False)
            return live is not None

    def _picture(self) -> Group:
        with self._lock:
            columns = self._live.console.width if self._live is not None else 80
            return Group(*(_cut(line) for what in self._shown for line in what.lines(columns)))


def _cut(line: str) -> Text:
    """One line of a terminal, however narrow it is."""
    return Text(line, no_wrap=True, overflow="ellipsis")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


_screen = _Screen()
