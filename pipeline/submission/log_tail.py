"""What a job prints, shown while it goes on."""

import sys
import time

from pipeline.errors import ClusterError, ConfigError, NotNowError, UnreachableError
from pipeline.masking import safe
from pipeline.submission.job_output import Printed, printed
from pipeline.submission.place import Job, Output, Place

_BYTES_PER_SECOND = 500_000
"""Ray always sends the whole log: a longer one is asked for less often, to stay below this."""


_CHARACTERS_AT_ONCE = 1_000_000
"""Each that is looked at takes 8 bytes: of a log of 100 MB that was 800 MB."""


class LogTail:
    """Prints on stderr what is new in a job's output; one that can't be had is no reason to stop.

    `printed` is what its output comes to so far.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._shown, self._end = 0, ""
        self._source = ""
        self._next = 0.0
        self.printed = Printed()

    def show(self, job: Job) -> None:
        """Asks for the output unless that was a moment ago, or the job has ended."""
        if not job.has_ended and time.monotonic() < self._next:
            return
        output = self.read(job)
        if output.source != self._source:
            self._shown, self._source = 0, output.source
        if output.whole:
            self._show_new(output, is_last=job.has_ended)
        elif output.text and output.text != self._end:
            sys.stderr.write(
                f"==> the end of what {job.id} printed <==\n{safe(output.text).rstrip()}\n"
            )
            self._end = output.text
        sys.stderr.flush()
        self._next = time.monotonic() + len(output.text) / _BYTES_PER_SECOND

    def _show_new(self, output: Output, *, is_last: bool) -> None:
        """Whole lines only, but for the last one: half a secret is not seen as one."""
        text = output.text
        end = len(text) if is_last else text.rfind("\n") + 1
        at = max(0, self._shown - output.before)
        while at < end:
            line_ends = text.find("\n", min(at + _CHARACTERS_AT_ONCE, end), end) + 1
            part = text[at : line_ends or end]
            sys.stderr.write(safe(part))
            at += len(part)
        self._shown = max(self._shown, output.before + end)

    def read(self, job: Job) -> Output:
        """What there is of it; nothing where it can't be had."""
        try:
            output = self._place.output(job)
        except (UnreachableError, NotNowError, ClusterError, ConfigError):
            return Output("", whole=True)
        self.printed = printed(output.text)
        return output
