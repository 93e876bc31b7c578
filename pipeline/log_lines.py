"""Log lines on stderr: short for people at a terminal, dated in a log, JSON for programs."""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

from pipeline.masking import masked, safe, safe_line
from pipeline.own_name import as_typed
from pipeline.progress import be_quiet, by_log_lines


def log_to_stderr(log_format: Literal["text", "json"] = "text", *, quiet: bool = False) -> None:
    """Sets up this process's logging; LOG_LEVEL names another level than INFO."""
    handler = _Stderr()
    if log_format == "json":
        handler.setFormatter(_Json())
        by_log_lines()
    elif sys.stderr.isatty():
        handler.setFormatter(_Short())
    else:
        handler.setFormatter(
            SafeFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")
        )
    level = "WARNING" if quiet else os.environ.get("LOG_LEVEL", "INFO")
    logging.basicConfig(level=level, handlers=[handler])
    if quiet:
        be_quiet()


class _Stderr(logging.StreamHandler[TextIO]):
    """Asks for stderr at each line: while a bar is live, it is one that writes above the bar."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


class SafeFormatter(logging.Formatter):
    """Shows no secret of a URL, and no character that would move a terminal's cursor."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return as_typed(safe(super().format(record)))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """A line: no name in it begins another one."""
        return safe_line(super().formatMessage(record))


class _Short(SafeFormatter):
    """The message; with its level where that is a warning or worse."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname}: {text}"


class _Json(logging.Formatter):
    """One object a line: `time` (UTC, ISO 8601), `level`, `logger`, `message`, `error`."""

    def format(self, record: logging.LogRecord) -> str:
        values = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": masked(record.getMessage()),
        }
        if record.exc_info:
            values["error"] = masked(self.formatException(record.exc_info))
        return json.dumps(values)
