"""Existing WebDataset tars become a dataset in place: read once, indexed and checked, never copied.

webdataset ends silently at a tar that was cut at a header; here a tar must end with two blocks of
zeros, and its last member must be whole.
"""

import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from pipeline import storage
from pipeline.config import IndexConfig
from pipeline.data.column_types import note_columns
from pipeline.data.decode import PIXEL_LIMIT
from pipeline.data.image_kinds import IMAGE_SUFFIXES
from pipeline.data.manifest import Manifest, ShardRecord, commit, read_current
from pipeline.errors import DatasetError, SampleError
from pipeline.packing.commit import REJECTS, PackResult
from pipeline.packing.counts import Counts
from pipeline.packing.inspect_image import ImagePolicy, PackedImage, inspect_image
from pipeline.packing.shard_writer import SIDECARS, index_of
from pipeline.progress import Progress
from pipeline.sources.members import BLOCK, tar_headers

_PART_BYTES = 16 * 2**20
"""Of one request: a tar is read through once, and memory does not grow with it."""
_NO_IMAGE = "no-image"
_JSON_BYTES = 2**24
"""Of one sample; a larger one is not looked into for its columns."""


@dataclass(frozen=True)
class AdoptedShard:
    """One tar's record, index and the samples that can't be used."""

    record: ShardRecord
    index: bytes
    keys: list[str]
    seen: int
    rejects: list[dict[str, str]]
    others: Counter[str]
    """Members that belong to no sample, by what they are; images beside the chosen ones."""


def adopt(config: IndexConfig) -> PackResult:
    """Indexes all tars and commits a manifest that names them where they lie.

    Raises `DatasetError` for a tar that was cut short, a key that occurs twice, and an output that
    holds another dataset.
    """
    output = storage.absolute(config.output)
    read_current(output)  # What can't be read is said before hours of indexing.
    urls = list(_tars(config.source))
    if not urls:
        raise DatasetError(f"{', '.join(config.source)}: holds no .tar. Name tars or their folder.")
    threads = len(os.sched_getaffinity(0))
    adopted: list[AdoptedShard] = []
    with ThreadPoolExecutor(threads) as pool, Progress("indexing", len(urls), "tars") as progress:
        extension = config.image_extension
        for shard in pool.map(lambda url: adopt_tar(url, config.verify, extension), urls):
            adopted.append(shard)
            progress.advance()
    if not any(shard.seen for shard in adopted):
        raise DatasetError(f"{', '.join(config.source)}: holds no samples in {len(urls)} tars.")
    _check_keys(adopted)
    return _commit(output, adopted)


def _commit(output: str, adopted: Sequence[AdoptedShard]) -> PackResult:
    current = read_current(output)  # Now: another jobs.index may have committed meanwhile.
    records = tuple(shard.record for shard in adopted)
    _check_current(output, current, records)
    for shard in adopted:
        storage.publish(storage.join(output, shard.record.index_path), shard.index)
    rejects = [reject for shard in adopted for reject in shard.rejects]
    rejects_url = storage.join(output, REJECTS)
    if rejects:
        storage.publish(rejects_url, b"".join(map(storage.canonical_json, rejects)))
    else:
        storage.delete(rejects_url)
    manifest = Manifest(
        current.generation + 1 if current else 1, current.digest if current else None, records
    )
    if current is not None and current.shards == manifest.shards:
        manifest = current
    else:
        commit(output, manifest)
    counts = Counts(
        seen=sum(shard.seen for shard in adopted),
        packed=manifest.samples,
        duplicates=0,
        reasons=dict(sorted(Counter(reject["reason"] for reject in rejects).items())),
        ignored={},
        others=dict(sorted(sum((shard.others for shard in adopted), Counter[str]()).items())),
    )
    return PackResult(
        dataset=output,
        digest=manifest.digest,
        generation=manifest.generation,
        samples=manifest.samples,
        shards=len(records),
        bytes=sum(record.bytes for record in records),
        counts=counts,
        added=manifest.samples,
        rejects_url=rejects_url if rejects else None,
    )


def adopt_tar(url: str, verify: str, extension: str | None = None) -> AdoptedShard:
    """Reads one tar to its end, once; `extension` is the image's where samples have several."""
    stream = _HashingStream(url)
    where = storage.shown(url)
    rows: list[dict[str, Any]] = []
    removed: list[int] = []
    rejects: list[dict[str, str]] = []
    others: Counter[str] = Counter()
    columns: dict[str, str] = {}
    seen = 0
    for sample in _samples(stream, where, others):
        seen += 1
        fault = sample.fault
        image = None if fault else sample.chosen(extension, where)
        if image is None:
            reason, message = fault or (_NO_IMAGE, "no image member")
            rejects.append(_reject(url, sample.key, reason, message))
            continue
        others.update(other.extension for other in sample.images if other is not image)
        row = sample.row | {
            "extensions": image.extension, "crc32": zlib.crc32(image.data),
            "offsets": image.offset, "sizes": len(image.data),
        }  # fmt: skip
        try:
            found = _inspect(image.data, verify)
            row |= {"widths": found.width, "heights": found.height}
        except SampleError as error:
            removed.append(len(rows))
            rejects.append(_reject(url, sample.key, error.reason, str(error)))
        rows.append(row)
        note_columns(columns, sample.columns())
    stream.drain()
    index = index_of(rows, columns).to_bytes()
    name = f"{PurePosixPath(url).stem}-{stream.sha256[:12]}"
    record = ShardRecord(
        url if "://" in url else f"file://{url}", stream.size, stream.sha256, len(rows),
        index_path=f"index/{name}.arrow", index_sha256=hashlib.sha256(index).hexdigest(),
        removed=tuple(removed),
    )  # fmt: skip
    keys = [row["keys"] for row in rows]
    return AdoptedShard(record, index, keys, seen=seen, rejects=rejects, others=others)


@dataclass(frozen=True)
class _Image:
    """One image member of a sample."""

    extension: str
    data: bytes
    offset: int


@dataclass
class _Sample:
    """Members that follow each other and share a key."""

    key: str
    row: dict[str, Any]
    images: list[_Image] = field(default_factory=list)
    fault: tuple[str, str] | None = None
    """Why it can't be used as it lies: reason and message."""
    beside: bytes | None = None
    """Its .json."""

    def columns(self) -> dict[str, Any]:
        """What lies beside the image, as a loader reads it; nothing where it can't be read."""
        try:
            found = json.loads(self.beside) if self.beside else {}
        except (ValueError, RecursionError):
            return {}
        also = {"label": "cls_sizes", "caption": "txt_sizes"}
        return {
            **{name: "" for name, member in also.items() if member in self.row},
            **(found if isinstance(found, dict) else {}),
        }

    def chosen(self, extension: str | None, where: str) -> _Image | None:
        """Its image: the one of that extension, else the plain one, else the only one.

        Raises `DatasetError` where that leaves several.
        """
        if extension is not None:
            wanted = extension.lower().lstrip(".")
            return next((image for image in self.images if image.extension == wanted), None)
        plain = [image for image in self.images if "." not in image.extension]
        left = plain or self.images
        if len(left) > 1:
            raise DatasetError(
                f"{where}: the sample {self.key!r} has several images: "
                f"{', '.join(image.extension for image in left)}. Say which one to take: "
                f"`--image-extension {left[0].extension}`. Where its dots belong to names, pack "
                "the images anew (jobs.pack)."
            )
        return left[0] if left else None


def _samples(stream: "_HashingStream", where: str, others: Counter[str]) -> Iterator[_Sample]:
    """Members as webdataset groups them; what is no file is a sample that can't be used."""
    sample: _Sample | None = None
    for base, member in tar_headers(stream, 0, stream.size, where):  # type: ignore[arg-type]
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        if member.isdir() or not stem or not extension:
            others["folders" if member.isdir() else "without key"] += 1
            continue
        _check_name(member, where)
        key, extension = f"{folder}/{stem}" if folder else stem, extension.lower()
        if sample is not None and sample.key != _utf8(key):
            yield sample
            sample = None
        if sample is None:
            sample = _Sample(_utf8(key), {"keys": key, "starts": base + member.offset})
            if _utf8(key) != key:
                sample.fault = ("name", "its name is not UTF-8: rename it, or jobs.pack its images")
        _add_member(sample, stream, base, member, extension)
    if sample is not None:
        yield sample


def _add_member(
    sample: _Sample, stream: "_HashingStream", base: int, member: tarfile.TarInfo, extension: str
) -> None:
    offset = base + member.offset_data
    sample.row["ends"] = offset + -(-member.size // BLOCK) * BLOCK
    image = PurePosixPath(f"x.{extension}").suffix in IMAGE_SUFFIXES
    if not member.isreg() or member.issparse():
        if image:
            kind = "sparse" if member.isreg() else "link"
            sample.fault = (kind, f"{member.name} is a {kind}: jobs.pack reads it, a copy it makes")
        return
    if extension in SIDECARS:
        stream.seek(offset)
        beside = stream.read(member.size)
        sample.row |= {f"{extension}_offsets": offset, f"{extension}_sizes": member.size}
        sample.row[f"{extension}_crc32"] = zlib.crc32(beside)
        if extension == "json" and member.size <= _JSON_BYTES:
            sample.beside = beside
    elif image:
        stream.seek(offset)
        sample.images.append(_Image(extension, stream.read(member.size), offset))


def _check_name(member: tarfile.TarInfo, where: str) -> None:
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise DatasetError(
            f"{where}: the member {member.name!r} leads out of whatever folder "
            "this is unpacked to. Pack its images anew (jobs.pack), which names them safely."
        )


def _utf8(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _inspect(image: bytes, verify: str) -> PackedImage:
    if verify == "none":
        return PackedImage(b"", "", 0, 0)
    checks: Literal["full", "header"] = "full" if verify == "full" else "header"
    policy = ImagePolicy(checks, "keep", quality=0, short_side=None, min_side=1,
                         pixel_limit=PIXEL_LIMIT)  # fmt: skip
    return inspect_image(image, policy)


def _check_keys(adopted: Iterable[AdoptedShard]) -> None:
    seen: dict[str, str] = {}
    for shard in adopted:
        path = storage.shown(shard.record.path)
        for key in shard.keys:
            if key in seen:
                where = "is there twice" if seen[key] == path else f"is also in {seen[key]}"
                raise DatasetError(
                    f"{path}: the key {key!r} {where}. Keys must be unique in a dataset: adopt "
                    "such tars into two datasets, or pack their images anew (jobs.pack)."
                )
            seen[key] = path


def _check_current(output: str, current: Manifest | None, records: tuple[ShardRecord, ...]) -> None:
    if current is None:
        return
    now = {record.sha256 for record in records}
    lost = [shard.path for shard in current.shards if shard.sha256 not in now]
    if lost:
        raise DatasetError(
            f"{output}: holds another dataset: {len(lost)} of its shards, such as {lost[0]}, are "
            "not among these tars. Give another `--output URL`."
        )


def _reject(url: str, key: str, reason: str, message: str) -> dict[str, str]:
    return {"path": key, "url": url, "reason": reason, "message": message}


def _tars(sources: Iterable[str]) -> Iterator[str]:
    for source in sources:
        for url in expand_braces(storage.absolute(source)):
            if url.endswith(".tar"):
                yield url
            else:
                for item in storage.list_objects(url):
                    if item.url.endswith(".tar"):
                        yield item.url


def expand_braces(url: str) -> list[str]:
    """`x-{000..002}.tar` as three URLs, the way webdataset's users write them."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", url)
    if found is None:
        return [url]
    first, last = found.groups()
    numbers = (f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1))
    return [
        whole
        for n in numbers
        for whole in expand_braces(url[: found.start()] + n + url[found.end() :])
    ]


class _HashingStream(io.RawIOBase):
    """An object read from its beginning to its end in ranged parts, hashed on the way.

    It can be moved forward, and back within the last two parts.
    """

    def __init__(self, url: str) -> None:
        self._url, self._at, self._read_to = url, 0, 0
        self._parts: deque[tuple[int, memoryview]] = deque(maxlen=2)
        self.size = storage.stat(url).size
        self._hash = hashlib.sha256()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a byte; what lies between is read when it is asked for."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """The next byte's position."""
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Bytes from here on, as many as asked for unless the object ends."""
        end = self.size if size < 0 else min(self._at + size, self.size)
        pieces = []
        while self._at < end:
            while self._read_to <= self._at:
                self._read_part()
            start, part = next(p for p in self._parts if p[0] <= self._at < p[0] + len(p[1]))
            piece = part[self._at - start : end - start]
            pieces.append(piece)
            self._at += len(piece)
        return b"".join(pieces)

    def _read_part(self) -> None:
        stop = min(self.size, self._read_to + _PART_BYTES)
        part = memoryview(storage.read(self._url, self._read_to, stop))
        if not part:
            raise DatasetError(f"{storage.shown(self._url)}: became shorter while it was read.")
        self._hash.update(part)
        self._parts.append((self._read_to, part))
        self._read_to += len(part)

    def drain(self) -> None:
        """Reads what is left, for the checksum."""
        while self._read_to < self.size:
            self._read_part()

    @property
    def sha256(self) -> str:
        """Of all that was read."""
        return self._hash.hexdigest()
