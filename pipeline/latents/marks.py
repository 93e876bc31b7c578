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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline import storage
from pipeline.errors import ObjectNotFoundError, StorageError, StoreError
from pipeline.latents.receipt import LATENTS, RECEIPTS, REPORTS, SNAPSHOTS
from pipeline.storage.marks import marks_in, removals

BEGUN = "begun"
_FOLDERS = (BEGUN, SNAPSHOTS, REPORTS, RECEIPTS, LATENTS)


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


def refuse_links(store: str) -> None:
    """Raises `StorageError` where a store leads out of its folder by a link."""
    storage.refuse_links(store, *_FOLDERS)


def begin(store: str, identity: str, dataset: str) -> Mark:
    """Marks an encoding of this dataset digest as begun; `StoreError` beside a removal.

    `StorageError` for a store whose folders are links, or hold some.
    """
    refuse_links(store)
    mark = Mark(store, identity, dataset, secrets.token_hex(6))
    # The mark first, then the look; a removal does the same: of two at once one sees the other.
    storage.publish(mark.url, storage.canonical_json({"identity": identity, "dataset": dataset}))
    for url in removals(store):
        storage.delete(mark.url)
        raise StoreError(
            f"{storage.shown(store)}: garbage is being removed here (jobs.stores --delete). "
            "Run this again when that has ended. If it was killed, no such job runs any more: "
            f"then delete {storage.shown(url)}."
        )
    return mark


def end(mark: Mark, *, whole: bool) -> None:
    """Removes the mark: a snapshot now names what was made; a `whole` one, what others make too."""
    storage.delete(mark.url)
    for url in marks_in(storage.join(mark.store, BEGUN, mark.identity)) if whole else ():
        if PurePosixPath(url).name.startswith(f"{mark.dataset}."):
            storage.delete(url)


def withdraw(mark: Mark) -> None:
    """Removes the mark of an encoding that failed before there was anything for it to keep.

    Where storage fails it stays, and the failure is what that encoding ended by.
    """
    with suppress(StorageError):
        try:
            made = list(storage.list_objects(storage.join(mark.store, LATENTS, mark.identity)))
        except ObjectNotFoundError:
            made = []
        if not made:
            storage.delete(mark.url)


def begun(store: str) -> set[str]:
    """The identities of encodings that have begun and not ended."""
    return {PurePosixPath(url).parent.name for url in marks_in(storage.join(store, BEGUN))}
