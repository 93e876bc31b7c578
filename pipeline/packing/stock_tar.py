"""A WebDataset tar, read once from its beginning to its end: samples, and what belongs to none."""

import hashlib
import tarfile
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Literal

from pipeline import storage
from pipeline.data.image_kinds import HEAD_BYTES, is_apple_double, judge, needs_head
from pipeline.data.shard_index import columns_of
from pipeline.errors import DatasetError
from pipeline.json_value import Json
from pipeline.masking import shell_word
from pipeline.packing.shard_writer import SIDECARS, Extent
from pipeline.sources.members import BLOCK, tar_headers
from pipeline.sources.source_file import MAX_FILE_BYTES
from pipeline.storage.ranged_file import RangedFile

_PART_BYTES = 16 * 2**20
"""Of one request: a tar is read through once, and memory does not grow with it."""
_TEXT_BYTES = 2**24
"""Of one member beside an image; a larger one is not looked into for its columns."""


@dataclass(frozen=True)
class Unused:
    """A sample, or a member that looks like an image, that does not count; `path` is its key."""

    status: Literal["rejected", "ignored"]
    path: str
    url: str
    reason: str
    message: str


@dataclass
class Beside:
    """What a tar holds that becomes no sample of the dataset."""

    url: str
    unused: list[Unused] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    alone: int = 0
    """Of the unused ones, images that belong to no sample."""

    def refuse(
        self, status: Literal["rejected", "ignored"], key: str, reason: str, message: str
    ) -> None:
        """Notes one, with its reason."""
        self.unused.append(Unused(status, key, self.url, reason, message))

    def note(self, member: tarfile.TarInfo, head: Callable[[], bytes]) -> None:
        """A member without a key: webdataset's readers leave it out, image or not."""
        name = PurePosixPath(member.name).name
        if not member.isdir() and is_apple_double(name, head):
            self.others["._"] += 1
            return
        verdict = "beside" if member.isdir() else judge(name, head)[0]
        if verdict == "beside":
            self.others["folders" if member.isdir() else "without key"] += 1
            return
        self.alone += 1
        hidden = name.startswith(".")
        self.refuse(
            "ignored" if hidden else "rejected", _utf8(member.name), *_KEYLESS[hidden],
        )  # fmt: skip


_KEYLESS = {
    True: ("hidden", "its name begins with a dot"),
    False: ("no-key", "an image whose name has no suffix: jobs.pack reads it, a copy it makes"),
}


class HashingStream(RangedFile):
    """An object read from its beginning to its end in ranged parts, hashed on the way.

    It can be moved forward, and back within the last two parts.
    """

    def __init__(self, url: str) -> None:
        super().__init__(self._between, storage.stat(url).size)
        self._url, self._read_to = url, 0
        self._parts: deque[tuple[int, memoryview]] = deque(maxlen=2)
        self._hash = hashlib.sha256()

    def _between(self, at: int, end: int) -> bytes:
        pieces = []
        while at < end:
            while self._read_to <= at:
                self._read_part()
            start, part = next(p for p in self._parts if p[0] <= at < p[0] + len(p[1]))
            piece = part[at - start : end - start]
            pieces.append(piece)
            at += len(piece)
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


@dataclass(frozen=True)
class ImageMember:
    """One image member of a sample."""

    extension: str
    data: bytes
    offset: int
    named: bool
    """Whether its extension says that it is one, not its bytes alone."""


@dataclass
class StockSample:
    """Members that follow each other and share a key."""

    key: str
    start: int
    end: int = 0
    images: list[ImageMember] = field(default_factory=list)
    fault: tuple[str, str] | None = None
    """Why it can't be used as it lies: reason and message."""
    beside: dict[str, Extent] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    """Its .json, .cls and .txt."""

    def columns(self) -> Json:
        """What lies beside the image, as a loader reads it; `SampleError` where it can't be."""
        of = self.texts.get
        return columns_of(of("json"), of("cls"), of("txt"), self.key)

    def chosen(self, extension: str | None, where: str) -> ImageMember | None:
        """Its image: the one of that extension, else the plain one, else the only one.

        Raises `DatasetError` where that leaves several.
        """
        if extension is not None:
            wanted = extension.lower().lstrip(".")
            return next((image for image in self.images if image.extension == wanted), None)
        named = [image for image in self.images if image.named] or self.images
        left = [image for image in named if "." not in image.extension] or named
        if len({image.extension for image in left}) < len(left):
            raise DatasetError(
                f"{where}: holds {self.key}.{left[0].extension} twice, which readers of WebDataset "
                "refuse. Pack its images anew (jobs.pack): the later one counts."
            )
        if len(left) > 1:
            raise DatasetError(
                f"{where}: the sample {self.key!r} has several images: "
                f"{', '.join(image.extension for image in left)}. Say which one to take: "
                f"`--image-extension {shell_word(left[0].extension)}`. Where its dots belong to "
                "names, pack the images anew (jobs.pack)."
            )
        return left[0] if left else None


def stock_samples(stream: HashingStream, where: str, beside: Beside) -> Iterator[StockSample]:
    """Members as webdataset groups them; what is no file is a sample that can't be used."""
    sample: StockSample | None = None
    for base, member in tar_headers(stream, 0, stream.size, where):  # type: ignore[arg-type]
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        if member.isdir() or not stem or not extension:
            beside.note(member, partial(_head_of, stream, base, member))
            continue
        _check_name(member, where)
        key, extension = f"{folder}/{stem}" if folder else stem, extension.lower()
        if sample is not None and sample.key != _utf8(key):
            yield sample
            sample = None
        if sample is None:
            sample = StockSample(_utf8(key), base + member.offset)
            if _utf8(key) != key:
                sample.fault = ("name", "its name is not UTF-8: rename it, or jobs.pack its images")
        _add_member(sample, stream, base + member.offset_data, member, extension)
        if (not member.isreg() or member.issparse()) and needs_head(f"x.{extension}"):
            beside.others["links" if member.islnk() or member.issym() else "sparse"] += 1
    if sample is not None:
        yield sample


def _head_of(stream: HashingStream, base: int, member: tarfile.TarInfo) -> bytes:
    if not member.isreg() or member.issparse():
        return b""
    stream.seek(base + member.offset_data)
    return stream.read(min(member.size, HEAD_BYTES))


def _add_member(
    sample: StockSample, stream: HashingStream, offset: int, member: tarfile.TarInfo, extension: str
) -> None:
    sample.end = offset + -(-member.size // BLOCK) * BLOCK
    named = not needs_head(f"x.{extension}")
    if not member.isreg() or member.issparse():
        if named:
            kind = "sparse" if member.isreg() else "link"
            sample.fault = (kind, f"{member.name} is a {kind}: jobs.pack reads it, a copy it makes")
        return
    if extension in SIDECARS:
        stream.seek(offset)
        data = stream.read(member.size)
        sample.beside[extension] = Extent(offset, member.size, zlib.crc32(data))
        if member.size <= _TEXT_BYTES:
            sample.texts[extension] = data
        return
    stream.seek(offset)
    head = stream.read(min(member.size, HEAD_BYTES))
    if judge(f"x.{extension}", lambda: head)[0] != "image":
        return
    if member.size > MAX_FILE_BYTES:
        sample.fault = ("bomb", f"{member.name}: {member.size} bytes, over {MAX_FILE_BYTES}")
        return
    stream.seek(offset)
    sample.images.append(ImageMember(extension, stream.read(member.size), offset, named))


def _check_name(member: tarfile.TarInfo, where: str) -> None:
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise DatasetError(
            f"{where}: the member {member.name!r} leads out of whatever folder "
            "this is unpacked to. Pack its images anew (jobs.pack), which names them safely."
        )


def _utf8(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
