"""Proving a latent store whole: every file is what its receipt says, every key is there once."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pipeline import storage
from pipeline.errors import ObjectNotFoundError, PipelineError, ShortageError
from pipeline.latents.part_rows import PartRows, statistics_without
from pipeline.latents.receipt import POINTER, LatentPart, Receipt, read_receipt
from pipeline.latents.repair_command import encode_again
from pipeline.latents.snapshot import (
    SNAPSHOT,
    Snapshot,
    read_pointer,
    read_published,
    statistics_json,
)
from pipeline.latents.statistics import ChannelStatistics, empty, measure
from pipeline.latents.store import LatentStore
from pipeline.latents.stored_shard import StoredPart
from pipeline.progress import Progress

_PART_BYTES = 16 * 2**20
"""Read at a time, so that a file of any size is checked in little memory."""
_CLOSE = 1e-9
"""Taking rows away again rounds otherwise than never having added them (float64)."""

_Hashes = npt.NDArray[np.uint64]


def verify_store(url: storage.Place) -> list[str]:
    """Reads every byte twice; returns the problems, each with what to do, none when it is whole.

    Memory holds a part of one file at a time, and 8 bytes per key.
    """
    store = LatentStore.open_all(url)
    snapshot, again = store.snapshot, encode_again(store.url, read_pointer(store.url))
    problems = [
        f"shard {lost.shard}: {lost.samples} images have no latents: {lost.reason}. {again}."
        for lost in snapshot.lost
    ]
    hashes: dict[int, list[_Hashes]] = {}
    with Progress("verify", len(snapshot.shards), "shards") as progress:
        rows = iter(store.selection.rows)
        for shard in snapshot.shards:
            for part, its_rows in zip(shard.parts, rows, strict=False):
                try:
                    found = _verify_file(store.url, part.part, again)
                    problems += found or _verify_rows(
                        part, its_rows, hashes.setdefault(part.part.size, [])
                    )
                except ShortageError:
                    raise
                except PipelineError as error:
                    problems.append(str(error))
            problems += _verify_receipt(store.url, shard.receipt, again)
            progress.advance()
    problems += _verify_totals(store.url, snapshot)
    for size, of_size in hashes.items():
        problems += _twice(replace(store, size=size), of_size)
    return problems


def _verify_file(url: str, part: LatentPart, again: str) -> list[str]:
    """The file's checksum."""
    file = storage.below(url, part.path)
    digest, size = hashlib.sha256(), 0
    try:
        while data := storage.read(file, size, size + _PART_BYTES):
            digest.update(data)
            size += len(data)
    except ObjectNotFoundError:
        return [
            f"{file}: is missing. `{storage.removal(storage.join(url, POINTER))}`, then {again}."
        ]
    found = digest.hexdigest()
    if found != part.sha256 or size != part.bytes:
        stated, differs = f"its receipt says {part.bytes}", f"holds {size} bytes"
        if size == part.bytes:
            stated, differs = f"its receipt says {part.sha256[:12]}", f"has sha256 {found[:12]}"
        return [
            f"{file}: {differs}, {stated}. "
            f"`{storage.removal(file)}`, `{storage.removal(storage.join(url, POINTER))}`, then "
            f"{again}."
        ]
    return []


def _verify_receipt(url: str, receipt: Receipt, again: str) -> list[str]:
    """That the receipt beside the files is the snapshot's."""
    try:
        found = read_receipt(url, receipt.identity, receipt.source_sha256)
    except ShortageError:
        raise
    except PipelineError as error:
        return [str(error)]
    if found == receipt:
        return []
    named = ", ".join(part.path for part in receipt.parts)
    return [f"{url}: the receipt of {named} is not the one in the snapshot: {again}."]


def _verify_rows(stored: StoredPart, rows: PartRows, hashes: list[_Hashes]) -> list[str]:
    """The law, finite values and the statistics; adds the hashes of the keys that count."""
    part, options = stored.part, rows.identity.options
    nothing = empty(part.shape[0], options.content == "moments")
    every, counted, count = nothing, nothing, 0
    problems: list[str] = []
    for number in range(len(part.record_batches)):
        batch = rows.read(number)
        count += len(batch)
        live = ~np.isin(batch.positions, np.array(stored.removed, dtype=np.int64))
        keys = (key for key, counts in zip(batch.keys, live, strict=True) if counts)
        hashes.append(_hashes(keys))
        broken = [n for n, values in batch.tensors.items() if not np.isfinite(values).all()]
        problems += [f"{rows.url}: {name} holds values that are not finite." for name in broken]
        if not np.isin(batch.positions, part.held.array).all():
            problems.append(f"{rows.url}: holds rows that its receipt does not.")
        first, log_variance = batch.tensors[options.tensors[0]], batch.tensors.get("logvar")
        if len(batch):
            every = every.merge(measure(first, log_variance))
        if live.any():
            left = None if log_variance is None else log_variance[live]
            counted = counted.merge(measure(first[live], left))
    if count + len(part.failed) != len(part.held):
        problems.append(
            f"{rows.url}: {len(part.held)} samples in, {count} rows and {len(part.failed)} failed."
        )
    if every != part.statistics:
        problems.append(f"{rows.url}: its statistics are not those of its receipt.")
    stated = statistics_without(rows, stored.removed) if stored.removed else part.statistics
    if stated != stored.statistics or not _close(stated, counted):
        problems.append(f"{rows.url}: the snapshot's statistics are not those of its rows.")
    return problems


def _verify_totals(url: str, snapshot: Snapshot) -> list[str]:
    """That the totals which the snapshot and the pointer state follow from the shards."""
    where = storage.join(url, snapshot.path)
    stated, pointer = storage.read_document(SNAPSHOT, where), read_pointer(url)
    found = {
        "samples": snapshot.samples,
        "failed": snapshot.failed,
        "filtered": snapshot.filtered,
        "statistics": statistics_json(snapshot.statistics),
    }
    problems = [
        f"{where}: states {name} {stated.get(name)}, its shards give {value}. "
        f"`{storage.removal(where)}`, then run the same jobs.encode again."
        for name, value in found.items()
        if stated.get(name) != value
    ]
    if pointer is not None and read_published(url, pointer.number) != pointer:
        problems.append(
            f"{storage.join(url, POINTER)}: is not what published/ keeps of it. "
            f"`{storage.removal(storage.join(url, POINTER))}`, then run the same jobs.encode again."
        )
    totals = (snapshot.samples, snapshot.failed, snapshot.filtered)
    if pointer and (pointer.samples, pointer.failed, pointer.filtered) != totals:
        problems.append(f"{storage.join(url, POINTER)}: its totals are not the snapshot's.")
    return problems


def _close(stated: ChannelStatistics, found: ChannelStatistics) -> bool:
    pairs = [(stated.mean, found.mean), (stated.squares, found.squares)]
    scale = np.sqrt(np.array(found.squares) / max(found.count, 1)) + np.abs(found.mean) + 1e-300
    return stated.rows == found.rows and all(
        bool((np.abs(np.subtract(a, b)) <= _CLOSE * unit).all())
        for (a, b), unit in zip(pairs, (scale, scale**2 * max(found.count, 1)), strict=True)
    )


def _twice(store: LatentStore, hashes: list[_Hashes]) -> list[str]:
    """Keys that are there more than once; equal hashes are only where to look."""
    joined = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
    values, counts = np.unique(joined, return_counts=True)
    suspects = set(values[counts > 1].tolist())
    if not suspects:
        return []
    seen: set[str] = set()
    problems = []
    for batch in store.batches(()):
        for key, value in zip(batch.keys, _hashes(batch.keys).tolist(), strict=True):
            if value in suspects and key in seen:
                problems.append(f"{store.url}: the key {key!r} is there twice.")
            if value in suspects:
                seen.add(key)
    return problems


def _hashes(keys: Iterable[str]) -> _Hashes:
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, dtype=np.uint64)
