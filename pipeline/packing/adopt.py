"""Existing WebDataset tars become a dataset in place: read once, indexed and checked, never copied.

webdataset ends silently at a tar that was cut at a header; here a tar must end with two blocks of
zeros, and its last member must be whole.
"""

import hashlib
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Literal

from pipeline import storage
from pipeline.config import IndexConfig
from pipeline.data.column_types import note_columns
from pipeline.data.decode import PIXEL_LIMIT
from pipeline.data.image_kinds import HEAD_BYTES, UNREADABLE, is_apple_double
from pipeline.data.manifest import Manifest, ShardRecord, commit, read_current
from pipeline.errors import DatasetError, SampleError, UnreadableError
from pipeline.json_value import Json
from pipeline.packing.commit import REJECTS, PackResult
from pipeline.packing.counts import counted, with_cures
from pipeline.packing.inspect_image import ImagePolicy, PackedImage, inspect_image
from pipeline.packing.shard_writer import Extent, IndexRow, index_of
from pipeline.packing.stock_tar import Beside, HashingStream, StockSample, Unused, stock_samples
from pipeline.places import refuse_another_kind
from pipeline.progress import Progress
from pipeline.sources.archives import is_archive
from pipeline.sources.listing import is_hidden

_NO_IMAGE = ("no-image", "no image member")
_SCATTERED = ("scattered", "other members lie between it and the rest of its sample")


@dataclass(frozen=True)
class AdoptedShard:
    """One tar's record, index and what can't be used of it."""

    record: ShardRecord
    index: bytes
    keys: list[str]
    seen: int
    unused: list[Unused]
    others: Counter[str]
    """Members that belong to no sample, by what they are; images beside the chosen ones."""


def adopt(config: IndexConfig) -> PackResult:
    """Indexes all tars and commits a manifest that names them where they lie.

    Raises `DatasetError` for a key that occurs twice, an output that holds another dataset, and
    where the only tar was cut short.
    """
    output = storage.absolute(config.output)
    refuse_another_kind(output, "an image dataset", "--output URL")
    read_current(output)  # What can't be read is said before hours of indexing.
    hidden: list[Unused] = []
    found = list(_archives(config.source, hidden))
    urls = [url for url in found if _is_tar(url)]
    if not urls:
        more = f" among {len(found)} archives, which jobs.pack reads" if found else ""
        raise DatasetError(
            f"{', '.join(config.source)}: holds no .tar{more}. Name tars or their folder."
        )
    threads = len(os.sched_getaffinity(0))
    adopted: list[AdoptedShard] = []
    others = [*hidden, *(_not_looked_into(url) for url in found if not _is_tar(url))]
    with ThreadPoolExecutor(threads) as pool, Progress("indexing", len(urls), "tars") as progress:
        for shard in pool.map(lambda url: _adopted(url, config, alone=len(urls) == 1), urls):
            if isinstance(shard, AdoptedShard):
                adopted.append(shard)
            else:
                others.append(shard)
            progress.advance()
    if not any(shard.seen for shard in adopted):
        raise DatasetError(f"{', '.join(config.source)}: holds no samples in {len(urls)} tars.")
    _check_keys(adopted)
    return _commit(output, adopted, others)


def _adopted(url: str, config: IndexConfig, *, alone: bool) -> AdoptedShard | Unused:
    """One of the tars; what can't be read to its end is left out, unless it is the only one."""
    try:
        return adopt_tar(url, config.verify, config.image_extension)
    except UnreadableError as error:
        if alone:
            raise
        return Unused("rejected", PurePosixPath(url).name, url, UNREADABLE, str(error))


def _commit(output: str, adopted: Sequence[AdoptedShard], others: Sequence[Unused]) -> PackResult:
    current = read_current(output)  # Now: another jobs.index may have committed meanwhile.
    records = tuple(shard.record for shard in adopted)
    _check_current(output, current, records)
    # Before the manifest, which names them: until then nobody looks for an index.
    for shard in adopted:
        storage.publish(storage.join(output, shard.record.index_path), shard.index)
    unused = [*others, *(each for shard in adopted for each in shard.unused)]
    rejects_url = storage.join(output, REJECTS)
    if unused:
        listed = [{k: v for k, v in vars(each).items() if k != "status"} for each in unused]
        storage.publish(rejects_url, b"".join(map(storage.canonical_json, listed)))
    else:
        storage.delete(rejects_url)
    manifest = Manifest(
        current.generation + 1 if current else 1, current.digest if current else None, records
    )
    seen = sum(shard.seen for shard in adopted) + len(others)
    if not manifest.samples:
        shown = with_cures(Counter(each.reason for each in unused))
        raise DatasetError(
            f"{output}: none of the {seen} samples can be used ({shown}); {rejects_url} lists each "
            "with its reason."
        )
    if current is not None and current.shards == manifest.shards:
        manifest = current
    else:
        commit(output, manifest)
    found = Counter(f"{each.status}:{each.reason}" for each in unused)
    found["packed:"] = manifest.samples
    counts = counted(
        found,
        seen=seen,
        others=sum((shard.others for shard in adopted), Counter[str]()),
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
        rejects_url=rejects_url if unused else None,
    )


def adopt_tar(url: str, verify: str, extension: str | None = None) -> AdoptedShard:
    """Reads one tar to its end, once; `extension` is the image's where samples have several."""
    stream = HashingStream(url)
    where = storage.shown(url)
    rows: list[IndexRow] = []
    positions: dict[str, int] = {}
    unused: dict[str, tuple[str, str]] = {}
    """Parts of samples without an image, by key: reason and message."""
    removed: dict[int, tuple[str, str]] = {}
    beside = Beside(url)
    columns: dict[str, str] = {}
    for sample in stock_samples(stream, where, beside):
        image = None if sample.fault else sample.chosen(extension, where)
        if image is None:
            unused[sample.key] = sample.fault or unused.get(sample.key, _NO_IMAGE)
            continue
        beside.others.update(other.extension for other in sample.images if other is not image)
        found = PackedImage(b"", "", 0, 0)
        try:
            found = _inspect(image.data, verify)
            note_columns(columns, _columns(sample, verify))
        except SampleError as error:
            removed[len(rows)] = error.reason, str(error)
        positions[sample.key] = len(rows)
        rows.append(
            IndexRow(
                sample.key, image.extension, sample.start, sample.end,
                Extent(image.offset, len(image.data), zlib.crc32(image.data)),
                width=found.width, height=found.height, beside=sample.beside,
            )
        )  # fmt: skip
    stream.drain()
    for key in unused.keys() & positions.keys():
        fault = unused.pop(key)
        removed.setdefault(positions[key], _SCATTERED if fault == _NO_IMAGE else fault)
    for key, fault in [*((rows[at].key, why) for at, why in removed.items()), *unused.items()]:
        beside.refuse("rejected", key, *fault)
    index = index_of(rows, columns).to_bytes()
    digest = hashlib.sha256(index).hexdigest()
    # Its own digest, too: another extension makes another index, and older generations keep theirs.
    name = f"{PurePosixPath(url).stem}-{stream.sha256[:12]}-{digest[:12]}"
    record = ShardRecord(
        url if "://" in url else f"file://{url}", stream.size, stream.sha256, len(rows),
        index_path=f"index/{name}.arrow", index_sha256=digest,
        removed=tuple(sorted(removed)),
    )  # fmt: skip
    seen = len(rows) + len(unused) + beside.alone
    found_keys = [row.key for row in rows]
    return AdoptedShard(
        record, index, found_keys, seen=seen, unused=beside.unused, others=beside.others
    )


def _columns(sample: StockSample, verify: str) -> Json:
    """What lies beside the image; where samples are not looked at, what can't be read is none."""
    try:
        return sample.columns()
    except SampleError:
        if verify != "none":
            raise
        return {}


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


def _is_tar(url: str) -> bool:
    return url.lower().endswith(".tar")


_HIDDEN = "its name, or its folder's, begins with a dot"


def _not_looked_into(url: str) -> Unused:
    message = "samples are adopted from plain tars alone: unpack it, or give it to jobs.pack"
    return Unused("ignored", PurePosixPath(url).name, url, "no plain tar", message)


def _archives(sources: Iterable[str], hidden: list[Unused]) -> Iterator[str]:
    """What is named, and what lies in folders that are; hidden ones there are left, as by a pack.

    What macOS writes beside a tar is none, whatever its name says.
    """
    for source in sources:
        for url in expand_braces(storage.absolute(source)):
            if is_archive(url):
                yield url
                continue
            for item in storage.list_objects(url):
                name = item.url.rpartition("/")[2]
                head = partial(storage.read, item.url, 0, HEAD_BYTES)
                if not is_archive(item.url) or is_apple_double(name, head):
                    continue
                if is_hidden(item.url.removeprefix(url)):
                    hidden.append(Unused("ignored", name, item.url, "hidden", _HIDDEN))
                else:
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
