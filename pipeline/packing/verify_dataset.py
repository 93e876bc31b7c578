"""Proof that a dataset is whole: each shard read once, each promise of the manifest checked."""

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipeline import storage
from pipeline.data.dataset import Dataset
from pipeline.data.order import PADDED, slots_of
from pipeline.data.shard_index import ShardIndex
from pipeline.errors import DatasetError, ObjectNotFoundError, StorageError
from pipeline.packing.ledger import LedgerRow, read_ledger, read_state
from pipeline.progress import Progress

_PART_BYTES = 32 * 2**20


def verify_dataset(url: str, threads: int = 4) -> list[str]:
    """What is wrong with a dataset, one line each; empty for a whole one.

    Sizes and checksums of shards and indexes, counts, the crc of each image, keys that occur twice;
    a damaged shard's line is followed by the sources to pack again.
    """
    dataset = Dataset.open(url)
    problems: list[str] = []
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


def prove_order(url: str, worlds: Sequence[int], global_batch_size: int) -> list[str]:
    """What is wrong with the order in which that many ranks would read an epoch; empty if nothing.

    Goes through a whole epoch as a loader does, without reading images: each sample that counts
    must be in exactly one slot of one rank, and all ranks must have the same number of steps.
    """
    from pipeline.data.layout import plan_order

    dataset = Dataset.open(url)
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
    except StorageError as error:
        problems.append(str(error))
    return problems, live


def _check_bytes(url: str, sha256: str, size: int, index: ShardIndex) -> list[str]:
    """Reads the shard once, in parts; names the samples whose image has changed."""
    whole = hashlib.sha256()
    damaged: list[str] = []
    for position, crc in _image_checksums(url, size, index, whole):
        if crc != int(index.crc32[position]):
            damaged.append(index.keys[position])
    if whole.hexdigest() == sha256 and not damaged:
        return []
    shown = ", ".join(damaged[:5]) + (" ..." if len(damaged) > 5 else "")
    what = f"; {len(damaged)} damaged images: {shown}" if damaged else ""
    return [f"{url}: its bytes are not those of the manifest (sha256 differs){what}."]


def _image_checksums(
    url: str, size: int, index: ShardIndex, whole: "hashlib._Hash"
) -> Iterator[tuple[int, int]]:
    crc, position = 0, 0
    for start in range(0, size, _PART_BYTES):
        part = memoryview(storage.read(url, start, min(size, start + _PART_BYTES)))
        whole.update(part)
        end = start + len(part)
        while position < len(index):
            first = int(index.offsets[position])
            last = first + int(index.sizes[position])
            if first >= end:
                break
            crc = zlib.crc32(part[max(first - start, 0) : last - start], crc)
            if last > end:
                break
            yield position, crc
            crc, position = 0, position + 1


def _to_pack_again(dataset: Dataset, number: int) -> Iterator[str]:
    """Which sources hold the samples of a damaged shard, where the ledger knows."""
    root, split = dataset.url, ""
    if dataset.url.rstrip("/").endswith(("/train", "/holdout")):
        root, _, split = dataset.url.rstrip("/").rpartition("/")
    state = read_state(root)
    if state is None or (bool(state.options["holdout"]) != bool(split)):
        return
    path = dataset.shards[number].path
    by_url: dict[str, list[LedgerRow]] = {}
    for row in read_ledger(root, state).values():
        if row.shard == path and row.split == split:
            by_url.setdefault(row.url, []).append(row)
    for url in sorted(by_url):
        yield f"  pack again ({path}): {storage.shown(url)}" + (
            f" ({len(by_url[url])} members)" if len(by_url[url]) > 1 else ""
        )
    sources = " ".join(storage.shown(source) for source in state.sources)
    yield (
        f"  mend it: python -m jobs.pack --source {sources} --output {storage.shown(root)} "
        f"--append --repack {path} (with the options it was packed with)"
    )
