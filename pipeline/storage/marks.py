"""Marks of removals that are under way, for those who must not begin beside one.

Whoever removes makes a mark and then looks for those who write; whoever writes makes a mark of its
own (a plan, a `begun`) and then looks for removals. At least one of the two sees the other, however
long either sleeps.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from pipeline import storage
from pipeline.errors import ObjectNotFoundError, StorageError

_FOLDER = "removing"


@contextmanager
def removing(place: str, name: str = "") -> Iterator[None]:
    """Marks that something is removed below `place`, for as long as the block runs.

    `name`: of a removal that is to be run again when it was killed, so that the mark goes then.
    Raises `StorageError` beside another removal: one would take away what the other has written and
    not named yet, or write a file anew as it was before the other.
    """
    storage.refuse_links(place, _FOLDER)
    mark = f"{name or secrets.token_hex(6)}.json"
    url = storage.join(place, _FOLDER, mark)
    storage.publish(url, storage.canonical_json({}))
    try:
        for other in removals(place):
            if PurePosixPath(other).name != mark:
                raise StorageError(
                    f"{storage.shown(place)}: something else is being removed here (jobs.stores "
                    "--delete). Run this again when that has ended. If it was killed, run that one "
                    "again; or, if no such job runs any more, delete "
                    f"{storage.shown(other)}."
                )
        yield
    finally:
        storage.delete(url)


def removals(place: str) -> list[str]:
    """The marks of removals below `place` that have not ended, or were killed."""
    return marks_in(storage.join(place, _FOLDER))


def marks_in(folder: str) -> list[str]:
    """Every mark in a folder; none where there is no folder."""
    try:
        return [mark.url for mark in storage.list_objects(folder)]
    except ObjectNotFoundError:
        return []
