"""Proof that a dataset is whole: each shard read once, each promise of the manifest checked."""

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipeline import storage
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import (
    POINTER,
    oldest_kept,
    read_generation,
    read_pointer,
)
from pipeline.data.order import PADDED, slots_of
from pipeline.data.shard_index import ShardIndex
from pipeline.errors import DatasetError, ObjectNotFoundError, ShortageError, StorageError
from pipeline.masking import shell_word
from pipeline.packing.commit import REJECTS
from pipeline.packing.ledger import (
    STATE,
    LedgerRow,
    read_generation_state,
    read_ledger,
    read_state,
    rejects_of,
    state_to_bytes,
)
from pipeline.packing.leftovers import root_of
from pipeline.progress import Progress

_PART_BYTES = 32 * 2**20
"""Read at a time, so that a shard of any size is checked in little memory."""


def verify_dataset(url: str, shards_below: Sequence[str] = (), threads: int = 4) -> list[str]:
    """What is wrong with a dataset, one line each; empty for a whole one.

    The manifest of every generation that is still named; of the current one the sizes and checksums
    of shards and indexes, counts, the crc of each member that readers use, keys that occur twice.
    (A shard leaves a dataset only when nothing of it counts any more.) Beside it the state of
    packing, its tables and the list of rejects. A damaged shard's line is followed by the sources
    to pack again.
    """
    dataset = Dataset.open(url, None, shards_below, flag="--dataset")
    problems = [*_check_pointer(dataset), *_check_state(dataset)]
    problems += _check_generations(dataset)
    keys: dict[bytes, int] = {}
    with (
        ThreadPoolExecutor(threads) as pool,
        Progress("verifying", len(dataset.shards), "shards") as progress,
    ):
        results = pool.map(lambda number: _check_shard(dataset, number), range(len(dataset.shards)))
        for number, (found, live) in enumerate(results):
            progress.advance()
            for key in live:
                # 16 bytes of a hash, not the key: 10^8 samples stay below 20 GB.
                digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
                if keys.setdefault(digest, number) != number:
                    found.append(f"{dataset.shards[number].path}: the key {key!r} occurs twice.")
            if found:
                problems += [*found, *_to_pack_again(dataset, number)]
    if len(keys) != len(dataset) and not problems:
        problems.append(f"{url}: holds {len(keys)} keys, the manifest counts {len(dataset)}.")
    return problems


def _check_generations(dataset: Dataset) -> list[str]:
    """What is wrong with the generations before the current one, each named by the one after."""
    after, digest = dataset.manifest, dataset.manifest.parent
    oldest = oldest_kept(dataset.url)
    while digest is not None and after.generation > oldest:
        url = f"{storage.join(dataset.url, 'manifests', digest)}.json"
        try:
            before = read_generation(dataset.url, digest)
        except ObjectNotFoundError:
            return [
                f"{url}: is missing; runs and stores that began with that generation can't read it "
                "any more. Restore it."
            ]
        except ShortageError:
            raise
        except (DatasetError, StorageError) as error:
            return [str(error)]
        if before.generation != after.generation - 1:
            return [f"{url}: is generation {before.generation}, before {after.generation}."]
        after, digest = before, before.parent
    return []


def _check_pointer(dataset: Dataset) -> list[str]:
    pointer = read_pointer(dataset.url)
    if pointer is None or pointer.digest == dataset.digest:
        return []
    return [
        f"{storage.join(dataset.url, POINTER)}: is older than the ledger beside it. Run the same "
        "jobs.pack again, which writes it anew."
    ]


def _check_state(dataset: Dataset) -> list[str]:
    """What is wrong with what packing keeps beside the shards, for the next pack."""
    root, split = root_of(dataset.url)
    pointer = read_pointer(dataset.url)
    if pointer is None or pointer.ledger is None or pointer.split != split:
        return []
    problems: list[str] = []
    for number in range(1, pointer.ledger + 1):
        try:
            if read_generation_state(root, number) is None:
                problems.append(f"{root}/ledger/{number:06d}.json: is missing. Restore it.")
        except ShortageError:
            raise
        except (DatasetError, StorageError) as error:
            problems.append(str(error))
    try:
        state = read_state(root)
        if state is None:
            return [*problems, f"{root}: its state of packing is gone. Restore ledger/."]
        if storage.read(storage.join(root, STATE)) != state_to_bytes(state):
            problems.append(f"{storage.join(root, STATE)}: is older than ledger/. Run jobs.pack.")
        rows = read_ledger(root, state)
        if _read_rejects(root) != rejects_of(row for _, row in sorted(rows.items())):
            problems.append(
                f"{storage.join(root, REJECTS)}: is not what the ledger lists. Run the same "
                "jobs.pack again, which writes it anew."
            )
    except ShortageError:
        raise
    except (DatasetError, StorageError) as error:
        problems.append(str(error))
    return problems


def _read_rejects(root: str) -> bytes:
    try:
        return storage.read(storage.join(root, REJECTS))
    except ObjectNotFoundError:
        return b""


def prove_order(dataset: Dataset, worlds: Sequence[int], global_batch_size: int) -> list[str]:
    """What is wrong with the order in which that many ranks would read an epoch; empty if nothing.

    Goes through a whole epoch as a loader does, without reading images: each sample that counts
    must be in exactly one slot of one rank, and all ranks must have the same number of steps.
    """
    from pipeline.data.layout import plan_order

    url = dataset.url
    order = plan_order(dataset, global_batch_size, 0, 512 * 2**20, shuffle=True, tail="pad")
    problems = []
    for world in worlds:
        times = np.zeros(len(dataset), dtype=np.uint8)
        with Progress(f"order of {world} ranks", len(dataset), "samples") as progress:
            for rank in range(world):
                slots = slots_of(rank, world, global_batch_size)
                for step in range(order.steps):
                    ids = order.batch(0, step, slots)
                    ids = ids[ids != PADDED]
                    np.add.at(times, ids, 1)
                    progress.advance(len(ids))
        wrong = np.flatnonzero(times != 1)
        if len(wrong):
            problems.append(
                f"{url}: with {world} ranks {len(wrong):,} samples are not read exactly once, such "
                f"as number {wrong[0]} ({times[wrong[0]]} times). This is a bug: please report it."
            )
    return problems


def _check_shard(dataset: Dataset, number: int) -> tuple[list[str], list[str]]:
    """The shard's problems, and the keys of its samples that count."""
    record = dataset.shards[number]
    url = dataset.shard_url(record)
    try:
        index = dataset.read_index(number)
    except ShortageError:
        raise
    except (DatasetError, StorageError) as error:
        return [str(error)], []
    problems: list[str] = []
    if len(index) != record.samples:
        problems.append(
            f"{url}: its index holds {len(index)} samples, the manifest says {record.samples}."
        )
    if len(set(index.keys)) != len(index.keys):
        problems.append(f"{url}: a key occurs twice in its index.")
    removed = set(record.removed)
    live = [key for position, key in enumerate(index.keys) if position not in removed]
    try:
        size = storage.stat(url).size
        if size != record.bytes:
            cause = "The copy was cut short" if size < record.bytes else "It was written over"
            problems.append(
                f"{url}: holds {size:,} bytes, the manifest says {record.bytes:,}. {cause}."
            )
        else:
            problems += _check_bytes(url, record.sha256, size, index)
    except ObjectNotFoundError:
        problems.append(f"{url}: is missing.")
    except ShortageError:
        raise
    except StorageError as error:
        problems.append(str(error))
    return problems, live


def _check_bytes(url: str, sha256: str, size: int, index: ShardIndex) -> list[str]:
    """Reads the shard once, in parts; names the samples whose image has changed."""
    whole = hashlib.sha256()
    damaged: dict[str, None] = {}
    for position, crc, wanted in _member_checksums(url, size, index, whole):
        if crc != wanted:
            damaged[index.keys[position]] = None
    if whole.hexdigest() == sha256 and not damaged:
        return []
    shown = ", ".join([*damaged][:5]) + (" ..." if len(damaged) > 5 else "")
    what = f"; {len(damaged)} damaged samples: {shown}" if damaged else ""
    return [f"{url}: its bytes are not those of the manifest (sha256 differs){what}."]


def _member_checksums(
    url: str, size: int, index: ShardIndex, whole: "hashlib._Hash"
) -> Iterator[tuple[int, int, int]]:
    """Position, CRC-32 found and wanted of each member that readers use, in one pass."""
    members = np.concatenate([
        np.stack([np.arange(len(index)), offsets, sizes, crcs.astype(np.int64)], axis=1)
        for offsets, sizes, crcs in (
            (index.offsets, index.sizes, index.crc32),
            (index.json_offsets, index.json_sizes, index.json_crc32),
            (index.cls_offsets, index.cls_sizes, index.cls_crc32),
            (index.txt_offsets, index.txt_sizes, index.txt_crc32),
        )
    ])  # fmt: skip
    members = members[members[:, 2] >= 0]
    members = members[np.argsort(members[:, 1], kind="stable")]
    crc, at = 0, 0
    for start in range(0, size, _PART_BYTES):
        part = memoryview(storage.read(url, start, min(size, start + _PART_BYTES)))
        whole.update(part)
        end = start + len(part)
        while at < len(members):
            position, first, length, wanted = members[at].tolist()
            last = first + length
            if first >= end and length:
                break
            crc = zlib.crc32(part[max(first - start, 0) : max(last - start, 0)], crc)
            if last > end:
                break
            yield position, crc, wanted
            crc, at = 0, at + 1


def _to_pack_again(dataset: Dataset, number: int) -> Iterator[str]:
    """Which sources hold the samples of a damaged shard, where the ledger knows."""
    root, split = root_of(dataset.url)
    try:
        state = read_state(root)
        rows = read_ledger(root, state).values()
    except ShortageError:
        raise
    except (DatasetError, StorageError):
        return  # its own problem, listed already
    if state is None or (bool(state.options.holdout) != bool(split)):
        return
    path = dataset.shards[number].path
    by_url: dict[str, list[LedgerRow]] = {}
    for row in rows:
        if row.shard == path and row.split == split:
            by_url.setdefault(row.url, []).append(row)
    for url in sorted(by_url):
        yield f"  pack again ({path}): {storage.shown(url)}" + (
            f" ({len(by_url[url])} members)" if len(by_url[url]) > 1 else ""
        )
    sources = " ".join(map(shell_word, state.sources))
    options = "".join(f" {shell_word(word)}" for word in state.flags(vars(state.options)))
    yield (
        f"  mend it: `python -m jobs.pack --source {sources} --output {shell_word(root)} "
        f"--append --repack {shell_word(path)}{options}`"
    )
