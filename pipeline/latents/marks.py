"""Encodings that have begun and not published yet: what they make, nobody may call garbage.

Each process has a mark of its own, made before it looks for receipts and removed after its snapshot
stands, so that `garbage` needs no clock. A killed encoding leaves its mark. A whole snapshot names
all that any encoding of the same dataset and identity could name, so the one that publishes it
removes the marks of all of them, the killed ones' too.

What removes garbage has a mark, too, and both look for the other's after making their own: at least
one of the two sees the other, however long either sleeps. So garbage is left alone while it is
encoded, and no encoding begins beside a removal, whose list may name what it would take up.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline import storage
from pipeline.errors import ObjectNotFoundError, StoreError

BEGUN, REMOVING = "begun", "removing"


@dataclass(frozen=True)
class Mark:
    """One process's word that it encodes this dataset digest under this identity."""

    store: str
    identity: str
    dataset: str
    name: str

    @property
    def url(self) -> str:
        """Where it lies."""
        return storage.join(self.store, BEGUN, self.identity, f"{self.dataset}.{self.name}.json")


def begin(store: str, identity: str, dataset: str) -> Mark:
    """Marks an encoding of this dataset digest as begun; `StoreError` beside a removal."""
    mark = Mark(store, identity, dataset, secrets.token_hex(6))
    # The mark first, then the look; a removal does the same: of two at once one sees the other.
    storage.publish(mark.url, storage.canonical_json({"identity": identity, "dataset": dataset}))
    for url in _marks(storage.join(store, REMOVING)):
        storage.delete(mark.url)
        raise StoreError(
            f"{storage.shown(store)}: garbage is being removed here (jobs.stores --gc --delete). "
            "Run this again when that has ended. If it was killed, no such job runs any more: "
            f"then delete {storage.shown(url)}."
        )
    return mark


def end(mark: Mark, *, whole: bool) -> None:
    """Removes the mark: a snapshot now names what was made; a `whole` one, what others make too."""
    storage.delete(mark.url)
    for url in _marks(storage.join(mark.store, BEGUN, mark.identity)) if whole else ():
        if PurePosixPath(url).name.startswith(f"{mark.dataset}."):
            storage.delete(url)


@contextmanager
def removing(store: str) -> Iterator[None]:
    """Marks garbage as being removed, for as long as the block runs."""
    url = storage.join(store, REMOVING, f"{secrets.token_hex(6)}.json")
    storage.publish(url, storage.canonical_json({}))
    try:
        yield
    finally:
        storage.delete(url)


def begun(store: str) -> set[str]:
    """The identities of encodings that have begun and not ended."""
    return {PurePosixPath(url).parent.name for url in _marks(storage.join(store, BEGUN))}


def _marks(folder: str) -> list[str]:
    try:
        return [mark.url for mark in storage.list_objects(folder)]
    except ObjectNotFoundError:
        return []
