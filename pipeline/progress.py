"""Progress of long work on stderr: a bar on a terminal, a plain line every few seconds in a log."""

import sys
import time

from tqdm import tqdm

_LOG_SECONDS = 5.0
_BAR_SECONDS = 0.2


class Progress:
    """Counts `unit`s of work towards `total` (None: not known) and shows rate and time left.

    Used as a context manager; `note` is a text shown behind the numbers, on a terminal below them.
    """

    def __init__(self, label: str, total: int | None, unit: str, done: int = 0) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done = self._initial = done
        self._note = ""
        self._terminal = sys.stderr.isatty()
        self._start = self._shown = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._show()
        if self._terminal:
            sys.stderr.write("\n\n" if self._note else "\n")

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Adds `count` units of finished work."""
        self._done += count
        self._note = self._note if note is None else note
        interval = _BAR_SECONDS if self._terminal else _LOG_SECONDS
        if time.monotonic() - self._shown >= interval:
            self._show()

    def _show(self) -> None:
        self._shown = time.monotonic()
        text = tqdm.format_meter(
            self._done,
            self._total,  # type: ignore[arg-type]  # tqdm takes None, its stubs don't
            self._shown - self._start,
            ncols=100 if self._terminal else None,
            prefix=self._label,
            unit=f" {self._unit}",
            initial=self._initial,
            postfix=None if self._terminal else self._note or None,
            bar_format=None
            if self._terminal
            else "{desc}: {n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
        )
        if self._terminal:
            # The note's line first comes below, then the cursor goes back up to the bar's.
            below = f"\n{self._note}\x1b[K\x1b[1A" if self._note else ""
            text = f"\r{text}\x1b[K{below}"
        sys.stderr.write(text if self._terminal else f"{text}\n")
        sys.stderr.flush()
