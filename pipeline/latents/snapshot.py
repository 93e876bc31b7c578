"""Snapshots: what counts of a store for one state of a dataset, and the pointer to the current one.

A snapshot is a function of dataset and identity alone, so whoever gets there, with whatever
history, writes the same bytes. The pointer is written last: one GET of it tells a finished store.
"""

import functools
import logging
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple, Self

from pipeline import storage
from pipeline.data.manifest import Count, Digest
from pipeline.errors import (
    AccessDeniedError,
    ObjectNotFoundError,
    PipelineError,
    StoreError,
)
from pipeline.json_value import Json
from pipeline.latents.identity import Identity
from pipeline.latents.receipt import (
    ANEW,
    POINTER,
    SNAPSHOTS,
    Receipt,
    content_digest,
)
from pipeline.latents.statistics import ChannelStatistics, empty
from pipeline.latents.stored_shard import StoredPart, StoredShard, removed_of

_AGAIN = "Delete it and run the same jobs.encode again."
SNAPSHOT = storage.DocumentKind("vae-pipeline/latent-snapshot", 3, StoreError, _AGAIN, ANEW)
STORE = storage.DocumentKind("vae-pipeline/latent-store", 3, StoreError, _AGAIN, ANEW)
_LOG = logging.getLogger(__name__)
PUBLISHED = "published"


class LostShard(NamedTuple):
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

    @functools.cached_property
    def parts(self) -> tuple[StoredPart, ...]:
        """Every part of every shard, in the dataset's order."""
        return tuple(part for shard in self.shards for part in shard.parts)

    @functools.cached_property
    def sources(self) -> tuple[str, ...]:
        """The source shard of each part, by its checksum."""
        return tuple(shard.receipt.source_sha256 for shard in self.shards for _ in shard.parts)

    @property
    def complete(self) -> bool:
        """Whether every shard of the dataset is there."""
        return not self.lost

    @property
    def samples(self) -> int:
        """Latents that count."""
        return sum(shard.rows for shard in self.shards)

    @property
    def filtered(self) -> int:
        """Samples of the dataset that `--where` left out."""
        return sum(shard.filtered for shard in self.shards)

    @property
    def failed(self) -> int:
        """Samples of the dataset without latents, those of lost shards too."""
        return sum(len(s.failed) for s in self.shards) + sum(lost.samples for lost in self.lost)

    @functools.cached_property
    def statistics(self) -> ChannelStatistics:
        """Per-channel mean and std over every latent that counts, merged in the dataset's order."""
        start = empty(self.identity.latent_shape[0], self.identity.options.content == "moments")
        for part in self.parts:
            start = start.merge(part.statistics)
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
        value: Json = {
            "identity": self.identity.to_json(),
            "dataset": self.dataset,
            "complete": self.complete,
            "samples": self.samples,
            "failed": self.failed,
            "filtered": self.filtered,
            "statistics": statistics_json(self.statistics),
            "shards": [
                {
                    "receipt": shard.receipt.to_json(),
                    "removed": list(shard.removed),
                    "statistics": [
                        part.statistics.to_json() if part.removed else None for part in shard.parts
                    ],
                }
                for shard in self.shards
            ],
            "lost": [[s.shard, s.source_sha256, s.samples, s.reason] for s in self.lost],
        }
        return SNAPSHOT.encode(value)

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Self:
        """The inverse of `encode`; raises `StoreError` naming `where` for anything else."""
        found = SNAPSHOT.typed(_Stored, SNAPSHOT.parse(data, where), where)
        shards = []
        try:
            for entry in found.shards:
                entry.receipt.check(where)
                shards.append(entry.shard())
                _check_shard(shards[-1], found.identity)
        except (ValueError, PipelineError) as error:
            raise SNAPSHOT.damaged(where, error) from None
        snapshot = cls(found.identity, found.dataset, tuple(shards), found.lost)
        stated = found.samples, found.failed, found.filtered, found.complete
        if stated != (snapshot.samples, snapshot.failed, snapshot.filtered, snapshot.complete):
            raise SNAPSHOT.damaged(where, "its totals are not those of its shards")
        return snapshot


@dataclass(frozen=True)
class _StoredEntry:
    """A shard as it lies in a snapshot; statistics only of the parts that lost some."""

    receipt: Receipt
    removed: tuple[Count, ...]
    statistics: tuple[ChannelStatistics | None, ...]

    def shard(self) -> StoredShard:
        """Raises `ValueError` where the statistics are not one for each part."""
        pairs = zip(self.receipt.parts, self.statistics, strict=True)
        return StoredShard(
            self.receipt,
            self.removed,
            tuple(
                StoredPart(part, removed_of(part, self.removed), own or part.statistics)
                for part, own in pairs
            ),
        )


@dataclass(frozen=True)
class _Stored:
    """A snapshot as it lies in its file."""

    identity: Identity
    dataset: Digest
    complete: bool
    samples: Count
    failed: Count
    filtered: Count
    shards: tuple[_StoredEntry, ...]
    lost: tuple[LostShard, ...]


def _check_shard(shard: StoredShard, identity: Identity) -> None:
    receipt, removed = shard.receipt, shard.removed
    if receipt.identity != identity.digest:
        raise ValueError(f"the shard {receipt.shard} is of the identity {receipt.identity}")
    if list(removed) != sorted(set(removed)) or (removed and removed[-1] >= receipt.samples):
        raise ValueError(f"the shard {receipt.shard} removes positions that it does not have")
    for part in shard.parts:
        grid = part.part.shape[1] * part.part.shape[2]
        found = len(part.statistics.mean), part.statistics.count, part.statistics.rows
        if found != (part.part.shape[0], part.rows * grid, part.rows):
            raise ValueError(f"the statistics of the shard {receipt.shard} are of another shape")
        if part.part.shape[0] != identity.latent_shape[0]:
            raise ValueError(f"the shard {receipt.shard} has latents of another shape")


@dataclass(frozen=True)
class Pointer:
    """`store.json`: the current snapshot and its totals; `data`, `model`: where it came from.

    `number` counts the pointers that the store has had: published/NUMBER.json keeps each.
    """

    number: Count
    identity: str
    dataset: str
    snapshot: str
    sha256: Digest
    samples: Count
    failed: Count
    filtered: Count
    shards: Count
    complete: bool
    data: str
    model: str

    def encode(self) -> bytes:
        """The pointer's bytes."""
        return STORE.encode(asdict(self))


def read_pointer(store: str) -> Pointer | None:
    """The store's newest pointer, None where there is no store yet.

    store.json is a copy: one that is older than the newest in published/ is not followed. One is
    seen so while an encoding publishes, after one was killed there, and where an old copy was put
    back.
    """
    copy = _read_pointer(storage.join(store, POINTER))
    if copy is None:
        return None
    newest = copy
    while (later := _read_pointer(_published(store, newest.number + 1))) is not None:
        newest = later
    if newest is not copy:
        _LOG.warning(
            "%s is older than %s, which is read. The next jobs.encode mends it.",
            storage.join(store, POINTER),
            _published(store, newest.number),
        )
    return newest


def read_published(store: str, number: int) -> Pointer | None:
    """The pointer that was published as `number`, None where there is none."""
    return _read_pointer(_published(store, number))


def last_published(store: str) -> Pointer | None:
    """The newest pointer that the store has had, whatever has become of it; None: none ever."""
    found, number = None, 1
    while (later := _read_pointer(_published(store, number))) is not None:
        found, number = later, number + 1
    return found


def _published(store: str, number: int) -> str:
    return storage.join(store, PUBLISHED, f"{number:06d}.json")


def _read_pointer(url: str) -> Pointer | None:
    try:
        value = storage.read_document(STORE, url)
    except (ObjectNotFoundError, AccessDeniedError) as error:
        if isinstance(error, AccessDeniedError) and url.endswith(POINTER):
            raise
        return None
    pointer = STORE.typed(Pointer, value, url)
    storage.check_name(pointer.snapshot, url)
    if not url.endswith((POINTER, f"{pointer.number:06d}.json")):
        raise STORE.damaged(url, f"it is the pointer number {pointer.number}")
    return pointer


def read_snapshot(store: str, path: str, sha256: str | None = None) -> Snapshot:
    """A snapshot by its path in the store, checked against its checksum where one is known."""
    url = storage.below(store, path)
    data = storage.read(url)
    found = content_digest(data)
    if sha256 not in (None, found):
        raise StoreError(
            f"{url}: has checksum {found[:16]}, the store's pointer says {str(sha256)[:16]}. "
            f"The snapshot was damaged: delete it (`{storage.removal(url)}`) and run the same "
            "jobs.encode again."
        )
    snapshot = Snapshot.from_bytes(data, url)
    if snapshot.path != path:
        raise SNAPSHOT.damaged(url, f"it is the snapshot {snapshot.path}")
    return snapshot


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
                f"deleted. Delete it (`{storage.removal(url)}`) and run jobs.encode again."
            )
    return content_digest(data)


def point_to(
    store: str,
    snapshot: Snapshot,
    sha256: str,
    *,
    data: str,
    model: str,
    since: int | None = None,
) -> Pointer:
    """Makes the snapshot the store's current one, and returns what is. Writes nothing when it is.

    Of several at once each makes a pointer of its own number; whoever writes store.json last has
    seen the newest. `since`: the number of the pointer that was there before the snapshot was made.
    Where somebody published since then the whole of what this is a part of, that stays: it was made
    of more receipts.
    """
    before = _read_pointer(storage.join(store, POINTER))
    pointer = Pointer(
        number=before.number if before else 0,
        identity=snapshot.identity.digest,
        dataset=snapshot.dataset,
        snapshot=snapshot.path,
        sha256=sha256,
        samples=snapshot.samples,
        failed=snapshot.failed,
        filtered=snapshot.filtered,
        shards=len(snapshot.shards) + len(snapshot.lost),
        complete=snapshot.complete,
        data=data,
        model=model,
    )
    newest = read_pointer(store)
    while not _has_whole(newest, pointer, since) and (
        newest is None or replace(newest, number=pointer.number) != pointer
    ):
        pointer = replace(pointer, number=newest.number + 1 if newest else pointer.number + 1)
        if storage.create_if_absent(_published(store, pointer.number), pointer.encode()):
            newest = pointer
            break
        newest = _read_pointer(_published(store, pointer.number))
    copy = before
    while newest is not None and copy != newest:
        storage.publish(storage.join(store, POINTER), newest.encode())
        copy, newest = newest, read_pointer(store)
    return newest or pointer


def _has_whole(newest: Pointer | None, part: Pointer, since: int | None) -> bool:
    return (
        newest is not None
        and since is not None
        and newest.number > since
        and newest.complete
        and not part.complete
        and (newest.identity, newest.dataset) == (part.identity, part.dataset)
    )


def statistics_json(statistics: ChannelStatistics) -> Json:
    """The sums and, for readers, the standard deviations that follow from them."""
    sample_std = statistics.sample_std
    return {
        **statistics.to_json(),
        "std": list(statistics.std),
        "sample_std": None if sample_std is None else list(sample_std),
    }
