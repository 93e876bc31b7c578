"""Where images come from: folders, prefixes, tar and zip archives, globs; how they are named.

Nothing is extracted under a name from an archive: names only become keys, in which every dot
is escaped, so that `../x` or `/x` can't lead anywhere.
"""

import fnmatch
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import PurePosixPath
from urllib.parse import quote

from pipeline import storage
from pipeline.errors import DatasetError, ObjectNotFoundError, SampleError
from pipeline.packing.archives import (
    is_archive,
    members_of,
    read_tar_member,
    read_zip_member,
    without_suffix,
)

MOST_SHOWN = 5
IMAGE_SUFFIXES = frozenset(
    (
        ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo",
        ".png", ".tif", ".tiff", ".webp",
    )
)  # fmt: skip
MAX_FILE_BYTES = 2**30
"""No single image is longer: a zip member that claims more is a bomb."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One input that may be an image: an object, or a member of an archive.

    About 400 bytes in memory: a listing of 10^7 files takes 4 GB, which is what one call can take;
    larger archives are packed prefix by prefix with `--append`.
    """

    path: str
    """Relative to its source: what its key and its label are made from."""
    url: str
    size: int
    etag: str
    offset: int = -1
    """Of a tar's member: where its bytes begin; else -1."""
    member: str = ""
    """Of a zip's member: its name."""

    @property
    def key(self) -> str:
        """The path without its suffix; what webdataset would cut at or misread is escaped."""
        return _key_of(self.path)

    @property
    def label(self) -> str | None:
        """The name of the first folder below the source, if the file lies in one."""
        first, slash, _ = self.path.lstrip("/").partition("/")
        return first if slash else None

    @property
    def place(self) -> str:
        """URL and member, for messages and for finding the file again."""
        return f"{self.url}#{self.path}" if self.offset >= 0 or self.member else self.url

    def read(self) -> bytes:
        """The bytes. Raises `SampleError` if they can't be had whole."""
        if self.size > MAX_FILE_BYTES:
            raise SampleError("bomb", f"{self.size} bytes, over {MAX_FILE_BYTES}")
        if self.member:
            return read_zip_member(self.url, self.member, self.size)
        try:
            if self.offset >= 0:
                data = read_tar_member(self.url, self.etag, self.offset, self.size)
            else:
                data = storage.read(self.url, 0, self.size)
        except ObjectNotFoundError as error:
            raise SampleError("missing", str(error)) from None
        if len(data) != self.size:
            raise SampleError("changed", f"holds {len(data)} bytes, was listed with {self.size}")
        return data


@lru_cache(maxsize=2**16)  # asked for several times per file
def _key_of(path: str) -> str:
    path = path.lstrip("/")
    stem = path[: len(path) - len(PurePosixPath(path).suffix)]
    return quote(stem, safe="/-_").replace(".", "%2E")


def order_of(key: str) -> bytes:
    """Samples are packed in the order of this hash: sorted keys would sort the classes too."""
    return hashlib.blake2b(key.encode(), digest_size=8).digest()


@dataclass
class Listing:
    """What the sources hold: files that may be images, and how many others of which suffix."""

    files: list[SourceFile] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


def list_sources(urls: Iterable[str]) -> Listing:
    """All possible images of all sources, in the order in which they are packed.

    Raises `DatasetError` for a source that does not exist, holds no images, or gives two files the
    same key.
    """
    listing, urls = Listing(), list(urls)
    found: dict[str, SourceFile] = {}
    keys: dict[tuple[str, int, str], str] = {}
    clashes: list[str] = []
    for url in urls:
        empty = True
        for file in _list_source(storage.absolute(url), listing.ignored):
            empty = False
            if len(urls) > 1 and keys.setdefault(_origin(file), file.key) != file.key:
                raise DatasetError(
                    f"{file.place}: lies in two of the sources, and would be packed twice, as "
                    f"{keys[_origin(file)]!r} and as {file.key!r}. Name one of those sources only."
                )
            twin = found.setdefault(file.key, file)
            if twin is not file and twin != file:
                clashes.append(f"{file.place} and {twin.place} (both {file.key!r})")
        if empty:
            raise DatasetError(
                f"{storage.shown(url)}: holds no images. Files ending in "
                f"{' '.join(sorted(IMAGE_SUFFIXES))} count, also inside .tar, .tar.gz, .zip."
            )
    if clashes:
        shown = "; ".join(clashes[:MOST_SHOWN]) + ("; ..." if len(clashes) > MOST_SHOWN else "")
        raise DatasetError(
            f"{len(clashes)} pairs of files would get one key, which is the path without its "
            f"suffix: {shown}. Rename one of each, or pack them into two datasets."
        )
    ordered = sorted(found, key=lambda key: (order_of(key), key))
    listing.files = [found[key] for key in ordered]
    return listing


def _origin(file: SourceFile) -> tuple[str, int, str]:
    return file.url, file.offset, file.member


def is_matching(source: str, url: str) -> bool:
    """Whether `source` is a glob that takes in the object at `url`."""
    return any(sign in source for sign in "*?[") and fnmatch.fnmatchcase(url, source)


def _list_source(url: str, ignored: Counter[str]) -> Iterator[SourceFile]:
    if any(sign in url for sign in "*?["):
        root = url[: min(url.index(sign) for sign in "*?[" if sign in url)].rpartition("/")[0]
        matching = (item for item in _list(root) if is_matching(url, item.url))
        yield from _files(root, matching, ignored)
    elif is_archive(url) and storage.exists(url):
        yield from _members(url, storage.stat(url).etag or "", "", ignored)
    else:
        yield from _files(url, _list(url), ignored)


def _list(root: str) -> Iterator[storage.ObjectInfo]:
    try:
        yield from storage.list_objects(root)
    except ObjectNotFoundError as error:
        raise DatasetError(f"--source {error}") from None


def _files(
    root: str, items: Iterable[storage.ObjectInfo], ignored: Counter[str]
) -> Iterator[SourceFile]:
    for item in items:
        path = item.url.removeprefix(root).lstrip("/")
        suffix = PurePosixPath(path).suffix.lower()
        if any(part.startswith(".") for part in PurePosixPath(path).parts):
            ignored["hidden"] += 1
        elif is_archive(path):
            yield from _members(item.url, item.etag or "", without_suffix(path), ignored)
        elif suffix in IMAGE_SUFFIXES:
            yield SourceFile(_checked(path, item.url), item.url, item.size, item.etag or "")
        else:
            ignored[suffix] += 1


def _members(url: str, etag: str, prefix: str, ignored: Counter[str]) -> Iterator[SourceFile]:
    for member in members_of(url, etag):
        path = PurePosixPath(member.name.lstrip("/"))
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            ignored[path.suffix.lower()] += 1
            continue
        name = _checked((PurePosixPath(prefix) / path).as_posix(), url)
        in_zip = member.name if member.offset < 0 else ""
        yield SourceFile(name, url, member.size, member.etag, member.offset, in_zip)


def _checked(path: str, url: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise DatasetError(
            f"{storage.shown(url)}: the name {path!r} is not UTF-8, and no key can be made of it. "
            "Rename it (convmv does so for whole trees)."
        ) from None
    return path
