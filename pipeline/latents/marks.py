"""Encodings that have begun and not published yet: what they make, nobody may call garbage.

Each process has a mark of its own, made before it looks for receipts and removed after its snapshot
stands, so that `garbage` needs no clock: whoever began before it looked is seen, and whoever begins
later finds the receipts that are left. A killed encoding leaves its mark. A whole snapshot names
all that any encoding of the same dataset and identity could name, so the one that publishes it
removes the marks of all of them, the killed ones' too.
"""

import secrets
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline import storage
from pipeline.errors import ObjectNotFoundError

BEGUN = "begun"


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
    """Marks an encoding of this dataset digest as begun."""
    mark = Mark(store, identity, dataset, secrets.token_hex(6))
    storage.publish(mark.url, storage.canonical_json({"identity": identity, "dataset": dataset}))
    return mark


def end(mark: Mark, *, whole: bool) -> None:
    """Removes the mark: a snapshot now names what was made; a `whole` one, what others make too."""
    storage.delete(mark.url)
    for url in _marks(storage.join(mark.store, BEGUN, mark.identity)) if whole else ():
        if PurePosixPath(url).name.startswith(f"{mark.dataset}."):
            storage.delete(url)


def begun(store: str) -> set[str]:
    """The identities of encodings that have begun and not ended."""
    return {PurePosixPath(url).parent.name for url in _marks(storage.join(store, BEGUN))}


def _marks(folder: str) -> list[str]:
    try:
        return [mark.url for mark in storage.list_objects(folder)]
    except ObjectNotFoundError:
        return []
