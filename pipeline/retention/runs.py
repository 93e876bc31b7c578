"""What runs there are below a storage, what they take, and what of it may go."""

import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from pipeline import storage
from pipeline.errors import ObjectNotFoundError, PipelineError, RunError, ShortageError
from pipeline.latents.marks import BEGUN
from pipeline.latents.receipt import POINTER, RECEIPTS, SNAPSHOTS
from pipeline.masking import one_line, shell_word
from pipeline.places import held_below
from pipeline.runs.checkpoint import newest_step, note_removed
from pipeline.runs.result import TrainingResult
from pipeline.runs.run import Run

ALIVE_SECONDS = 15 * 60.0
"""A run that makes steps writes its tally every 5 seconds; storage may refuse that for a while."""

_CHECKPOINTS = "checkpoints"
_LAST = ("run.json", "attempts", "result.json")
"""What a run is known by. Goes last, in this order: a removal that was killed can be repeated."""
_STORES = frozenset({POINTER, SNAPSHOTS, RECEIPTS, BEGUN})
"""What a latent store has, beside times and rates in a folder `attempts`: it is no run."""

State = Literal["finished", "stopped", "drained", "superseded", "alive", "silent", "damaged"]
"""How a run stands: `alive`, not ended and written to lately; `silent`, not ended, and not written
to: killed, or waiting for its cluster; `damaged`: `ListedRun.problem` says what can't be read."""


@dataclass(frozen=True)
class ListedRun:
    """One run: bytes of all it has and of its checkpoints, seconds since 1970 of its last change.

    `model` is the registered version that it ended with, `step` its newest checkpoint's.
    """

    run: str
    state: State
    step: int
    model: str | None
    bytes: int
    checkpoint_bytes: int
    changed: float
    problem: str = ""


@dataclass(frozen=True)
class Removal:
    """What may go of one run: bytes and objects; `refused`: why nothing of it does."""

    run: str
    bytes: int
    objects: int
    refused: str = ""


@dataclass
class _Folder:
    """What a listing finds below one name."""

    bytes: Counter[str] = field(default_factory=Counter)
    """By the first name below the run."""
    names: set[str] = field(default_factory=set)
    changed: float = 0.0

    @property
    def is_store(self) -> bool:
        return bool(self.names & _STORES) and "run.json" not in self.names


def list_runs(place: str, only: Sequence[str] = ()) -> list[ListedRun]:
    """Every run below `place`, by one listing of it.

    Raises `RunError` for a name without a run, `ObjectNotFoundError` where there is nothing at all.
    """
    runs = []
    for name, folder in sorted(_folders(place, only).items()):
        if folder.names.intersection(_LAST) and not folder.is_store:
            runs.append(_listed(Run(storage.join(place, name)), name, folder))
    missing = [name for name in only if name not in {run.run for run in runs}]
    if missing:
        url = storage.join(place, missing[0])
        if (one := _folders(place, missing).get(missing[0])) and one.is_store:
            raise RunError(
                f"{storage.shown(url)}: is a latent store, no run. What it holds, and what of it "
                f"may go: `python -m jobs.stores --store {shell_word(url)}`."
            )
        raise RunError(
            f"{storage.shown(url)}: there is no run here. `python -m "
            f"jobs.runs --storage {shell_word(place)}` lists those that there are."
        )
    return runs


def _folders(place: str, only: Sequence[str]) -> dict[str, _Folder]:
    found: dict[str, _Folder] = {}
    # A place that does not exist is an error; a run that does not is told with its name.
    named = [_objects(storage.join(place, name)) for name in dict.fromkeys(only)]
    others = set[str]() if only else _other_names(place)
    for objects in named or [storage.list_objects(place)]:
        for info in objects:
            parts = info.url.removeprefix(place.rstrip("/")).lstrip("/").split("/")
            if len(parts) < 2 or parts[0] in others:
                continue
            folder = found.setdefault(parts[0], _Folder())
            folder.bytes[parts[1]] += info.size
            folder.names.add(parts[1])
            folder.changed = max(folder.changed, info.modified)
    return found


def _other_names(place: str) -> set[str]:
    """Links to a run beside them, such as `latest`: one more name of it, and no run more."""
    path = storage.local_path(place)
    if path is None or not path.is_dir():
        return set()
    links = (each for each in path.iterdir() if each.is_symlink())
    here = os.path.realpath(path)
    return {link.name for link in links if os.path.dirname(os.path.realpath(link)) == here}


def _objects(url: str) -> Iterable[storage.ObjectInfo]:
    try:
        yield from storage.list_objects(url)
    except ObjectNotFoundError:
        return


def _listed(run: Run, name: str, folder: _Folder) -> ListedRun:
    state: State = "silent"
    step, model, problem = 0, None, ""
    try:
        step = newest_step(run)
        ended = run.ended()
        if ended is not None:
            state = "finished" if ended.reason == "done" else ended.reason
            model, step = _registered(ended), max(step, ended.steps)
        elif time.time() - folder.changed < ALIVE_SECONDS:
            state = "alive"
    except ShortageError:
        raise
    except PipelineError as error:
        state, problem = "damaged", str(error)
    return ListedRun(
        run=name,
        state=state,
        step=step,
        model=model,
        bytes=folder.bytes.total(),
        checkpoint_bytes=folder.bytes[_CHECKPOINTS],
        changed=folder.changed,
        problem=problem,
    )


def _registered(ended: TrainingResult) -> str | None:
    """The version by its number: an alias may mean another one by now."""
    if ended.model is None or ended.model_version is None:
        return None
    name = ended.model.removeprefix("models:/").partition("@")[0].partition("/")[0]
    return f"models:/{name}/{ended.model_version}"


def choose(
    runs: Sequence[ListedRun], *, older_days: float, keep_last: int, named: bool
) -> list[ListedRun]:
    """Those that something may go of: the finished ones, all but the newest, and old enough.

    `named`: the user named each run, so that stopped, silent and damaged ones are meant, too.
    """
    newest = sorted(runs, key=lambda run: run.changed, reverse=True)
    before = time.time() - older_days * 86_400
    kept = {run.run for run in newest[:keep_last]}
    return [
        run
        for run in runs
        if run.run not in kept and run.changed <= before and (named or run.state == "finished")
    ]


def removal(
    place: str, run: ListedRun, what: Literal["checkpoints", "runs"], *, named: bool, delete: bool
) -> Removal:
    """What goes of a run; with `delete` it does, and the objects without which it is none go last.

    Refused: a run that is alive; one that holds links to folders, since what lies there may be
    anything; checkpoints of one that is not finished, since they are all it has; a whole one that
    holds a store, a dataset or another run, or whose model nothing else holds, unless the user
    `named` it.
    """
    if delete:
        # Looked at once more: somebody may have begun to continue it since it was listed.
        run = list_runs(place, [run.run])[0]
    refused = _refusal(place, run, what, named=named)
    if refused:
        return Removal(run.run, 0, 0, refused)
    url = storage.join(place, run.run)
    found = list(_objects(storage.join(url, _CHECKPOINTS) if what == _CHECKPOINTS else url))
    if what == _CHECKPOINTS:
        found = [info for info in found if not info.url.endswith("/removed.json")]
    elif held := held_below(info.url.removeprefix(url).lstrip("/") for info in found):
        inner, kind = storage.join(url, held[0]), held[1]
        return Removal(
            run.run, 0, 0,
            f"{one_line(storage.shown(inner))}: is {kind} inside this run, and would go with it. "
            "Move it elsewhere, or remove it first.",
        )  # fmt: skip
    size = sum(info.size for info in found)
    if delete:
        if what == _CHECKPOINTS:
            # The note is needed once the newest goes. Before, the others make room for it: whoever
            # clears up may have a full disk, or a quota.
            newest = re.compile(rf"/(newest-[^/]*|step-0*{run.step}\b[^/]*)$")
            for info in found:
                if not newest.search(info.url):
                    storage.delete(info.url)
            note_removed(Run(url), run.step)
        for info in sorted(found, key=lambda info: _order(info.url.removeprefix(url))):
            storage.delete(info.url)
        for folder in sorted({info.url.rpartition("/")[0] for info in found}, reverse=True):
            _delete_folders(folder, url)
    return Removal(run.run, size, len(found))


def _order(name: str) -> tuple[int, str]:
    first = PurePosixPath(name.lstrip("/")).parts[0]
    return _LAST.index(first) if first in _LAST else -1, name


def _delete_folders(folder: str, run: str) -> None:
    """Local folders that hold nothing any more, up to the run's own."""
    while folder.startswith(run):
        storage.delete_empty_folder(folder)
        folder = folder.rpartition("/")[0]


def _refusal(
    place: str, run: ListedRun, what: Literal["checkpoints", "runs"], *, named: bool
) -> str:
    where = one_line(storage.shown(storage.join(place, run.run)))
    bundle = storage.join(place, run.run, "bundle")
    if run.state == "alive":
        return (
            f"{where}: is alive: it was written to {time.time() - run.changed:.0f} seconds ago and "
            f"has not ended. Stop it first (a file {where}/STOP does), or wait for its end."
        )
    for link in storage.links(place, run.run):
        return (
            f"{where}: {one_line(str(link))} is a link to another folder, and nothing is removed "
            "through links. Remove the run where it lies, or that link first."
        )
    if what == "checkpoints" and run.state != "finished":
        return (
            f"{where}: is {run.state}, and its checkpoints are what it goes on from. Finish it, or "
            f"remove all of it: `--run {shell_word(run.run)} --remove runs`."
        )
    if what == "runs" and run.model is None and not named:
        return (
            f"{where}: its model is not in the registry, so nothing else holds it. Register it "
            f"(`python -m jobs.models --register {shell_word(bundle)}`), or name the run: "
            f"`--run {shell_word(run.run)}`."
        )
    return ""
