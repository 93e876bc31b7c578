"""Proving a latent store whole: every file is what its receipt says, every key is there once."""

import hashlib

import numpy as np

from pipeline import storage
from pipeline.errors import PipelineError
from pipeline.latents.receipt import POINTER, read_receipt
from pipeline.latents.shard_rows import ShardRows
from pipeline.latents.snapshot import Snapshot, StoredShard
from pipeline.latents.statistics import empty, measure
from pipeline.latents.store import LatentStore
from pipeline.progress import Progress


def verify_store(url: str) -> list[str]:
    """Reads every byte once; returns the problems, each with what to do, none when it is whole."""
    store = LatentStore.open(url)
    snapshot = store.snapshot
    problems = [
        f"shard {lost.shard}: {lost.samples} images have no latents: {lost.reason}. "
        "Run the same jobs.encode again."
        for lost in snapshot.lost
    ]
    keys: set[str] = set()
    with Progress("verify", len(snapshot.shards), "shards") as progress:
        for shard in snapshot.shards:
            try:
                problems += _verify_shard(store.url, snapshot, shard, keys)
            except PipelineError as error:
                problems.append(str(error))
            progress.advance()
    return problems


def _verify_shard(url: str, snapshot: Snapshot, shard: StoredShard, keys: set[str]) -> list[str]:
    receipt, identity = shard.receipt, snapshot.identity
    file = storage.join(url, receipt.path)
    data = storage.read(file)
    if hashlib.sha256(data).hexdigest() != receipt.sha256 or len(data) != receipt.bytes:
        return [
            f"{file}: its {len(data)} bytes are not the {receipt.bytes} of its receipt. Delete it "
            f"and {storage.join(url, POINTER)}, and run the same jobs.encode again."
        ]
    problems = []
    if read_receipt(url, identity.digest, receipt.source_sha256) != receipt:
        problems.append(f"{file}: its receipt is not the one in the snapshot. Encode again.")
    rows = ShardRows(url, receipt, identity)
    channels, height, width = identity.latent_shape
    statistics = empty(channels, height * width, identity.options.content == "moments")
    count = 0
    removed = set(shard.removed)
    for number in range(len(receipt.record_batches)):
        batch = rows.read(number)
        count += len(batch)
        live = [k for k, p in zip(batch.keys, batch.positions, strict=True) if p not in removed]
        twice = [key for key in live if key in keys] if len(set(live)) == len(live) else live
        problems += [f"{file}: the key {key!r} is there twice." for key in twice[:1]]
        keys.update(live)
        broken = [n for n, values in batch.tensors.items() if not np.isfinite(values).all()]
        problems += [f"{file}: {name} holds values that are not finite." for name in broken]
        first = batch.tensors[identity.options.tensors[0]]
        statistics = statistics.merge(measure(first, batch.tensors.get("logvar")))
    if count + len(receipt.failed) != receipt.samples:
        problems.append(
            f"{file}: {receipt.samples} samples in, {count} rows and {len(receipt.failed)} failed."
        )
    if statistics != receipt.statistics:
        problems.append(f"{file}: its statistics are not those of its receipt.")
    return problems
