"""One unit of packing: some files of the plan become one shard of each split, then a receipt.

Units share nothing, so that any executor may run them anywhere; data first, the receipt last.
"""

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline import storage
from pipeline.data.manifest import ShardRecord
from pipeline.errors import DatasetError, ObjectNotFoundError, SampleError, StorageError
from pipeline.packing.annotations import Annotation
from pipeline.packing.inspect_image import ImagePolicy, PackedImage, inspect_image
from pipeline.packing.shard_writer import Sample, ShardWriter
from pipeline.packing.sources import SourceFile
from pipeline.progress import Progress

Status = Literal["packed", "same", "rejected"]


@dataclass(frozen=True)
class UnitJob:
    """All that a worker needs to know, on any machine that reaches sources and output."""

    output: str
    generation: int
    plan: str
    """The plan's digest."""
    number: int
    files: tuple[SourceFile, ...]
    known: tuple[str, ...]
    """The content's SHA-256 as packed before, or "": the same again is not packed again."""
    annotations: tuple[Annotation | None, ...]
    classes: Mapping[str, int]
    policy: ImagePolicy
    holdout: float
    """Share of the content hashes that goes to the split `holdout`; 0: one dataset, no splits."""
    threads: int


@dataclass(frozen=True)
class UnitRow:
    """What became of one file."""

    status: Status
    sha256: str = ""
    split: str = ""
    position: int = -1
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class UnitReceipt:
    """A finished unit: the shard of each split that got samples, and a row for each file."""

    shards: Mapping[str, ShardRecord]
    rows: tuple[UnitRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` is its inverse."""
        return {
            "shards": {split: asdict(record) for split, record in self.shards.items()},
            "rows": [list(vars(row).values()) for row in self.rows],
        }

    @staticmethod
    def from_json(data: Any, url: str) -> "UnitReceipt":
        """From what `to_json` gave; raises `DatasetError` naming `url` for anything else."""
        try:
            shards = {
                split: ShardRecord(**{**record, "removed": tuple(record["removed"])})
                for split, record in data["shards"].items()
            }
            return UnitReceipt(shards, tuple(UnitRow(*row) for row in data["rows"]))
        except (AttributeError, KeyError, TypeError) as error:
            raise DatasetError(
                f"{url}: is no whole receipt of a shard ({error}). Delete it, and run the same "
                "command again."
            ) from None


def receipt_url(job: UnitJob) -> str:
    """Where a unit's receipt lies until its generation is committed."""
    name = f"{job.number:06d}-{job.plan}.json"
    return storage.join(job.output, "plans", f"{job.generation:06d}", name)


def pack_unit(job: UnitJob, progress: Progress | None = None) -> UnitReceipt:
    """Reads each file once, checks it, writes the shards and the receipt."""
    try:
        return _pack_unit(job, progress)
    except OSError as error:
        raise StorageError(
            f"{storage.shown(job.output)}: writing a shard failed: {error.strerror or error}. See "
            "to it, and run the same command again: finished shards are kept."
        ) from None


def _pack_unit(job: UnitJob, progress: Progress | None) -> UnitReceipt:
    rows: list[UnitRow] = []
    with ExitStack() as cleanup:
        writers: dict[str, _SplitWriter] = {}
        for number, (row, image) in enumerate(_inspected(job)):
            if image is not None:
                if row.split not in writers:
                    writers[row.split] = cleanup.enter_context(_SplitWriter(job, row.split))
                position = writers[row.split].add(_sample(job, number, image))
                row = UnitRow("packed", row.sha256, row.split, position)
            rows.append(row)
            if progress is not None:
                progress.advance()
        shards = {split: writers[split].finish() for split in sorted(writers)}
    return _agreed(UnitReceipt(shards, tuple(rows)), job)


def _agreed(receipt: UnitReceipt, job: UnitJob) -> UnitReceipt:
    """The receipt that counts: a twin's, where that was there first (a source may have changed)."""
    url = receipt_url(job)
    if storage.create_if_absent(url, storage.canonical_json(receipt.to_json())):
        return receipt
    try:
        return UnitReceipt.from_json(storage.read_json(url), url)
    except ObjectNotFoundError:  # the twin has committed since, and commits compare
        return receipt


def _inspected(job: UnitJob) -> Iterator[tuple[UnitRow, PackedImage | None]]:
    """Rows in order, inspected by threads (decoding and hashing release the GIL)."""
    window = 4 * job.threads
    waiting: deque[Future[tuple[UnitRow, PackedImage | None]]] = deque()
    with ThreadPoolExecutor(job.threads) as pool:
        for file, known in zip(job.files, job.known, strict=True):
            waiting.append(pool.submit(_inspect, job, file, known))
            if len(waiting) >= window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _inspect(job: UnitJob, file: SourceFile, known: str) -> tuple[UnitRow, PackedImage | None]:
    sha256 = ""
    try:
        data = file.read()
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 == known:
            return UnitRow("same", sha256), None
        image = inspect_image(data, job.policy)
    except SampleError as error:
        return UnitRow("rejected", sha256, reason=error.reason, message=str(error)), None
    return UnitRow("packed", sha256, split_of(sha256, job.holdout)), image


def split_of(sha256: str, holdout: float) -> str:
    """ "", or `train` or `holdout` by the content's hash alone, so that copies stay together."""
    if not holdout:
        return ""
    return "holdout" if int(sha256[:13], 16) / 16**13 < holdout else "train"


def _sample(job: UnitJob, number: int, image: PackedImage) -> Sample:
    file, annotation = job.files[number], job.annotations[number]
    label = file.label
    metadata: dict[str, Any] = {}
    if annotation is not None:
        metadata |= annotation.others
        label = annotation.label or label
    metadata["path"] = file.path
    if label is not None:
        metadata["label"] = label
    caption = annotation.caption if annotation else None
    if caption is not None:
        metadata["caption"] = caption
    return Sample(
        file.key, image.extension, image.data, image.width, image.height, metadata,
        job.classes.get(label) if label is not None else None, caption,
    )  # fmt: skip


class _SplitWriter:
    """The shard of one split, in a scratch file until it is finished.

    Its name holds its checksum, so that no other pack can replace its bytes.
    """

    def __init__(self, job: UnitJob, split: str) -> None:
        self._root = storage.join(job.output, split) if split else job.output
        self._name = f"{job.generation:03d}-{job.number:06d}"
        self._scratch = storage.scratch(storage.join(self._root, "shards", f"{self._name}.tar"))
        self._writer = ShardWriter(self._scratch)

    def __enter__(self) -> "_SplitWriter":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._writer.close()
        finally:
            self._scratch.unlink(missing_ok=True)

    def add(self, sample: Sample) -> int:
        self._writer.write(sample)
        return len(self._writer.rows) - 1

    def finish(self) -> ShardRecord:
        with self._writer:
            pass
        index = self._writer.index.to_bytes()
        name = f"{self._name}-{self._writer.sha256[:12]}"
        path, index_path = f"shards/{name}.tar", f"index/{name}.arrow"
        try:
            storage.publish(storage.join(self._root, path), self._scratch)
        except ObjectNotFoundError:
            if self._scratch.exists():
                raise
            raise DatasetError(
                f"{storage.shown(self._root)}: the shard {name} was removed while it was written: "
                "another pack finished this generation meanwhile. Run the same command again."
            ) from None
        storage.publish(storage.join(self._root, index_path), index)
        return ShardRecord(
            path, self._writer.bytes, self._writer.sha256, len(self._writer.rows),
            index_path, hashlib.sha256(index).hexdigest(),
        )  # fmt: skip
