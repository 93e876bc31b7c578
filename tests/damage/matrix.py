"""Each case in a process forked from one that has all imported: what its readers make of it."""

import json
import logging
import os
import re
import select
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.damage.damaged_world import World
from tests.damage.damages import Case, cases_of, damaged
from tests.damage.readers import READERS, VERIFIERS, Reader, outcome

SECONDS = 60.0
"""A reader that takes longer hangs; they take milliseconds, on a machine that is busy seconds."""

_IGNORED = re.compile(r"/(logs|attempts)/|\.lock$|/begun/|/reports/|STOP$|metrics.json$")
"""Files that nobody reads anything from, but people."""

Verdict = str
"""refused, told (a part is masked or made again, with a word), the same, SILENT, CRASH, HANG."""


@dataclass(frozen=True)
class Judged:
    """A case and the worst that a reader made of it; `verify` is what proves it, where that is."""

    case: Case
    verdict: Verdict
    reader: str
    said: str
    verify: Verdict


def kind_of(file: str) -> str:
    """The kind of a file, for the table: its folder and ending, without numbers and hashes."""
    name = re.sub(r"[0-9a-f]{6,}", "*", Path(file).name)
    name = re.sub(r"\d{3,}", "*", name)
    name = re.sub(r"(\*[-.]?)+", "*", name)
    parts = [p for p in Path(file).parts[:-1] if not re.fullmatch(r"[0-9a-f]{32}|\d{6}", p)]
    folders = "/".join(p for p in parts if p not in ("train", "holdout"))
    return f"{folders}/{name}"


def all_cases(world: World, flips: int) -> list[Case]:
    """Every damage to every file of a world that a reader reads."""
    found: list[Case] = []
    for kind in READERS:
        for path in sorted(world.path(kind).rglob("*")):
            file = world.name_of(path)
            if path.is_file() and not _IGNORED.search(file):
                older = world.older.get(file)
                found += cases_of(world.folder, file, kind_of(file), older, flips)
    return found


def expected(world: World) -> dict[str, Any]:
    """What each reader gives of the whole world; all of them must read it."""
    found = {}
    for top in READERS:
        for reader, outcome_of in zip(all_of(top), _ran(all_of(top), world), strict=True):
            assert outcome_of[0] == "read", (reader.__name__, outcome_of)
            found[reader.__name__] = outcome_of
    return found


def all_of(top: str) -> list[Reader]:
    """The readers of a folder, what proves it as the last, where that is."""
    return [*READERS[top], *([VERIFIERS[top]] if top in VERIFIERS else [])]


def judge(case: Case, world: World, whole: dict[str, Any]) -> Judged:
    """Applies the damage, lets every reader of that folder read, and undoes it."""
    top = Path(case.file).parts[0]
    readers = READERS[top]
    with damaged(case, world.folder):
        outcomes = _ran(all_of(top), world)
    found = [
        (reader.__name__, *_verdict(outcome_of, whole[reader.__name__]))
        for reader, outcome_of in zip(readers, outcomes, strict=False)
    ]
    state = outcomes[-1][0] if len(outcomes) > len(readers) else "-"
    verify = {"read": "clean"}.get(state, state)
    order = ("HANG", "DEATH", "CRASH", "SILENT", "told", "refused", "the same")
    name, verdict, said = min(found, key=lambda each: order.index(each[1]))
    if verify in ("HANG", "DEATH", "crashed"):
        name, verdict = "verify", "CRASH" if verify == "crashed" else verify
    return Judged(case, verdict, name, said, verify)


def _verdict(found: tuple[str, Any], whole: tuple[str, Any]) -> tuple[Verdict, str]:
    state, parts = found
    if state in ("HANG", "DEATH"):
        return state, str(parts)
    if state == "crashed":
        return "CRASH", parts["trace"]
    if state == "refused":
        return "refused", parts["said"]
    if parts == whole[1]:
        return "the same", ""
    wrong = [k for k, v in whole[1].items() if k not in parts or parts[k] not in (v, None)]
    more = [k for k in parts if k not in whole[1]]
    warned = bool(parts.get("warned"))
    if (wrong or [k for k in more if k != "warned"]) and not warned:
        return "SILENT", f"{wrong[:3]} {more[:3]}"
    return "told", ""


def _ran(readers: Sequence[Reader], world: World) -> list[tuple[str, Any]]:
    """Each reader's outcome, from a fork, which costs as much as a reader.

    One may die in it, or never end: the next go on in a new one.
    """
    found: list[tuple[str, Any]] = []
    while len(found) < len(readers):
        found += _fork(readers[len(found) :], world)
    return found


def _fork(readers: Sequence[Reader], world: World) -> list[tuple[str, Any]]:
    """The outcomes up to the first reader that dies or hangs, its own with them."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            with os.fdopen(write, "w") as file:
                for reader in readers:
                    file.write(json.dumps(_told(reader, world), default=repr) + "\n")
                    file.flush()
        finally:  # whatever happens here: pytest goes on in the parent alone
            os._exit(0)
    os.close(write)
    data, hangs = b"", False
    with os.fdopen(read, "rb") as file:
        deadline = time.monotonic() + SECONDS
        while not hangs:
            if select.select([file], [], [], 0.5)[0]:
                part = os.read(file.fileno(), 1 << 20)
                if not part:
                    break
                data, deadline = data + part, time.monotonic() + SECONDS
            hangs = time.monotonic() > deadline
    if hangs:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    found = [tuple(json.loads(line)) for line in data[: data.rfind(b"\n") + 1].splitlines()]
    if len(found) < len(readers):
        found.append(("HANG", "") if hangs else ("DEATH", f"status {status}"))
    return found


def _told(reader: Reader, world: World) -> tuple[str, Any]:
    """Its outcome, and the first thing that it said to the terminal."""
    warned = _Warnings()
    logger = logging.getLogger("pipeline")
    logger.addHandler(warned)
    state, parts = outcome(reader, world)
    logger.removeHandler(warned)
    if warned.lines and state == "read":
        parts["warned"] = warned.lines[0]
    return state, parts


class _Warnings(logging.Handler):
    """What a reader said to the terminal."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def table(judged: list[Judged]) -> str:
    """Cases by kind of file and verdict, as Markdown."""
    verdicts = ("refused", "told", "the same", "SILENT", "CRASH", "DEATH", "HANG")
    kinds = sorted({one.case.kind for one in judged})
    counts = Counter((one.case.kind, one.verdict) for one in judged)
    blind = Counter(
        one.case.kind for one in judged if one.verdict == "the same" and one.verify == "refused"
    )
    lines = [
        f"| file | cases | {' | '.join(verdicts)} | the same, verify tells |",
        "|---|" + "---|" * (len(verdicts) + 2),
    ]
    for kind in kinds:
        row = [counts[kind, verdict] for verdict in verdicts]
        lines.append(f"| {kind} | {sum(row)} | {' | '.join(map(str, row))} | {blind[kind]} |")
    totals = [sum(counts[kind, verdict] for kind in kinds) for verdict in verdicts]
    lines.append(
        f"| all | {len(judged)} | {' | '.join(map(str, totals))} | {sum(blind.values())} |"
    )
    return "\n".join(lines)
