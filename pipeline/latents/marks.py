"""Encodings that have begun and not published yet: what they make, nobody may call garbage.

A marker is made before an encoding looks for receipts and removed after its snapshot stands, so
that `garbage` needs no clock: whoever began before it looked is seen, and whoever begins later
finds the receipts that are left. A killed encoding leaves its marker; the same command, run again
to its end, removes it.
"""

from pathlib import PurePosixPath

from pipeline import storage
from pipeline.errors import ObjectNotFoundError

BEGUN = "begun"


def begin(store: str, identity: str, dataset: str) -> None:
    """Marks an encoding of this dataset digest as begun; twice is fine."""
    content = storage.canonical_json({"identity": identity, "dataset": dataset})
    storage.create_if_absent(_url(store, identity, dataset), content)


def end(store: str, identity: str, dataset: str) -> None:
    """Removes the mark: a snapshot now names what was made."""
    storage.delete(_url(store, identity, dataset))


def begun(store: str) -> set[str]:
    """The identities of encodings that have begun and not ended."""
    try:
        marks = list(storage.list_objects(storage.join(store, BEGUN)))
    except ObjectNotFoundError:
        return set()
    return {PurePosixPath(mark.url).parent.name for mark in marks}


def _url(store: str, identity: str, dataset: str) -> str:
    return storage.join(store, BEGUN, identity, f"{dataset}.json")
