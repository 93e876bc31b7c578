"""Receipts: which latent file counts for a source shard, and where everything of a store lies.

A receipt is made by create-if-absent after its file and holds nothing that differs between two
honest runs. Layout below the store's URL:

    store.json                            pointer to the current snapshot, written last
    snapshots/IDENTITY/DATASET.json       immutable; DATASET.partial-HASH.json if shards are missing
    receipts/IDENTITY/SOURCE_SHA256.json
    latents/IDENTITY/SHARD.HASH.arrow
    reports/IDENTITY/DATASET/*            for people
    begun/IDENTITY/DATASET.json           an encoding that has not published yet
    attempts/                             time, host, device, rate: the only files that differ
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pipeline import storage
from pipeline.errors import ObjectNotFoundError, StoreError
from pipeline.latents.latent_file import RecordBatchPlace
from pipeline.latents.statistics import ChannelStatistics

POINTER = "store.json"
SNAPSHOTS, RECEIPTS, LATENTS = "snapshots", "receipts", "latents"
REPORTS, ATTEMPTS = "reports", "attempts"

_FORMAT, _VERSION = "vae-latent-receipt", 1


@dataclass(frozen=True)
class FailedSample:
    """A source sample without latents: its position in the shard, its key and a short reason."""

    position: int
    key: str
    reason: str


@dataclass(frozen=True)
class Receipt:
    """One encoded shard. `samples` counts the whole source shard: rows + failed = samples."""

    identity: str
    shard: str
    source_sha256: str
    samples: int
    path: str
    bytes: int
    sha256: str
    record_batches: tuple[RecordBatchPlace, ...]
    failed: tuple[FailedSample, ...]
    redone_batches: int
    statistics: ChannelStatistics

    def __post_init__(self) -> None:
        if self.rows + len(self.failed) != self.samples:
            raise StoreError(
                f"receipt of shard {self.shard}: {self.samples} samples in, but {self.rows} rows "
                f"out and {len(self.failed)} failed. The receipt is damaged: delete "
                f"{receipt_path(self.identity, self.source_sha256)} and encode again."
            )

    @property
    def rows(self) -> int:
        """Latents in the file."""
        return sum(place.rows for place in self.record_batches)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary, the same for the same shard whoever encoded it."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "identity": self.identity,
            "shard": self.shard,
            "source_sha256": self.source_sha256,
            "samples": self.samples,
            "rows": self.rows,
            "path": self.path,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "record_batches": [[p.offset, p.bytes, p.rows] for p in self.record_batches],
            "failed": [[f.position, f.key, f.reason] for f in self.failed],
            "redone_batches": self.redone_batches,
            "statistics": self.statistics.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> "Receipt":
        """The inverse of `to_json`; raises `StoreError` naming `where` for anything else."""
        value = value if isinstance(value, Mapping) else {}
        if value.get("format") != _FORMAT or value.get("version") != _VERSION:
            raise StoreError(
                f"{where}: no receipt of version {_VERSION} (found format "
                f"{value.get('format')!r}, version {value.get('version')!r}). It was written by "
                "another release: encode into another --output, or use that release."
            )
        try:
            return cls(
                identity=value["identity"],
                shard=value["shard"],
                source_sha256=value["source_sha256"],
                samples=value["samples"],
                path=value["path"],
                bytes=value["bytes"],
                sha256=value["sha256"],
                record_batches=tuple(RecordBatchPlace(*place) for place in value["record_batches"]),
                failed=tuple(FailedSample(*sample) for sample in value["failed"]),
                redone_batches=value["redone_batches"],
                statistics=ChannelStatistics.from_json(value["statistics"]),
            )
        except (KeyError, TypeError) as error:
            raise StoreError(
                f"{where}: the receipt is damaged ({error}). Delete it and encode again."
            ) from None


def receipt_path(identity: str, source_sha256: str) -> str:
    """Where the receipt of a source shard lies, relative to the store."""
    return f"{RECEIPTS}/{identity}/{source_sha256}.json"


def latent_path(identity: str, shard: str, sha256: str) -> str:
    """Where a latent file lies; its content's hash is in the name, so no writer harms another."""
    return f"{LATENTS}/{identity}/{shard}.{sha256[:16]}.arrow"


def shard_name(path: str) -> str:
    """The source shard's file name without its ending."""
    return PurePosixPath(path).name.removesuffix(".tar")


def read_receipt(store: str, identity: str, source_sha256: str) -> Receipt | None:
    """The receipt that counts for this source shard, None when it isn't encoded yet."""
    url = storage.join(store, receipt_path(identity, source_sha256))
    try:
        return Receipt.from_json(storage.read_json(url), url)
    except ObjectNotFoundError:
        return None


def claim(store: str, receipt: Receipt) -> Receipt:
    """Creates the receipt, or returns the one that another writer created before: that counts."""
    url = storage.join(store, receipt_path(receipt.identity, receipt.source_sha256))
    if storage.create_if_absent(url, storage.canonical_json(receipt.to_json())):
        return receipt
    return Receipt.from_json(storage.read_json(url), url)


def receipts_present(store: str, identity: str) -> set[str]:
    """The source checksums that have a receipt, by one listing."""
    url = storage.join(store, RECEIPTS, identity)
    try:
        return {PurePosixPath(info.url).stem for info in storage.list_objects(url)}
    except ObjectNotFoundError:
        return set()


def content_digest(data: bytes) -> str:
    """SHA-256 of bytes, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
