"""What a store holds: its snapshots, and what none of them names."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline import storage
from pipeline.errors import ObjectNotFoundError
from pipeline.json_value import Json
from pipeline.latents.marks import begun, refuse_links
from pipeline.latents.receipt import LATENTS, RECEIPTS, REPORTS, SNAPSHOTS, receipt_path
from pipeline.latents.snapshot import Snapshot, read_pointer, read_snapshot
from pipeline.latents.store import no_store
from pipeline.storage.marks import removing

_PARTIAL = ".partial-"


@dataclass(frozen=True)
class Garbage:
    """What may go: paths in the store with their bytes; `busy` identities were left alone."""

    files: dict[str, int]
    busy: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(self.files.values())


@dataclass(frozen=True)
class ListedSnapshot:
    """One snapshot of a store; `current`: the pointer names it."""

    snapshot: str
    current: bool
    identity: str
    model_digest: str
    dataset: str
    complete: bool
    samples: int
    failed: int
    filtered: int
    shards: int
    bytes: int
    options: Json


def list_snapshots(store: str) -> dict[str, Snapshot]:
    """Every snapshot of a store by its path, each read whole."""
    return {path: read_snapshot(store, path) for path in paths_in(store, SNAPSHOTS)}


def describe(store: str) -> list[ListedSnapshot]:
    """Every snapshot, the current one first; `StoreError` where there is no store at all."""
    pointer, snapshots = read_pointer(store), list_snapshots(store)
    if pointer is None and not snapshots and not begun(store):
        raise no_store(store, "--store")
    rows = [
        ListedSnapshot(
            snapshot=path,
            current=pointer is not None and pointer.snapshot == path,
            identity=snapshot.identity.digest,
            model_digest=snapshot.identity.model_digest,
            dataset=snapshot.dataset,
            complete=snapshot.complete,
            samples=snapshot.samples,
            failed=snapshot.failed,
            filtered=snapshot.filtered,
            shards=len(snapshot.shards),
            bytes=sum(shard.receipt.bytes for shard in snapshot.shards),
            options=snapshot.identity.options.to_json(),
        )
        for path, snapshot in snapshots.items()
    ]
    return sorted(rows, key=lambda row: (not row.current, row.snapshot))


def find_garbage(store: str, *, unfinished: bool = False) -> Garbage:
    """What no snapshot names; nothing of an identity that is being encoded.

    `unfinished`: also what encodings that never ended have made, which is right only when none
    runs. A partial snapshot goes when a whole one of the same dataset is there. Raises
    `StorageError` for links to folders: what lies there is nobody's garbage.
    """
    refuse_links(store)
    busy = set() if unfinished else begun(store)
    snapshots = list_snapshots(store)
    pointer = read_pointer(store)
    current = pointer.snapshot if pointer is not None else ""
    outdated = {
        path
        for path in snapshots
        if _PARTIAL in path and path.split(_PARTIAL)[0] + ".json" in snapshots and path != current
    }
    named: set[str] = set()
    for path in snapshots.keys() - outdated:
        named.add(path)
        for shard in snapshots[path].shards:
            receipt = shard.receipt
            named.add(receipt_path(receipt.identity, receipt.source_sha256))
            named |= {part.path for part in receipt.parts}
    stems = {path.removeprefix(f"{SNAPSHOTS}/").removesuffix(".json") for path in named}
    files = {
        path: size
        for folder in (SNAPSHOTS, REPORTS, RECEIPTS, LATENTS)
        for path, size in paths_in(store, folder).items()
        if path.split("/")[1] not in busy
        and path not in named
        and not (folder == REPORTS and stem_of(path) in stems)
    }
    return Garbage(files, tuple(sorted(busy)))


def remove_garbage(store: str, *, unfinished: bool = False) -> Garbage:
    """Removes it and returns what went.

    Receipts go before the files that they name. Whatever began to encode before is seen by its
    mark, and nothing begins meanwhile; see `marks`.
    """
    with removing(store):
        found = find_garbage(store, unfinished=unfinished)
        for path in sorted(found.files, key=lambda path: path.startswith(f"{LATENTS}/")):
            storage.delete(storage.join(store, path))
    return found


def stem_of(path: str) -> str:
    """IDENTITY/DATASET of a report's file: reports/IDENTITY/DATASET/NAME."""
    return "/".join(path.split("/")[1:-1])


def paths_in(store: str, folder: str) -> dict[str, int]:
    """Each file below a folder of a store, with its bytes."""

    def below() -> Iterator[tuple[str, int]]:
        root = storage.join(store, folder)
        for info in storage.list_objects(root):
            yield f"{folder}/{info.url.removeprefix(root).lstrip('/')}", info.size

    try:
        return dict(below())
    except ObjectNotFoundError:
        return {}
