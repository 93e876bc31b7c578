"""One unit of packing: some files of the plan become one shard of each split, then a receipt.

Units share nothing, so that any executor may run them anywhere; data first, the receipt last.
"""

import hashlib
import zlib
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Literal

from pydantic import Field

from pipeline import storage
from pipeline.data.manifest import ShardRecord
from pipeline.errors import (
    DatasetError,
    ObjectNotFoundError,
    PipelineError,
    SampleError,
    StorageError,
)
from pipeline.json_value import JsonValue
from pipeline.packing.inspect_image import PackedImage, PackOptions, inspect_image
from pipeline.packing.shard_writer import Sample, ShardWriter
from pipeline.progress import Progress
from pipeline.sources.annotations import LABEL_COLUMNS, OWN_PATH, Annotation, table_name
from pipeline.sources.source_file import SourceFile
from pipeline.sources.tables import TableRow, read_table_row

Side = Annotated[int, Field(ge=0, lt=2**31)]
Status = Literal["packed", "same", "rejected", "ignored"]


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
    """Content's SHA-256/annotation's digest as packed before, or "": the same is not packed again.
    """
    classes: Mapping[str, int]
    options: PackOptions
    threads: int
    image_column: str | None = None
    below: tuple[str, ...] = ()
    """Prefixes of what tables may name."""


@dataclass(frozen=True)
class UnitRow:
    """What became of one file."""

    status: Status
    sha256: str = ""
    split: str = ""
    position: Annotated[int, Field(ge=-1, lt=2**31)] = -1
    reason: str = ""
    message: str = ""
    label: str = ""
    width: Side = 0
    height: Side = 0
    mode: str = ""
    annotation: str = ""


_DEFAULTS = {field.name: field.default for field in fields(UnitRow)}


@dataclass(frozen=True)
class _Inspected:
    """A row, and what becomes a sample, if the input is good."""

    row: UnitRow
    image: PackedImage | None = None
    crc32: int | None = None
    """The image's."""
    annotation: Annotation = Annotation()  # noqa: RUF009  # frozen


@dataclass(frozen=True)
class UnitReceipt:
    """A finished unit: the shard of each split that got samples, and a row for each file."""

    shards: Mapping[str, ShardRecord]
    rows: tuple[UnitRow, ...]

    def to_bytes(self) -> bytes:
        """The document; `read_receipt` reads it. Of a row, what differs from its default."""
        shards = {split: asdict(record) for split, record in self.shards.items()}
        rows = [{k: v for k, v in vars(row).items() if v != _DEFAULTS[k]} for row in self.rows]
        return RECEIPT.encode({"shards": shards, "rows": rows})


@dataclass(frozen=True)
class _Stored:
    """A receipt as it lies in its file."""

    shards: dict[Literal["", "train", "holdout"], ShardRecord]
    rows: tuple[UnitRow, ...]


RECEIPT = storage.DocumentKind(
    "vae-pipeline/unit", 2, DatasetError, "Delete it, and run the same command again."
)


def read_receipt(url: str) -> UnitReceipt:
    """The receipt of a unit that is finished.

    Raises `ObjectNotFoundError` where it is not, and `DatasetError` for a damaged receipt.
    """
    found = RECEIPT.typed(_Stored, storage.read_document(RECEIPT, url), url)
    packed = Counter(row.split for row in found.rows if row.status == "packed")
    if packed != {split: record.samples for split, record in found.shards.items()}:
        raise RECEIPT.damaged(url, "its rows are not those of its shards")
    for record in found.shards.values():
        try:
            record.check(url)
        except PipelineError as error:
            raise DatasetError(str(error)) from None
    return UnitReceipt({str(split): record for split, record in found.shards.items()}, found.rows)


def receipt_url(output: str, generation: int, plan: str, number: int) -> str:
    """Where a unit's receipt lies until its generation is committed; `plan` is its digest."""
    return storage.join(output, "plans", f"{generation:06d}", f"{number:06d}-{plan}.json")


def pack_unit(job: UnitJob, progress: Progress | None = None) -> UnitReceipt:
    """Reads each file once, checks it, writes the shards and the receipt."""
    return write_unit(job, progress).finish()


def write_unit(job: UnitJob, progress: Progress | None = None) -> "WrittenUnit":
    """The first part: all is read, checked, and written to scratch files."""
    unit = WrittenUnit(job)
    try:
        with _told(job):
            for file, found in zip(job.files, _inspected(job), strict=True):
                unit.add(file, found)
                if progress is not None:
                    progress.advance()
    except BaseException:  # Ctrl-C too: its scratch files are as large as shards
        unit.close()
        raise
    return unit


@contextmanager
def _told(job: UnitJob) -> Iterator[None]:
    """The disk's errors as one that a user can act on."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{storage.shown(job.output)}: writing a shard failed: {error.strerror or error}. See "
            "to it, and run the same command again: finished shards are kept."
        ) from None


class WrittenUnit:
    """A unit whose shards wait in scratch files for `finish`, or for `close`, which drops them."""

    def __init__(self, job: UnitJob) -> None:
        self._job = job
        self._rows: list[UnitRow] = []
        self._writers: dict[str, _SplitWriter] = {}
        self._cleanup = ExitStack()

    def add(self, file: SourceFile, found: _Inspected) -> None:
        """The next of the job's files."""
        row = found.row
        if found.image is not None:
            if row.split not in self._writers:
                writer = self._cleanup.enter_context(_SplitWriter(self._job, row.split))
                self._writers[row.split] = writer
            position = self._writers[row.split].add(_sample(self._job, file, found))
            row = replace(row, position=position)
        self._rows.append(row)

    def finish(self) -> UnitReceipt:
        """The second part: shards, then the receipt go to storage; the disk works, not a core."""
        with self._cleanup, _told(self._job):
            shards = {split: self._writers[split].finish() for split in sorted(self._writers)}
            return _agreed(UnitReceipt(shards, tuple(self._rows)), self._job)

    def close(self) -> None:
        """Removes what was written, unless it is finished."""
        self._cleanup.close()


def _agreed(receipt: UnitReceipt, job: UnitJob) -> UnitReceipt:
    """The receipt that counts: a twin's, where that was there first (a source may have changed)."""
    url = receipt_url(job.output, job.generation, job.plan, job.number)
    if storage.create_if_absent(url, receipt.to_bytes()):
        return receipt
    try:
        return read_receipt(url)
    except ObjectNotFoundError:  # the twin has committed since, and commits compare
        return receipt


def _inspected(job: UnitJob) -> Iterator[_Inspected]:
    """Rows in order, inspected by threads (decoding and hashing release the GIL)."""
    window = 4 * job.threads
    waiting: deque[Future[list[_Inspected]]] = deque()
    with ThreadPoolExecutor(job.threads) as pool:
        for some in _tasks(job):
            waiting.append(pool.submit(_inspect_all, job, some))
            if len(waiting) >= window:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _tasks(job: UnitJob) -> Iterator[list[tuple[SourceFile, str]]]:
    some: list[tuple[SourceFile, str]] = []
    size = 0
    for file, known in zip(job.files, job.known, strict=True):
        some.append((file, known))
        size += file.size
        if len(some) == _TASK_FILES or size >= _TASK_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


_TASK_FILES, _TASK_BYTES = 8, 2**20
"""Handed to a thread at once: a future costs 30 us, as much as reading a small photograph."""


def _inspect_all(job: UnitJob, some: list[tuple[SourceFile, str]]) -> list[_Inspected]:
    return [_inspect(job, file, known) for file, known in some]


def _inspect(job: UnitJob, file: SourceFile, known: str) -> _Inspected:
    if file.status:
        return _Inspected(UnitRow(file.status, reason=file.reason, message=file.message))
    sha256 = ""
    try:
        read = _read(job, file)
        sha256 = hashlib.sha256(read.data).hexdigest()
        content, _, said = known.partition("/")
        # A pack without a table leaves what one said; a row that is gone makes `known` "".
        if sha256 == content and read.annotation.digest in ("", said):
            return _Inspected(UnitRow("same", sha256))
        image = inspect_image(read.data, job.options)
    except SampleError as error:
        return _Inspected(UnitRow("rejected", sha256, reason=error.reason, message=str(error)))
    label = _label(file, read.annotation) or ""
    row = UnitRow(
        "packed", sha256, split_of(sha256, job.options.holdout), label=label,
        width=image.width, height=image.height, mode=image.mode,
        annotation=read.annotation.digest,
    )  # fmt: skip
    return _Inspected(row, image, zlib.crc32(image.data), read.annotation)


def _read(job: UnitJob, file: SourceFile) -> TableRow:
    """The bytes, and what a table says of them: the one that holds them, or one beside."""
    beside = Annotation.from_text(file.annotation)
    if not file.row_group:
        return TableRow(file.read(), beside)
    row = read_table_row(file, job.image_column, job.below)
    if not file.annotation:
        return row
    return TableRow(row.data, beside.beside(row.annotation))


def _label(file: SourceFile, annotation: Annotation) -> str | None:
    """What a table says, else the folder; neither where a table says several."""
    if annotation.label:
        return annotation.label
    several = (annotation.others.get(name) for name in LABEL_COLUMNS)
    return None if any(isinstance(value, list | dict) for value in several) else file.label


def split_of(sha256: str, holdout: float) -> str:
    """ "", or `train` or `holdout` by the content's hash alone, so that copies stay together."""
    if not holdout:
        return ""
    return "holdout" if int(sha256[:13], 16) / 16**13 < holdout else "train"


def _sample(job: UnitJob, file: SourceFile, found: _Inspected) -> Sample:
    image, annotation = found.image, found.annotation
    assert image is not None, "only good inputs become samples"
    label, captions = _label(file, annotation), annotation.caption
    own = {OWN_PATH: file.path, "label": label, "caption": captions}
    own = {name: value for name, value in own.items() if value is not None}
    others = {table_name(n) if n in own else n: v for n, v in annotation.others.items()}
    metadata: dict[str, JsonValue] = {**others, **own}
    text = captions[0] if isinstance(captions, list) and captions else captions
    return Sample(
        key=file.key,
        extension=image.extension,
        image=image.data,
        width=image.width,
        height=image.height,
        metadata=metadata,
        class_number=job.classes.get(label) if label is not None else None,
        text=text if isinstance(text, str) else None,
        crc32=found.crc32,
    )


class _SplitWriter:
    """The shard of one split, in a scratch file until it is finished.

    Its name holds its checksum, so that no other pack can replace its bytes.
    """

    def __init__(self, job: UnitJob, split: str) -> None:
        self._root = storage.join(job.output, split) if split else job.output
        self._name = f"{job.generation:03d}-{job.number:06d}"
        self._scratch = storage.scratch(storage.join(self._root, "shards", f"{self._name}.tar"))
        local = storage.local_path(self._root) is not None
        self._writer = ShardWriter(self._scratch, durable=local)

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
        # In any order: nobody looks for either before the unit's receipt names both.
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
            path=path,
            bytes=self._writer.bytes,
            sha256=self._writer.sha256,
            samples=len(self._writer.rows),
            index_path=index_path,
            index_sha256=hashlib.sha256(index).hexdigest(),
        )
