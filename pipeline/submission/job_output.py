"""What a job's output says: its result, or what ended it; and how Ray passes its end on."""

import itertools
import json
import re
from typing import NamedTuple

from pipeline.json_value import Json
from pipeline.submission.own_job import NOT_REPEATED

_LAST_LINES = 20
"""In these a result is looked for: what a job still says on stderr may come after it."""
_ERROR = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b")
_CAUSE_CHARACTERS = 2000
"""An error of ours with all its lines fits; what a library prints of itself is cut."""
END_CHARACTERS = 8_000_000
"""In these a result or an error is looked for: whole logs cut into lines take much memory."""
_MARK_CHARACTERS = 5000
"""At the end of what was printed, where the mark of a stopped job stands before its last lines."""


class Printed(NamedTuple):
    """What a job's output comes to; `exit_code` is that of a job that had itself stopped.

    `is_empty` where nothing of it is to be had.
    """

    result: Json | None = None
    cause: str = ""
    exit_code: int | None = None
    is_empty: bool = True


def printed(text: str) -> Printed:
    """The result of a job, or the last error that it names."""
    ended = re.search(rf"^{NOT_REPEATED}(\d+)$", text[-_MARK_CHARACTERS:], re.MULTILINE)
    code = int(ended[1]) if ended else None
    return Printed(result_in(text), cause_of(text), code, is_empty=not text)


def result_in(text: str) -> Json | None:
    """The result that a job prints last."""
    for line in reversed(text[-END_CHARACTERS:].rstrip().splitlines()[-_LAST_LINES:]):
        if line.startswith("{"):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            return found if isinstance(found, dict) else None
    return None


def cause_of(output: str) -> str:
    """The last error that the end of an output names, with the indented lines below it; or ""."""
    lines = output[-END_CHARACTERS:].splitlines()
    for at in reversed(range(len(lines))):
        if _ERROR.match(lines[at]):
            below = itertools.takewhile(lambda line: line.startswith(" "), lines[at + 1 :])
            return "\n".join([lines[at], *below])[:_CAUSE_CHARACTERS]
    return ""


def said_and_printed(message: str) -> tuple[str, str]:
    """Ray's sentence on a job, and the last lines of its output that Ray adds to a failure."""
    said, _, printed = message.partition(", last available logs")
    return said, printed.partition(":\n")[2]
