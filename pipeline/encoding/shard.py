"""Encodes one source shard: data first, receipt last, nothing twice."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pipeline import storage
from pipeline.data.batch import Batch
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import ShardRecord
from pipeline.data.shard_reader import read_shard
from pipeline.encoding.batch import encode_batch
from pipeline.encoding.determinism import exact_numerics
from pipeline.errors import DatasetError
from pipeline.latents.identity import Identity
from pipeline.latents.latent_file import LatentFileWriter, file_digest
from pipeline.latents.receipt import (
    FailedSample,
    Receipt,
    claim,
    latent_path,
    read_receipt,
    shard_name,
)
from pipeline.latents.statistics import ChannelStatistics, empty, measure
from pipeline.vae.vae import VAE

# The source's bytes are not those of its manifest: that is no property of the sample, so it must
# not be part of a receipt. The shard fails as a whole, is tried again, and listed if it stays so.
CHANGED_SOURCE = frozenset({"checksum"})


@dataclass
class _Progress:
    """What has been written of a shard so far."""

    statistics: ChannelStatistics
    failed: list[FailedSample]
    redone: int = 0


def encode_shard(
    vae: VAE,
    dataset: Dataset,
    shard: ShardRecord,
    identity: Identity,
    store: str,
    threads: int | None = None,
) -> Receipt:
    """Encodes every sample of a shard, the removed ones too, unless its receipt is there already.

    Raises `DatasetError` when the source is not what the manifest says, and what `storage` raises.
    Killed at any moment, it leaves at most a latent file that no receipt names.
    """
    present = read_receipt(store, identity.digest, shard.sha256)
    if present is not None:
        return present
    with storage.temporary_folder("vae-encode-") as folder, exact_numerics():
        path = folder / "latents.arrow"
        batches = read_shard(
            dataset,
            shard,
            vae.preprocess,
            identity.options.batch_size,
            columns=identity.options.columns,
            threads=threads,
        )
        with LatentFileWriter(path, identity) as writer:
            progress = _encode_batches(vae, batches, shard, identity, writer)
        digest = file_digest(path)
        name = shard_name(shard.path)
        receipt = Receipt(
            identity=identity.digest,
            shard=name,
            source_sha256=shard.sha256,
            samples=shard.samples,
            path=latent_path(identity.digest, name, digest),
            bytes=path.stat().st_size,
            sha256=digest,
            record_batches=tuple(writer.places),
            failed=tuple(progress.failed),
            redone_batches=progress.redone,
            statistics=progress.statistics,
        )
        storage.publish(storage.join(store, receipt.path), path)
    return claim(store, receipt)


def _encode_batches(
    vae: VAE,
    batches: Iterable[Batch],
    shard: ShardRecord,
    identity: Identity,
    writer: LatentFileWriter,
) -> _Progress:
    options = identity.options
    channels, height, width = identity.latent_shape
    progress = _Progress(empty(channels, height * width, options.content == "moments"), [])
    for batch in batches:
        first = batch.index * options.batch_size
        count = min(options.batch_size, shard.samples - first)
        _check_source(batch, shard)
        valid = batch.valid.numpy()
        encoded = encode_batch(vae, batch.images, batch.keys, valid, options)
        progress.redone += encoded.redone
        reasons = {row: batch.errors[batch.keys[row]] for row in range(count) if not valid[row]}
        reasons |= encoded.refused
        progress.failed += [
            FailedSample(first + row, batch.keys[row], reasons[row]) for row in sorted(reasons)
        ]
        rows = np.array([row for row in range(count) if row not in reasons], dtype=np.int64)
        tensors = {name: value[rows] for name, value in encoded.tensors.items()}
        writer.write(
            [batch.keys[row] for row in rows],
            (first + rows).tolist(),
            tensors,
            {name: [batch.columns[name][row] for row in rows] for name in options.columns},
        )
        if len(rows):
            primary, log_variance = options.tensors[0], tensors.get("logvar")
            progress.statistics = progress.statistics.merge(measure(tensors[primary], log_variance))
    return progress


def _check_source(batch: Batch, shard: ShardRecord) -> None:
    changed = [key for key, reason in batch.errors.items() if reason in CHANGED_SOURCE]
    if changed:
        raise DatasetError(
            f"shard {shard.path}: the bytes of {len(changed)} sample(s), such as {changed[0]!r}, "
            "are not those that were packed. Something overwrote or damaged the shard: restore it, "
            "or remove the samples with `python -m jobs.pack --append --remove`, and encode again."
        )
