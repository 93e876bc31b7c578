"""Encodes one source shard: data first, receipt last, nothing twice."""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline import storage
from pipeline.data.column_types import holds, kept_kind, merged
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import ShardRecord
from pipeline.encoding.also import Also
from pipeline.encoding.batch import BatchRounding
from pipeline.encoding.cutting import Place, latent_shape_of
from pipeline.encoding.determinism import exact_numerics
from pipeline.encoding.shard_batches import PlacedBatch, shard_batches
from pipeline.errors import DatasetError
from pipeline.latents.identity import EncodeOptions, Identity
from pipeline.latents.latent_file import LatentFileWriter, file_digest
from pipeline.latents.positions import Positions
from pipeline.latents.receipt import (
    FailedSample,
    LatentPart,
    Receipt,
    Rounding,
    claim,
    latent_path,
    read_receipt,
    shard_name,
)
from pipeline.latents.statistics import ChannelStatistics, empty, measure
from pipeline.masking import shell_word
from pipeline.vae.vae import VAE

# The source's bytes are not those of its manifest: that is no property of the sample, so it must
# not be part of a receipt. The shard fails as a whole, is tried again, and listed if it stays so.
CHANGED_SOURCE = frozenset({"checksum"})


def encode_shard(
    vae: VAE,
    dataset: Dataset,
    shard: ShardRecord,
    identity: Identity,
    store: str,
    threads: int | None = None,
    *,
    also: Sequence[Also] = (),
    count: Callable[[int], None] = lambda rows: None,
) -> Receipt:
    """Encodes every sample of a shard, the removed ones too, unless its receipt is there already.

    `also`: the encoders of the identity's options, built. `count` hears how many rows each batch
    had, and may raise.

    Raises `DatasetError` when the source is not what the manifest says, and what `storage` raises.
    Killed at any moment, it leaves at most latent files that no receipt names.
    """
    present = read_receipt(store, identity.digest, shard.sha256)
    if present is not None:
        return present
    options, name = identity.options, shard_name(shard.path)
    _check_columns(dataset, shard, options)
    workers = threads or len(os.sched_getaffinity(0))
    with storage.temporary_folder("vae-encode-") as folder, exact_numerics(), ExitStack() as open_:
        writers: dict[Place, PartWriter] = {}
        redone = 0
        for batch in shard_batches(vae, dataset, shard, options, workers, also=also):
            _check_source(batch, shard)
            redone += batch.encoded.redone
            writer = writers.get(batch.place)
            if writer is None:
                shape = latent_shape_of(vae, batch.place.shape)
                writer = PartWriter(folder / str(len(writers)), identity, batch.place, shape)
                writers[batch.place] = open_.enter_context(writer)
            writer.write(batch)
            count(len(batch.samples))
        open_.close()
        ordered = sorted(writers.values(), key=lambda writer: writer.order)
        parts = tuple(writer.part(shard.samples, name) for writer in ordered)
        for writer, part in zip(ordered, parts, strict=True):
            storage.publish(storage.join(store, part.path), writer.path)
    return claim(
        store,
        Receipt(
            identity.digest, name, shard.sha256, shard.samples, parts=parts, redone_batches=redone
        ),
    )


@dataclass
class PartWriter:
    """The latents of one place of a shard, as they come."""

    path: Path
    identity: Identity
    place: Place
    shape: tuple[int, int, int]
    held: list[int] = field(default_factory=list)
    failed: list[FailedSample] = field(default_factory=list)

    def __post_init__(self) -> None:
        options = self.identity.options
        self.statistics: ChannelStatistics = empty(self.shape[0], options.content == "moments")
        self._rounded: list[tuple[BatchRounding, npt.NDArray[np.int64]]] = []
        self._file = LatentFileWriter(self.path, self.identity, self.shape)

    @property
    def order(self) -> tuple[int, tuple[int, int]]:
        """Parts of a receipt stand in this order."""
        return self.place.size, self.place.shape

    def __enter__(self) -> "PartWriter":
        self._file.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.__exit__(*raised)  # type: ignore[arg-type]

    def write(self, batch: PlacedBatch) -> None:
        """Appends one record batch, of what has latents."""
        options, samples, reasons = self.identity.options, batch.samples, batch.reasons
        self.held += [sample.position for sample in samples]
        self.failed += [
            FailedSample(samples[row].position, samples[row].key, reasons[row])
            for row in sorted(reasons)
        ]
        good = [row for row in range(len(samples)) if row not in reasons]
        rows = np.array(good, dtype=np.int64)
        tensors = {name: value[rows] for name, value in batch.encoded.tensors.items()}
        self._file.write(
            [samples[row].key for row in good],
            [samples[row].position for row in good],
            {name: value[rows] for name, value in batch.encoded.stored.items()},
            {n: [samples[row].columns.get(n) for row in good] for n in options.column_kinds},
        )
        if good:
            primary, log_variance = options.tensors[0], tensors.get("logvar")
            self.statistics = self.statistics.merge(measure(tensors[primary], log_variance))
        # An encoder beside the VAE may have refused every row that eight bits were measured of.
        if good and batch.encoded.rounding is not None:
            self._rounded.append((batch.encoded.rounding, rows))

    @property
    def rounding(self) -> Rounding | None:
        """What eight bits cost, over all that was written."""
        if not self._rounded:
            return None
        largest = max(float(each.largest[rows].max()) for each, rows in self._rounded)
        means = np.concatenate([each.mean[rows] for each, rows in self._rounded])
        decibels = [each.decibels for each, _ in self._rounded]
        return Rounding(
            largest,
            float(means.mean(dtype=np.float64)),
            len(decibels),
            round(min(decibels), 4),
            round(sum(decibels) / len(decibels), 4),
        )

    def part(self, samples: int, shard: str) -> LatentPart:
        """What the receipt says of the closed file."""
        digest = file_digest(self.path)
        return LatentPart(
            size=self.place.size,
            shape=self.shape,
            held=Positions.of(samples, self.held),
            path=latent_path(self.identity.digest, f"{shard}{self._ending}", digest),
            bytes=self.path.stat().st_size,
            sha256=digest,
            record_batches=tuple(self._file.places),
            failed=tuple(self.failed),
            statistics=self.statistics,
            rounding=self.rounding,
        )

    @property
    def _ending(self) -> str:
        if not self.identity.options.views:
            return ""
        height, width = self.place.shape
        return f".{self.place.size}-{height}x{width}"


def _check_columns(dataset: Dataset, shard: ShardRecord, options: EncodeOptions) -> None:
    """Before an image is decoded: that the store's columns can hold what this shard has."""
    wanted = options.column_kinds
    if not options.columns:
        return
    alone = replace(dataset, manifest=replace(dataset.manifest, shards=(shard,)))
    found = alone.read_index(0).columns or {}
    for name in sorted(set(options.columns) & found.keys()):
        if not holds(wanted[name], found[name]):
            raise DatasetError(
                f"shard {shard.path}: its column {name!r} is {found[name]}, the store's "
                f"{wanted[name]}, as in the dataset's first shard. Encode with `--columns "
                f"{shell_word(f'{name}:{kept_kind(merged(wanted[name], found[name]))}')}`."
            )


def _check_source(batch: PlacedBatch, shard: ShardRecord) -> None:
    changed = [sample.key for sample in batch.samples if sample.reason in CHANGED_SOURCE]
    if changed:
        raise DatasetError(
            f"shard {shard.path}: the bytes of {len(changed)} sample(s), such as {changed[0]!r}, "
            "are not those that were packed. Something overwrote or damaged the shard: restore it, "
            "or remove the samples with `python -m jobs.pack --append --remove`, and encode again."
        )
