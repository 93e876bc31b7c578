"""One parser under thousands of odd inputs, in a process of its own: its memory and time bounded.

Each input must be read, or refused by a `PipelineError` that is short and moves no terminal's
cursor. All else is a finding: one for each kind of error and place, with an input that shows it.
"""

import json
import mmap
import os
import re
import resource
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, example, given, seed, settings
from hypothesis.strategies import SearchStrategy

from pipeline.errors import PipelineError

MEMORY_BYTES = 3 * 2**30
"""Above what the process has already: an image may take half a gigabyte, allocators reserve."""
SECONDS = 60
"""For one input, of which each takes milliseconds: a machine that is busy takes longer."""
_LONGEST_MESSAGE = 3000
_EXAMPLES_AT_ONCE = 1000
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Target:
    """A parser, what it is given, and inputs that once ended in something else than our errors."""

    name: str
    inputs: SearchStrategy[Any]
    read: Callable[[Any], object]
    seeds: tuple[Any, ...] = ()


class Finding(NamedTuple):
    """What an input came to that must not be."""

    kind: str
    shown: str
    said: str


class Hunt(NamedTuple):
    """How many inputs were tried, and what was found."""

    tried: int
    findings: Sequence[Finding]


def hunt(target: Target, *, inputs: int = 40, seconds: float = 0) -> Hunt:
    """Tries the seeds and the same `inputs` each time, or for `seconds` others each time."""
    last = mmap.mmap(-1, 2**16)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            found = _hunt_here(target, inputs, seconds, last)
        except BaseException:  # noqa: BLE001 - the hunt's own fault; pytest goes on in the parent alone
            found = Hunt(0, [Finding("the hunt failed", "", traceback.format_exc()[-3000:])])
        with os.fdopen(write, "w") as file:
            json.dump(found, file)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        data = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not data:
        shown = last[:].rstrip(b"\0").decode(errors="replace")
        kind = "HANG" if status == -signal.SIGALRM else f"DEATH by {status}"
        return Hunt(0, [Finding(kind, shown, "")])
    tried, findings = json.loads(data)
    return Hunt(tried, [Finding(*one) for one in findings])


def _hunt_here(target: Target, inputs: int, seconds: float, last: mmap.mmap) -> Hunt:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]  # where it is limited from outside
    most = used + MEMORY_BYTES
    soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    findings: dict[str, Finding] = {}
    tried = 0

    def one(given_input: Any) -> None:
        nonlocal tried
        tried += 1
        shown = repr(given_input)
        note = shown.encode(errors="replace")[: len(last)]
        last[:] = note.ljust(len(last), b"\0")
        signal.alarm(SECONDS)
        found = _kind_of(target.read, given_input)
        signal.alarm(0)
        if found is not None:
            kind, said = found
            # Of each kind the shortest input, which shows best what it takes.
            if kind not in findings or len(shown) < len(findings[kind].shown):
                findings[kind] = Finding(kind, shown, said)

    rules = settings(
        max_examples=_EXAMPLES_AT_ONCE if seconds else inputs, deadline=None, database=None,
        derandomize=not seconds, phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    end, number = time.monotonic() + seconds, int(time.time())
    while True:
        test = given(target.inputs)(lambda given_input: one(given_input))
        for given_input in target.seeds:
            test = example(given_input)(test)
        rules(seed(number)(test) if seconds else test)()
        number += 1
        if time.monotonic() >= end:
            break
    return Hunt(tried, [one._replace(shown=one.shown[:4000]) for one in findings.values()])


def _kind_of(read: Callable[[Any], object], given_input: Any) -> tuple[str, str] | None:
    """None where it was read or refused as it should be, else what happened, and the traceback."""
    try:
        read(given_input)
    except PipelineError as error:
        said = str(error)
        if len(said) > _LONGEST_MESSAGE:
            return f"a message of {type(error).__name__} that is too long", said[:500]
        return ("a message that moves the cursor", repr(said)) if _CONTROL.search(said) else None
    except BaseException as error:  # noqa: BLE001 - it is what is looked for; panics are no Exception
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/pipeline/" in frame.filename]
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "nowhere of ours"
        told = "".join(traceback.format_exception(error, limit=-8))
        return f"{type(error).__name__} at {place}", told[-3000:]
    return None
