"""What a job prints, shown while it goes on."""

import json
import sys
import time

from pipeline.errors import ClusterError, ConfigError, NotNowError, UnreachableError
from pipeline.json_value import Json
from pipeline.submission.place import Job, Output, Place

_BYTES_PER_SECOND = 500_000
"""Ray always sends the whole log: a longer one is asked for less often, to stay below this."""
_LAST_LINES = 20
"""In these a result is looked for: what a job still says on stderr may come after it."""


class LogTail:
    """Prints on stderr what is new in a job's output; one that can't be had is no reason to stop.

    `result` is the JSON that the job printed last; None while there is none.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._shown, self._end = 0, ""
        self._next = 0.0
        self.result: Json | None = None

    def show(self, job: Job) -> None:
        """Asks for the output unless that was a moment ago, or the job has ended."""
        if not job.has_ended and time.monotonic() < self._next:
            return
        output = self.read(job)
        if output.whole:
            sys.stderr.write(output.text[self._shown :])
            self._shown = max(self._shown, len(output.text))
        elif output.text and output.text != self._end:
            sys.stderr.write(f"==> the end of what {job.id} printed <==\n{output.text.rstrip()}\n")
            self._end = output.text
        sys.stderr.flush()
        self._next = time.monotonic() + len(output.text) / _BYTES_PER_SECOND

    def read(self, job: Job) -> Output:
        """What there is of it; nothing where it can't be had."""
        try:
            output = self._place.output(job)
        except (UnreachableError, NotNowError, ClusterError, ConfigError):
            return Output("", whole=True)
        self.result = result_in(output.text)
        return output


def result_in(text: str) -> Json | None:
    """The result that a job prints last."""
    for line in reversed(text.rstrip().splitlines()[-_LAST_LINES:]):
        if line.startswith("{"):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            return found if isinstance(found, dict) else None
    return None
