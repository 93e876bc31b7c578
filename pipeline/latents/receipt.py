"""Receipts: which latent file counts for a source shard, and how files of a store are named.

A receipt is made by create-if-absent after its file and holds nothing that differs between two
honest runs. What lies where in a store: docs/formats.md.
"""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from pipeline import storage
from pipeline.data.manifest import Count
from pipeline.errors import ObjectNotFoundError, PipelineError, StoreError
from pipeline.json_value import Json
from pipeline.latents.latent_file import RecordBatchPlace
from pipeline.latents.positions import Positions, Samples, together
from pipeline.latents.statistics import ChannelStatistics

POINTER = "store.json"
SNAPSHOTS, RECEIPTS, LATENTS = "snapshots", "receipts", "latents"
REPORTS, ATTEMPTS = "reports", "attempts"

ANEW = "encode the dataset anew, into another `--output`"
RECEIPT = storage.DocumentKind(
    "vae-pipeline/latent-receipt",
    3,
    StoreError,
    "Delete it, and run the same jobs.encode again.",
    ANEW,
)


Side = Annotated[int, Field(gt=0, lt=2**31, strict=True)]


class FailedSample(NamedTuple):
    """A source sample without latents: its position in the shard, its key and a short reason."""

    position: Count
    key: str
    reason: str


@dataclass(frozen=True)
class Rounding:
    """What eight bits cost: errors of what is stored first, in its own units, over all values.

    `lowest_decibels`, `mean_decibels`: PSNR of `decoded` images, one of each batch, decoded from
    eight bits, against their float32 latents.
    """

    largest: float
    mean: float
    decoded: Count
    lowest_decibels: float
    mean_decibels: float


@dataclass(frozen=True)
class LatentPart:
    """The latents of one shape in one Arrow file: of the source positions that it `held`.

    Those that `failed` are among them and have no row; record batch i has what is left of ranks
    [i B, (i + 1) B) among them, with the identity's batch size B.
    """

    size: Count
    """Pixels of a side of the view's square; parts of other sizes hold the same samples again."""
    shape: tuple[Side, Side, Side]
    held: Positions
    path: str
    bytes: Count
    sha256: str
    record_batches: tuple[RecordBatchPlace, ...]
    failed: tuple[FailedSample, ...]
    statistics: ChannelStatistics
    rounding: Rounding | None = None

    @property
    def rows(self) -> int:
        """Latents in the file."""
        return sum(place.rows for place in self.record_batches)

    def check(self, where: str) -> None:
        """Raises `StoreError` naming `where` unless its numbers agree with each other."""
        storage.check_name(self.path, where)
        self.held.checked(where)
        lost = [sample.position for sample in self.failed]
        if self.rows + len(lost) != len(self.held):
            raise StoreError(
                f"{where}: {len(self.held)} samples in, but {self.rows} rows out and {len(lost)} "
                "failed."
            )
        if not self.held.holds(lost) or lost != sorted(set(lost)):
            raise StoreError(f"{where}: it lost samples that it never held")
        for place in self.record_batches:
            # A row has an int32 for its position and one for the length of its key.
            if place.offset + place.bytes > self.bytes or 8 * place.rows > place.bytes:
                raise StoreError(f"{where}: a record batch is larger than what holds it")
        counted = self.statistics.rows, self.statistics.count, len(self.statistics.mean)
        if counted != (self.rows, self.rows * self.shape[1] * self.shape[2], self.shape[0]):
            raise StoreError(f"{where}: the statistics are of another shape")

    def to_json(self) -> Json:
        """A JSON-able dictionary."""
        return {
            "size": self.size,
            "shape": list(self.shape),
            "held": asdict(self.held),
            "path": self.path,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "record_batches": [list(place) for place in self.record_batches],
            "failed": [list(sample) for sample in self.failed],
            "statistics": self.statistics.to_json(),
            "rounding": None if self.rounding is None else asdict(self.rounding),
        }


@dataclass(frozen=True)
class Receipt:
    """One encoded shard of `samples`; its parts hold those that were asked for.

    No two parts of one size hold a sample: for each size, rows + failed + filtered = samples.
    """

    identity: str
    shard: str
    source_sha256: str
    samples: Samples
    parts: tuple[LatentPart, ...]
    redone_batches: Count

    @property
    def rows(self) -> int:
        """Latents of all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(part.bytes for part in self.parts)

    @property
    def failed(self) -> tuple[FailedSample, ...]:
        """Samples that were asked for and have no latents."""
        return tuple(sample for part in self.parts for sample in part.failed)

    @property
    def filtered(self) -> int:
        """Samples that no part holds: `--where` left them out."""
        first = [len(part.held) for part in self.parts if part.size == self.parts[0].size]
        return self.samples - sum(first)

    def check(self, where: str) -> "Receipt":
        """Itself; raises `StoreError` naming `where` unless all that it says agrees."""
        held: dict[int, list[Positions]] = {}
        for part in self.parts:
            if part.held.samples != self.samples:
                raise StoreError(f"{where}: a part is of {part.held.samples} samples")
            part.check(where)
            held.setdefault(part.size, []).append(part.held)
        of_size = [together(parts) for parts in held.values()]
        if None in of_size:
            raise StoreError(f"{where}: two of its parts hold the same sample")
        if any(each != of_size[0] for each in of_size):
            raise StoreError(f"{where}: its sizes do not hold the same samples")
        return self

    def to_json(self) -> Json:
        """A JSON-able dictionary, the same for the same shard whoever encoded it."""
        return {
            "identity": self.identity,
            "shard": self.shard,
            "source_sha256": self.source_sha256,
            "samples": self.samples,
            "parts": [part.to_json() for part in self.parts],
            "redone_batches": self.redone_batches,
        }

    @classmethod
    def from_json(cls, value: Any, where: str) -> "Receipt":
        """The inverse of `to_json`; raises `StoreError` naming `where` for anything else."""
        found = RECEIPT.typed(cls, value, where)
        try:
            return found.check(where)
        except PipelineError as error:
            raise RECEIPT.damaged(where, error) from None


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
    receipt.check(url)
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
