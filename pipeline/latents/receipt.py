"""Receipts: which latent file counts for a source shard, and where everything of a store lies.

A receipt is made by create-if-absent after its file and holds nothing that differs between two
honest runs. Layout below the store's URL:

    store.json                            pointer to the current snapshot, written last
    snapshots/IDENTITY/DATASET.json       immutable; DATASET.partial-HASH.json if shards are missing
    receipts/IDENTITY/SOURCE_SHA256.json
    latents/IDENTITY/SHARD.HASH.arrow
    reports/IDENTITY/DATASET/*            for people
    begun/IDENTITY/DATASET.PROCESS.json   an encoding that has not published yet
    removing/PROCESS.json                 a removal of garbage that has not ended
    attempts/                             time, host, device, rate: the only files that differ
"""

import hashlib
from dataclasses import dataclass, fields
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from pipeline import storage
from pipeline.data.manifest import Count
from pipeline.errors import ObjectNotFoundError, PipelineError, StoreError
from pipeline.json_value import Json
from pipeline.latents.latent_file import RecordBatchPlace
from pipeline.latents.statistics import ChannelStatistics

POINTER = "store.json"
SNAPSHOTS, RECEIPTS, LATENTS = "snapshots", "receipts", "latents"
REPORTS, ATTEMPTS = "reports", "attempts"

RECEIPT = storage.DocumentKind(
    "vae-pipeline/latent-receipt", 2, StoreError, "Delete it, and run the same jobs.encode again."
)


class FailedSample(NamedTuple):
    """A source sample without latents: its position in the shard, its key and a short reason."""

    position: Count
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

    def to_json(self) -> Json:
        """A JSON-able dictionary, the same for the same shard whoever encoded it."""
        return {
            "identity": self.identity,
            "shard": self.shard,
            "source_sha256": self.source_sha256,
            "samples": self.samples,
            "rows": self.rows,
            "path": self.path,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "record_batches": [list(place) for place in self.record_batches],
            "failed": [list(sample) for sample in self.failed],
            "redone_batches": self.redone_batches,
            "statistics": self.statistics.to_json(),
        }

    @classmethod
    def from_json(cls, value: Any, where: str) -> "Receipt":
        """The inverse of `to_json`; raises `StoreError` naming `where` for anything else."""
        found = RECEIPT.typed(_Stored, value, where)
        try:
            storage.check_name(found.path, where)
            receipt = cls(
                **{f.name: getattr(found, f.name) for f in fields(cls) if f.name != "statistics"},
                statistics=ChannelStatistics.from_json(found.statistics),
            )
        except (PipelineError, KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{where}: {error}") from None
        if receipt.rows != found.rows:
            raise RECEIPT.damaged(where, f"{found.rows} rows, of which {receipt.rows} have a place")
        return receipt


@dataclass(frozen=True)
class _Stored:
    """A receipt as it lies in its file."""

    identity: str
    shard: str
    source_sha256: str
    samples: Count
    rows: Count
    path: str
    bytes: Count
    sha256: str
    record_batches: tuple[RecordBatchPlace, ...]
    failed: tuple[FailedSample, ...]
    redone_batches: Count
    statistics: dict[str, Any]


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
        return _read(url, identity, source_sha256)
    except ObjectNotFoundError:
        return None


def _read(url: str, identity: str, source_sha256: str) -> Receipt:
    receipt = Receipt.from_json(storage.read_document(RECEIPT, url), url)
    if (receipt.identity, receipt.source_sha256) != (identity, source_sha256):
        raise RECEIPT.damaged(url, f"it is the receipt of {receipt.source_sha256[:12]}")
    return receipt


def claim(store: str, receipt: Receipt) -> Receipt:
    """Creates the receipt, or returns the one that another writer created before: that counts."""
    url = storage.join(store, receipt_path(receipt.identity, receipt.source_sha256))
    if storage.create_if_absent(url, RECEIPT.encode(receipt.to_json())):
        return receipt
    return _read(url, receipt.identity, receipt.source_sha256)


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
