"""Works side by side, each a fork of this process, stopped, woken and killed at random."""

import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PipelineError

Work = Callable[[], object]
SECONDS = 120
"""A work takes tenths of a second; one that is not done by then waits for ever."""
SLEEP_SECONDS = 0.03
"""The longest between two disturbances, and the longest that one is stopped."""


@dataclass(frozen=True)
class Ended:
    """How a work ended: done, refused (by an error of ours), killed, or crashed."""

    how: str
    said: str = ""


def race(works: Mapping[str, Work], chance: random.Random, folder: Path) -> dict[str, Ended]:
    """Runs all at once. Each may be stopped many times; about a third is killed on the way."""
    children = {name: _fork(work, folder / f"{name}.said") for name, work in works.items()}
    doomed = {name for name in works if chance.random() < 0.35}
    ended: dict[str, Ended] = {}
    deadline = time.monotonic() + SECONDS
    while len(ended) < len(children):
        time.sleep(chance.random() * SLEEP_SECONDS)
        left = [name for name in children if name not in ended]
        disturbed = chance.choice(left)
        _disturb(children[disturbed], chance, kills=disturbed in doomed)
        for name in left:
            pid, status = os.waitpid(children[name], os.WNOHANG)
            if pid:
                ended[name] = _ended(status, folder / f"{name}.said")
        if time.monotonic() > deadline:
            for name in [name for name in children if name not in ended]:
                os.kill(children[name], signal.SIGKILL)
                os.waitpid(children[name], 0)
                ended[name] = Ended("hangs")
    return ended


def alone(work: Work, folder: Path) -> Ended:
    """One, undisturbed."""
    status = os.waitpid(_fork(work, folder / "alone.said"), 0)[1]
    return _ended(status, folder / "alone.said")


def _disturb(pid: int, chance: random.Random, *, kills: bool) -> None:
    if kills and chance.random() < 0.3:
        os.kill(pid, signal.SIGKILL)
        return
    os.kill(pid, signal.SIGSTOP)
    time.sleep(chance.random() * SLEEP_SECONDS)
    os.kill(pid, signal.SIGCONT)


def _fork(work: Work, said: Path) -> int:
    said.unlink(missing_ok=True)
    child = os.fork()
    if child:
        return child
    code = 3
    try:
        work()
        code = 0
    except PipelineError as error:
        code = 1
        said.write_text(f"{type(error).__name__}: {error}")
    except BaseException:  # noqa: BLE001 - it is told to the parent
        said.write_text(traceback.format_exc())
    os._exit(code)


def _ended(status: int, said: Path) -> Ended:
    code = os.waitstatus_to_exitcode(status)
    how = {0: "done", 1: "refused", -signal.SIGKILL: "killed"}.get(code, f"crashed ({code})")
    return Ended(how, said.read_text() if said.exists() else "")
