"""Snapshots: what counts of a store for one state of a dataset, and the pointer to the current one.

A snapshot is a function of dataset and identity alone, so whoever gets there, with whatever
history, writes the same bytes. The pointer is written last: one GET of it tells a finished store.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pipeline import storage
from pipeline.errors import ObjectNotFoundError, StorageError, StoreError
from pipeline.latents.identity import Identity
from pipeline.latents.receipt import POINTER, SNAPSHOTS, FailedSample, Receipt, content_digest
from pipeline.latents.statistics import ChannelStatistics, empty

_SNAPSHOT_FORMAT, _POINTER_FORMAT, _VERSION = "vae-latent-snapshot", "vae-latent-store", 1


@dataclass(frozen=True)
class StoredShard:
    """A receipt as this dataset sees it: without the removed positions."""

    receipt: Receipt
    removed: tuple[int, ...]
    statistics: ChannelStatistics

    @functools.cached_property
    def failed(self) -> tuple[FailedSample, ...]:
        """Failed samples that the dataset still counts."""
        gone = set(self.removed)
        return tuple(sample for sample in self.receipt.failed if sample.position not in gone)

    @functools.cached_property
    def live_positions(self) -> range | npt.NDArray[np.int64]:
        """The position in the source shard of each sample that the dataset counts, ascending."""
        every = range(self.receipt.samples)
        return np.delete(np.array(every), self.removed) if self.removed else every

    @property
    def live(self) -> int:
        """Samples that the dataset counts in this shard."""
        return self.receipt.samples - len(self.removed)

    @property
    def rows(self) -> int:
        """Latents that count."""
        return self.live - len(self.failed)


@dataclass(frozen=True)
class LostShard:
    """A shard that could not be encoded, or was not to be; its samples count as lost."""

    shard: str
    source_sha256: str
    samples: int
    reason: str


@dataclass(frozen=True)
class Snapshot:
    """Every shard of a dataset's state, in the dataset's order."""

    identity: Identity
    dataset: str
    shards: tuple[StoredShard, ...]
    lost: tuple[LostShard, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every shard of the dataset is there."""
        return not self.lost

    @property
    def samples(self) -> int:
        """Latents that count."""
        return sum(shard.rows for shard in self.shards)

    @property
    def failed(self) -> int:
        """Samples of the dataset without latents, those of lost shards too."""
        return sum(len(s.failed) for s in self.shards) + sum(lost.samples for lost in self.lost)

    @functools.cached_property
    def statistics(self) -> ChannelStatistics:
        """Per-channel mean and std over every latent that counts, merged in the dataset's order."""
        channels, height, width = self.identity.latent_shape
        start = empty(channels, height * width, self.identity.options.content == "moments")
        for shard in self.shards:
            start = start.merge(shard.statistics)
        return start

    @property
    def path(self) -> str:
        """Where the snapshot lies, relative to the store."""
        stem = f"{SNAPSHOTS}/{self.identity.digest}/{self.dataset}"
        if self.complete:
            return f"{stem}.json"
        return f"{stem}.partial-{content_digest(self.encode())[:16]}.json"

    def encode(self) -> bytes:
        """The snapshot's bytes."""
        value = {
            "format": _SNAPSHOT_FORMAT,
            "version": _VERSION,
            "identity": self.identity.to_json(),
            "dataset": self.dataset,
            "complete": self.complete,
            "samples": self.samples,
            "failed": self.failed,
            "statistics": statistics_json(self.statistics),
            "shards": [
                {
                    "receipt": shard.receipt.to_json(),
                    "removed": list(shard.removed),
                    "statistics": shard.statistics.to_json() if shard.removed else None,
                }
                for shard in self.shards
            ],
            "lost": [[s.shard, s.source_sha256, s.samples, s.reason] for s in self.lost],
        }
        return storage.canonical_json(value)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> Self:
        """The inverse of `encode`."""
        _check_format(value, _SNAPSHOT_FORMAT, where)
        shards = []
        for entry in value["shards"]:
            receipt = Receipt.from_json(entry["receipt"], where)
            own = entry["statistics"]
            shards.append(
                StoredShard(
                    receipt=receipt,
                    removed=tuple(entry["removed"]),
                    statistics=ChannelStatistics.from_json(own) if own else receipt.statistics,
                )
            )
        return cls(
            identity=Identity.from_json(value["identity"]),
            dataset=value["dataset"],
            shards=tuple(shards),
            lost=tuple(LostShard(*entry) for entry in value["lost"]),
        )


@dataclass(frozen=True)
class Pointer:
    """`store.json`: the current snapshot and its totals; `data`, `model`: where it came from."""

    identity: str
    dataset: str
    snapshot: str
    sha256: str
    samples: int
    failed: int
    shards: int
    complete: bool
    data: str
    model: str

    def encode(self) -> bytes:
        """The pointer's bytes."""
        return storage.canonical_json(
            {"format": _POINTER_FORMAT, "version": _VERSION, **self.__dict__}
        )

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> Self:
        """The inverse of `encode`."""
        _check_format(value, _POINTER_FORMAT, where)
        try:
            storage.below(where, value["snapshot"])
            return cls(**{k: v for k, v in value.items() if k not in ("format", "version")})
        except (KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{where}: the pointer is damaged ({error}). Delete it and run the same "
                "jobs.encode again."
            ) from None


def read_pointer(store: str) -> Pointer | None:
    """The store's pointer, None where there is no store yet."""
    url = storage.join(store, POINTER)
    try:
        value = storage.read_json(url)
    except ObjectNotFoundError:
        return None
    return Pointer.from_json(value, url)


def read_snapshot(store: str, path: str, sha256: str | None = None) -> Snapshot:
    """A snapshot by its path in the store, checked against its checksum where one is known."""
    url = storage.below(store, path)
    data = storage.read(url)
    found = content_digest(data)
    if sha256 not in (None, found):
        raise StoreError(
            f"{url}: has checksum {found[:16]}, the store's pointer says {str(sha256)[:16]}. "
            "The snapshot was damaged: delete it and run the same jobs.encode again."
        )
    try:
        return Snapshot.from_json(storage.parse_json(data, url), url)
    except (StorageError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{url}: is no snapshot ({error}). Delete it and run the same jobs.encode again."
        ) from None


def publish_snapshot(store: str, snapshot: Snapshot) -> str:
    """Writes the snapshot where it isn't yet, and returns its SHA-256."""
    data = snapshot.encode()
    url = storage.join(store, snapshot.path)
    if not storage.create_if_absent(url, data):
        existing = storage.read(url)
        if existing != data:
            raise StoreError(
                f"{url}: exists with other content. A snapshot is a function of dataset and "
                "options: this one was damaged, or made from receipts that have since been "
                f"deleted. Delete {url} and run jobs.encode again."
            )
    return content_digest(data)


def point_to(store: str, snapshot: Snapshot, sha256: str, *, data: str, model: str) -> Pointer:
    """Makes the snapshot the store's current one. Writes nothing when it already is."""
    pointer = Pointer(
        identity=snapshot.identity.digest,
        dataset=snapshot.dataset,
        snapshot=snapshot.path,
        sha256=sha256,
        samples=snapshot.samples,
        failed=snapshot.failed,
        shards=len(snapshot.shards) + len(snapshot.lost),
        complete=snapshot.complete,
        data=data,
        model=model,
    )
    if read_pointer(store) != pointer:
        storage.publish(storage.join(store, POINTER), pointer.encode())
    return pointer


def statistics_json(statistics: ChannelStatistics) -> dict[str, Any]:
    """The sums and, for readers, the standard deviations that follow from them."""
    sample_std = statistics.sample_std
    return {
        **statistics.to_json(),
        "std": list(statistics.std),
        "sample_std": None if sample_std is None else list(sample_std),
    }


def _check_format(value: Mapping[str, Any], expected: str, where: str) -> None:
    value = value if isinstance(value, Mapping) else {}
    if value.get("format") != expected or value.get("version") != _VERSION:
        raise StoreError(
            f"{where}: expected {expected} of version {_VERSION}, found format "
            f"{value.get('format')!r}, version {value.get('version')!r}. It belongs to something "
            "else or to another release of this project: name another store, or use that release."
        )
