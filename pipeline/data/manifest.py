"""The manifest: which shards, in which order, make a dataset; immutable and written last.

OUT/manifest.json             a small pointer to the current one
OUT/manifests/DIGEST.json     immutable
OUT/shards/NAME.tar           WebDataset shards
OUT/index/NAME.arrow          one index per shard
"""

import logging
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from typing import Annotated, Literal

from pydantic import Field

from pipeline import storage
from pipeline.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    DatasetError,
    ObjectNotFoundError,
    PipelineError,
)
from pipeline.storage import DocumentKind, checksum_of

logger = logging.getLogger(__name__)

POINTER = "manifest.json"

_RESTORE = "Restore it from a copy, or pack the images again."
_AGAIN = (
    "Delete it, and run the same jobs.pack again (`python -m jobs.pack --source IMAGES --output "
    "URL`), which writes it anew."
)
_ANEW = "pack the images anew, into another `--output`"
CURRENT = DocumentKind("vae-pipeline/dataset", 2, DatasetError, _AGAIN, _ANEW)
MANIFEST = DocumentKind("vae-pipeline/manifest", 2, DatasetError, _RESTORE, _ANEW)
OLDEST = DocumentKind(
    "vae-pipeline/oldest-generation",
    1,
    DatasetError,
    "Delete it: then generations that were removed on purpose are called missing.",
)
PACK_STATE = DocumentKind("vae-pipeline/pack", 3, DatasetError, _RESTORE, _ANEW)

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**63, strict=True)]


@dataclass(frozen=True)
class ShardRecord:
    """One shard: `path` is relative to the dataset, or an absolute URL of an adopted tar.

    `samples` counts all samples in the tar; `removed` are the positions that no longer count.
    """

    path: str
    bytes: Count
    sha256: Digest
    samples: Count
    index_path: str
    index_sha256: Digest
    removed: tuple[Count, ...] = ()

    @property
    def live(self) -> int:
        """Samples that count."""
        return self.samples - len(self.removed)

    def check(self, where: str) -> None:
        """Raises `PipelineError` for a name that leads out of the dataset, and for odd counts.

        Only an adopted shard lies elsewhere: where from, `Dataset.open` is told by the user.
        """
        for path in (self.index_path, *([] if "://" in self.path else [self.path])):
            storage.check_name(path, where)
        odd = list(self.removed) != sorted(set(self.removed)) or self.live < 0
        if odd or (self.removed and self.removed[-1] >= self.samples):
            raise DatasetError(f"{where}: {self.path} removes positions that it does not have.")


@dataclass(frozen=True)
class Manifest:
    """An immutable generation of a dataset; `parent` is the digest of the one before."""

    generation: int
    parent: str | None
    shards: tuple[ShardRecord, ...]

    @cached_property
    def digest(self) -> str:
        """The checksum of its document, over every field: what is read, and what it follows on."""
        return checksum_of(self.to_bytes())

    @property
    def samples(self) -> int:
        """Samples that count."""
        return sum(shard.live for shard in self.shards)

    def to_bytes(self) -> bytes:
        """The document; `from_bytes` is its inverse."""
        shards = [{**vars(shard), "removed": list(shard.removed)} for shard in self.shards]
        return MANIFEST.encode(
            {
                "generation": self.generation,
                "parent": self.parent,
                "samples": self.samples,
                "shards": shards,
            }
        )

    @staticmethod
    def from_bytes(data: bytes, url: str) -> "Manifest":
        """Checks checksum, types, paths and digest; raises `DatasetError` naming `url`."""
        found = MANIFEST.typed(_Stored, MANIFEST.parse(data, url), url)
        manifest = Manifest(found.generation, found.parent, found.shards)
        try:
            for shard in manifest.shards:
                shard.check(url)
        except PipelineError as error:
            raise DatasetError(str(error)) from None
        if manifest.samples != found.samples:
            raise MANIFEST.damaged(url, "its total is not that of its shards")
        # As it was compared just now: made anew it costs a second for 10^5 shards.
        manifest.__dict__["digest"] = checksum_of(data)
        return manifest


@dataclass(frozen=True)
class _Stored:
    """A manifest as it lies in its file."""

    generation: Count
    parent: Digest | None
    shards: tuple[ShardRecord, ...]
    samples: Count


@dataclass(frozen=True)
class CurrentGeneration:
    """What `POINTER` holds: the current manifest, and which pack made it so.

    `ledger`: that pack's generation; None where tars were adopted. `split`: "train", "holdout" or
    "" of the packed dataset that lies in this folder.
    """

    digest: Digest
    generation: Count
    samples: Count
    ledger: Count | None = None
    split: Literal["", "train", "holdout"] = ""

    def to_bytes(self) -> bytes:
        """The document."""
        return CURRENT.encode(asdict(self))


def read_pointer(url: str) -> CurrentGeneration | None:
    """What the dataset's pointer says; None when there is no dataset.

    Raises `BucketNotFoundError` where there is no bucket either: a name that was mistyped.
    """
    pointer_url = storage.join(url, POINTER)
    try:
        value = storage.read_document(CURRENT, pointer_url)
    except BucketNotFoundError:
        raise
    except ObjectNotFoundError:
        return None
    return CURRENT.typed(CurrentGeneration, value, pointer_url)


def read_current(url: str) -> Manifest | None:
    """The current manifest of the dataset at `url`; None when there is no dataset.

    A pointer that is older than the ledger beside it is not followed: the ledger is. One is seen so
    while a pack commits, after one was killed there, and where an old copy was put back.
    """
    pointer = read_pointer(url)
    if pointer is None:
        return None
    newest = _newest(url, pointer)
    if newest != pointer.digest:
        logger.warning(
            "%s is older than the ledger beside it, whose newest generation is read. The next "
            "jobs.pack mends it.",
            storage.join(url, POINTER),
        )
    manifest = read_generation(url, newest)
    if newest == pointer.digest and manifest.samples != pointer.samples:
        raise CURRENT.damaged(
            storage.join(url, POINTER),
            f"it counts {pointer.samples} samples, its manifest {manifest.samples}",
        )
    return manifest


def _newest(url: str, pointer: CurrentGeneration) -> str:
    """The digest that the newest state of packing names for this dataset; one request mostly."""
    if pointer.ledger is None:
        return pointer.digest
    root = url.rstrip("/").rpartition("/")[0] if pointer.split else url
    digest, number = pointer.digest, pointer.ledger
    while True:
        number += 1
        ledger_url = storage.join(root, "ledger", f"{number:06d}.json")
        try:
            state = storage.read_document(PACK_STATE, ledger_url)
        except (ObjectNotFoundError, AccessDeniedError):  # S3 denies what may not be listed
            return digest
        found = state.get("manifests")
        named = found.get(pointer.split) if isinstance(found, dict) else None
        if not isinstance(named, str) or state.get("generation") != number:
            raise PACK_STATE.damaged(ledger_url, "it names no manifest of this dataset")
        digest = named


def read_generation(url: str, digest: str) -> Manifest:
    """The manifest called `digest` of the dataset at `url`, current or not.

    Raises `ObjectNotFoundError` if the dataset never had it.
    """
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise DatasetError(f"{storage.shown(url)}: {digest!r} is no digest of a manifest.")
    manifest_url = storage.join(url, "manifests", f"{digest}.json")
    data = storage.read_bounded(manifest_url, MOST_BYTES)
    manifest = Manifest.from_bytes(data, manifest_url)
    if manifest.digest != digest:
        raise MANIFEST.damaged(manifest_url, f"it holds the generation {manifest.digest[:12]}")
    return manifest


def oldest_kept(url: str) -> int:
    """The first generation of the dataset that nobody removed on purpose; 1 where none was."""
    oldest_url = storage.join(url, "oldest.json")
    try:
        found = storage.read_document(OLDEST, oldest_url)
    except ObjectNotFoundError:
        return 1
    return OLDEST.typed(_Oldest, found, oldest_url).generation


def keep_from(url: str, generation: int) -> None:
    """Says that the generations before this one are removed on purpose; it never goes back."""
    if generation > oldest_kept(url):
        data = OLDEST.encode({"generation": generation})
        storage.publish(storage.join(url, "oldest.json"), data)


@dataclass(frozen=True)
class _Oldest:
    """oldest.json."""

    generation: Count


MOST_BYTES = 2**28
"""A manifest of 10^9 samples needs 2^25; Python needs some 20 bytes for one of JSON."""


def commit(url: str, manifest: Manifest) -> None:
    """Makes `manifest` the dataset's current one; until then nobody sees its shards."""
    write_manifest(url, manifest)
    storage.publish(storage.join(url, POINTER), pointer_to(manifest).to_bytes())


def write_manifest(url: str, manifest: Manifest) -> None:
    """Writes `manifest` under its digest, where nobody looks before a pointer names it."""
    storage.publish(storage.join(url, "manifests", f"{manifest.digest}.json"), manifest.to_bytes())


def pointer_to(
    manifest: Manifest, ledger: int | None = None, split: Literal["", "train", "holdout"] = ""
) -> CurrentGeneration:
    """What `POINTER` holds while `manifest` is the current one."""
    return CurrentGeneration(manifest.digest, manifest.generation, manifest.samples, ledger, split)


@dataclass(frozen=True)
class Place:
    """Where a live sample is: shard number and position in the tar."""

    shard: int
    position: int


class Places:
    """Where each live sample is: ids count the samples that were not removed, shard by shard."""

    def __init__(self, shards: Sequence[ShardRecord]) -> None:
        self._shards = shards
        # Of each removed position: how many live samples stand before it in its shard.
        self._live_before: dict[int, list[int]] = {}

    @cached_property  # reading whole shards needs no ids, and there may be 10^5 of them
    def first(self) -> list[int]:
        """The id of each shard's first live sample, and the number of all."""
        return [0, *accumulate(shard.live for shard in self._shards)]

    def find(self, sample: int) -> Place:
        """The place of the live sample `sample`; 0 is the first of the first shard."""
        number = bisect_right(self.first, sample) - 1
        live = sample - self.first[number]
        removed = self._shards[number].removed
        if not removed:
            return Place(number, live)
        before = self._live_before.get(number)
        if before is None:
            before = [position - place for place, position in enumerate(sorted(removed))]
            self._live_before[number] = before
        return Place(number, live + bisect_right(before, live))
