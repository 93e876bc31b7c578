"""Existing WebDataset tars become a dataset in place: read once, indexed and checked, never copied.

webdataset ends silently at a tar that was cut at a header; here a tar must end with two blocks of
zeros, and its last member must be whole.
"""

import hashlib
import io
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pipeline import storage
from pipeline.config import IndexConfig
from pipeline.data.decode import PIXEL_LIMIT
from pipeline.data.manifest import Manifest, ShardRecord, commit, read_current
from pipeline.errors import DatasetError, SampleError
from pipeline.packing.archives import BLOCK, check_tar_end
from pipeline.packing.commit import REJECTS, PackResult
from pipeline.packing.inspect_image import ImagePolicy, PackedImage, inspect_image
from pipeline.packing.shard_writer import SIDECARS, index_of
from pipeline.packing.sources import IMAGE_SUFFIXES
from pipeline.progress import Progress

_PART_BYTES = 16 * 2**20
_NO_IMAGE = "no-image"


@dataclass(frozen=True)
class AdoptedShard:
    """One tar's record, index and the samples that can't be used."""

    record: ShardRecord
    index: bytes
    keys: list[str]
    rejects: list[dict[str, str]]


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
        for shard in pool.map(lambda url: adopt_tar(url, config.verify), urls):
            adopted.append(shard)
            progress.advance()
    _check_keys(adopted)
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
    if current is not None and current.digest == manifest.digest:
        manifest = current
    else:
        commit(output, manifest)
    # A sample without an image is no row of the index, but it was seen.
    seen = sum(record.samples for record in records)
    seen += sum(reject["reason"] == _NO_IMAGE for reject in rejects)
    return PackResult(
        dataset=output,
        digest=manifest.digest,
        generation=manifest.generation,
        samples=manifest.samples,
        shards=len(records),
        bytes=sum(record.bytes for record in records),
        seen=seen,
        added=seen - len(rejects),
        removed=0,
        rejected=len(rejects),
        reasons=dict(Counter(reject["reason"] for reject in rejects)),
        rejects_url=rejects_url if rejects else None,
        ignored={},
    )


def adopt_tar(url: str, verify: str) -> AdoptedShard:
    """Reads one tar to its end, once."""
    stream = _HashingStream(url)
    rows: list[dict[str, Any]] = []
    removed: list[int] = []
    rejects: list[dict[str, str]] = []
    end = 0
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for sample in _samples(tar, stream.size, url):
                end = sample["ends"]
                image = sample.pop("image", None)
                if image is None:
                    rejects.append(_reject(url, sample["keys"], _NO_IMAGE, "no image member"))
                    continue
                try:
                    found = _inspect(image, verify)
                    sample |= {"widths": found.width, "heights": found.height}
                except SampleError as error:
                    removed.append(len(rows))
                    rejects.append(_reject(url, sample["keys"], error.reason, str(error)))
                rows.append(sample)
                tar.members = []  # type: ignore[attr-defined]  # it keeps every header otherwise
            end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        raise DatasetError(
            f"{storage.shown(url)}: can't be read as a tar after byte {end} ({error}). It was cut "
            "short or is none: copy it again."
        ) from None
    stream.drain()
    check_tar_end(storage.read(url, end, end + 2 * BLOCK), end, url)
    index = index_of(rows).to_bytes()
    name = f"{PurePosixPath(url).stem}-{stream.sha256[:12]}"
    record = ShardRecord(
        url if "://" in url else f"file://{url}", stream.size, stream.sha256, len(rows),
        f"index/{name}.arrow", hashlib.sha256(index).hexdigest(), tuple(removed),
    )  # fmt: skip
    return AdoptedShard(record, index, [row["keys"] for row in rows], rejects)


def _samples(tar: tarfile.TarFile, size: int, url: str) -> Iterator[dict[str, Any]]:
    """Members that follow each other and share a key are one sample, as webdataset groups them."""
    row: dict[str, Any] = {}
    for member in tar:
        if not member.isreg():
            continue
        end = member.offset_data + -(-member.size // BLOCK) * BLOCK
        if end > size:
            raise DatasetError(
                f"{storage.shown(url)}: ends inside {member.name}: it was cut short. Copy again."
            )
        if member.name.startswith("/") or ".." in member.name.split("/"):
            raise DatasetError(
                f"{storage.shown(url)}: the member {member.name!r} leads out of whatever folder "
                "this is unpacked to. Pack its images anew (jobs.pack), which names them safely."
            )
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if not stem or not extension:
            continue
        if row and row["keys"] != key:
            yield row
            row = {}
        row = row or {"keys": key, "starts": member.offset}
        row["ends"] = end
        extension = extension.lower()
        if extension in SIDECARS:
            row |= {f"{extension}_offsets": member.offset_data, f"{extension}_sizes": member.size}
        elif PurePosixPath(f"x.{extension}").suffix in IMAGE_SUFFIXES and "image" not in row:
            file = tar.extractfile(member)
            assert file is not None, "a regular member has bytes"
            image = file.read()
            row |= {"image": image, "extensions": extension, "crc32": zlib.crc32(image)}
            row |= {"offsets": member.offset_data, "sizes": member.size}
    if row:
        yield row


def _inspect(image: bytes, verify: str) -> PackedImage:
    if verify == "none":
        return PackedImage(b"", "", 0, 0)
    kind = "full" if verify == "full" else "header"
    return inspect_image(image, ImagePolicy(kind, "keep", 0, None, 1, PIXEL_LIMIT))  # type: ignore[arg-type]


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
            "not among these tars. Give another --output."
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
    """An object read from its beginning to its end in ranged parts, hashed on the way."""

    def __init__(self, url: str) -> None:
        self._url, self._position, self._part = url, 0, memoryview(b"")
        self.size = storage.stat(url).size
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        if not self._part:
            stop = min(self.size, self._position + _PART_BYTES)
            self._part = memoryview(storage.read(self._url, self._position, stop))
            self._hash.update(self._part)
            self._position += len(self._part)
        taken, self._part = self._part[:size], self._part[size:]
        return bytes(taken)

    def drain(self) -> None:
        """Reads what is left, for the checksum."""
        self._part = memoryview(b"")
        while self.read(_PART_BYTES):
            pass

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()
