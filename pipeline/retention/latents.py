"""Taking images out of a latent store for good: their rows leave every file that holds them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline import storage
from pipeline.data.keys import find_key
from pipeline.errors import StoreError
from pipeline.latents.garbage import describe, find_garbage, list_snapshots, paths_in, stem_of
from pipeline.latents.identity import Identity
from pipeline.latents.marks import begun, refuse_links
from pipeline.latents.part_rows import PartRows, part_without, stored_shard
from pipeline.latents.receipt import (
    LATENTS,
    RECEIPT,
    REPORTS,
    Receipt,
    content_digest,
    read_receipt,
    receipt_path,
)
from pipeline.latents.snapshot import Pointer, Snapshot, point_to, read_pointer
from pipeline.storage.marks import removing


@dataclass(frozen=True)
class ErasedLatents:
    """What is taken out of a store: latent files that hold the keys, and rows in them.

    `missing`: keys of which no latents are here. `garbage`: what no snapshot names, which may hold
    them too and goes.
    """

    store: str
    files: tuple[str, ...]
    rows: int
    missing: tuple[str, ...]
    garbage: tuple[str, ...]


def erase_latents(
    store: str, asked: Sequence[str], *, delete: bool, unfinished: bool = False
) -> ErasedLatents:
    """Takes images out of every snapshot of a store; without `delete` it only looks.

    Their files are written anew without their rows, then receipts, snapshots and pointer; then
    goes what nothing names. Reports go too: they show images. Killed anywhere, the same call ends
    the same. Raises `StoreError` beside an encoding that has begun, unless it is `unfinished`.
    """
    refuse_beside_encoding(store, unfinished=unfinished or not delete)
    if not delete:
        return _erase(store, asked, delete=False)
    name = content_digest(storage.canonical_json(sorted(asked)))[:12]
    with removing(store, f"erase-{name}"):
        refuse_beside_encoding(store, unfinished=unfinished)
        told = _erase(store, asked, delete=True)
        rest = find_garbage(store, unfinished=True)
        for path in sorted(rest.files, key=lambda path: path.startswith(f"{LATENTS}/")):
            storage.delete(storage.join(store, path))
        return replace(told, garbage=tuple(rest.files))


def refuse_beside_encoding(store: str, *, unfinished: bool) -> None:
    """Raises `StoreError` where there is no store, or an encoding has begun, not `unfinished`.

    `StorageError` for a store whose folders are links, or hold some.
    """
    refuse_links(store)
    describe(store)
    if begun(store) and not unfinished:
        raise StoreError(
            f"{storage.shown(store)}: an encoding has begun here and not ended, and what it made "
            "no snapshot names yet. Let it end, or, if none runs, give `--unfinished`: what it "
            "made goes, and is encoded again."
        )


def _erase(store: str, asked: Sequence[str], *, delete: bool) -> ErasedLatents:
    snapshots, pointer = list_snapshots(store), read_pointer(store)
    parts = {
        stored.part.path: PartRows(store, stored.part, snapshot.identity)
        for snapshot in snapshots.values()
        for stored in snapshot.parts
    }
    every = {key for rows in parts.values() for key in _keys_of(rows)}
    keys, missing = set[str](), []
    for each in asked:
        try:
            keys.add(find_key(each, every))
        except KeyError:
            missing.append(each)
    files = {path: n for path, rows in parts.items() if (n := _count(rows, keys))}
    for path, snapshot in snapshots.items() if delete else ():
        shards = []
        for shard in snapshot.shards:
            receipt = read_receipt(store, shard.receipt.identity, shard.receipt.source_sha256)
            new = _without_keys(store, receipt or shard.receipt, snapshot.identity, keys)
            if new != receipt:
                url = storage.join(store, receipt_path(new.identity, new.source_sha256))
                storage.publish(url, RECEIPT.encode(new.to_json()))
            if new != shard.receipt:
                shard = stored_shard(store, new, snapshot.identity, shard.removed)
            shards.append(shard)
        current = pointer if pointer is not None and pointer.snapshot == path else None
        _replace(store, path, replace(snapshot, shards=tuple(shards)), current)
    return ErasedLatents(store, tuple(files), sum(files.values()), tuple(missing), ())


def _keys_of(rows: PartRows) -> Iterator[str]:
    for number in range(len(rows.part.record_batches)):
        yield from rows.read(number, ()).keys


def _count(rows: PartRows, keys: set[str]) -> int:
    return sum(key in keys for key in _keys_of(rows)) if keys else 0


def _without_keys(store: str, receipt: Receipt, identity: Identity, keys: set[str]) -> Receipt:
    """The receipt without the rows of these keys, whose new files are written."""
    rows = [PartRows(store, part, identity) for part in receipt.parts]
    parts = tuple(part_without(each, keys) if _count(each, keys) else each.part for each in rows)
    return replace(receipt, parts=parts)


def _replace(store: str, path: str, snapshot: Snapshot, pointer: Pointer | None) -> None:
    """Puts a snapshot in the place of the one at `path`, and the pointer to it after it."""
    data = snapshot.encode()
    if snapshot.path != path or storage.read(storage.join(store, path)) != data:
        storage.publish(storage.join(store, snapshot.path), data)
        for report in paths_in(store, f"{REPORTS}/{stem_of(path)}"):
            storage.delete(storage.join(store, report))
    if pointer is not None and (pointer.snapshot, pointer.sha256) != (
        snapshot.path,
        content_digest(data),
    ):
        point_to(store, snapshot, content_digest(data), data=pointer.data, model=pointer.model)
    if snapshot.path != path:
        storage.delete(storage.join(store, path))
