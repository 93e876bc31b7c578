"""Where images come from: folders, prefixes, tar and zip archives, tables, globs; all is counted.

Nothing is extracted under a name from an archive: names only become keys, in which every dot
is escaped, so that `../x` or `/x` can't lead anywhere.
"""

import fnmatch
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import PurePosixPath

from pipeline import storage
from pipeline.data.image_kinds import (
    HEAD_BYTES,
    OTHER_BYTES,
    PACKED_TABLE,
    UNREADABLE,
    is_apple_double,
    judge,
    needs_head,
)
from pipeline.errors import (
    DatasetError,
    ObjectChangedError,
    ObjectNotFoundError,
    UnreadableError,
)
from pipeline.masking import shell_word
from pipeline.nearest import did_you_mean
from pipeline.sources.archives import (
    is_archive,
    is_unnamed_archive,
    members_inside,
    members_of,
    without_archive_suffix,
)
from pipeline.sources.input_lists import listed_inputs
from pipeline.sources.members import GUESSED, ArchiveMember
from pipeline.sources.source_file import SourceFile
from pipeline.sources.table_rows import is_list, is_table
from pipeline.sources.tables import columns_of_bytes, holds_images, image_rows

_GLOB_SIGNS = "*?["
_PEEKED = 512
"""Inputs whose first bytes are looked at together: enough for the threads to be busy."""
_PEEK_THREADS = 16
"""First bytes of files whose names say nothing: each a small read, which waits for the network."""


@dataclass
class Listing:
    """What is counted while the sources are listed; `others` are no images by name or bytes."""

    image_column: str | None = None
    """The one that holds the images of tables, where the user names it."""
    below: tuple[str, ...] = ()
    """What the rows of lists may name, besides what lies below a list's own folder."""
    alone: bool = True
    """Whether there is one source: an archive that can't be read is then an error, not a reject."""
    seen: int = 0
    others: Counter[str] = field(default_factory=Counter)
    """By suffix, and `folders`, `devices`, `dangling links`; none is among `seen`."""


@dataclass(frozen=True)
class _Found:
    """A file or member before it is judged."""

    path: str
    url: str
    member: ArchiveMember


def list_sources(urls: Iterable[str], listing: Listing | None = None) -> Iterator[SourceFile]:
    """Every input of all sources that could be an image, also those that can't be packed.

    Raises `DatasetError` for a source that does not exist, or holds nothing that looks like one.
    """
    listing = Listing() if listing is None else listing
    for url in urls:
        empty, others = True, listing.others.total()
        found = _list_source(storage.absolute(url), listing)
        if not listing.alone:
            found = _to_its_end(found, url.rpartition("/")[2], storage.absolute(url))
        for file in found:
            empty = False
            listing.seen += 1
            yield file
        if empty:
            raise DatasetError(_emptiness(url, listing, listing.others.total() - others))


def _to_its_end(files: Iterator[SourceFile], path: str, url: str) -> Iterator[SourceFile]:
    """What an archive or table holds; where it can't be read any further, itself as a reject."""
    try:
        yield from files
    except (UnreadableError, ObjectChangedError) as error:
        info = storage.stat(url)
        file = SourceFile(path, url, info.size, info.etag or "")
        yield _refused(file, "rejected", UNREADABLE, f"can't be read to its end: {error}")


def _emptiness(url: str, listing: Listing, others: int) -> str:
    glob = any(sign in url for sign in _GLOB_SIGNS)
    column = listing.image_column
    return (
        f"{storage.shown(url)}: holds no images"
        + (f" among {others} other files" if others else "")
        + (", read as a glob: nothing is called exactly so" if glob else "")
        + (f"; no table has the column {column!r} (`--image-column`)" if column else "")
        + _LIKELY.get(url[-4:].lower(), "")
        + ". JPEG, PNG, WebP, GIF, TIFF, AVIF, BMP, JPEG 2000 count, also inside .tar, .tar.gz, "
        ".zip, and an image column of .parquet or .arrow. Give another `--source URL`."
    )


_LIKELY = {
    ".txt": ". A list of paths is a .csv whose first line is `path`",
    ".exe": ". An archive that unpacks itself is mostly a zip: call it .zip",
}


def is_matching(source: str, url: str) -> bool:
    """Whether `source` is a glob that takes in the object at `url`."""
    split = _split_glob(source)
    return split is not None and fnmatch.fnmatchcase(url, _pattern(*split))


def _pattern(root: str, glob: str) -> str:
    literal = "".join(f"[{sign}]" if sign in _GLOB_SIGNS else sign for sign in root)
    return f"{literal}/{glob}"


def _split_glob(url: str) -> tuple[str, str] | None:
    """A glob as the folder to list and the pattern below it; None for what exists by that name."""
    if not any(sign in url for sign in _GLOB_SIGNS) or _exists(url):
        return None
    parts = url.split("/")
    count = next(n for n, part in enumerate(parts) if any(sign in part for sign in _GLOB_SIGNS))
    while count < len(parts) - 1 and _exists("/".join(parts[: count + 1])):
        count += 1
    return "/".join(parts[:count]), "/".join(parts[count:])


def _exists(url: str) -> bool:
    if (path := storage.local_path(url)) is not None:
        return path.exists()
    if storage.exists(url):
        return True
    try:
        return next(storage.list_objects(url), None) is not None
    except ObjectNotFoundError:
        return False


def _list_source(url: str, listing: Listing) -> Iterator[SourceFile]:
    split = _split_glob(url)
    if split is not None:
        root, pattern = split[0], _pattern(*split)
        items = (item for item in _list(root, listing) if fnmatch.fnmatchcase(item.url, pattern))
        yield from _files(root, items, listing)
    elif is_list(url) and storage.exists(url) and not holds_images(url, listing.image_column):
        yield from listed_inputs(url, listing.below, listing.others)
    elif is_table(url) and storage.exists(url):
        yield from _rows(storage.stat(url), url.rpartition("/")[2], listing)
    elif storage.exists(url) and (is_archive(url) or is_unnamed_archive(url)):
        info = storage.stat(url)
        yield from _members(info.url, info.etag or "", "", listing)
    elif storage.exists(url):  # one file, which may be an image
        yield from _files(url.rpartition("/")[0], [storage.stat(url)], listing)
    else:
        yield from _files(url, _list(url, listing), listing)


def _list(root: str, listing: Listing) -> Iterator[storage.ObjectInfo]:
    try:
        yield from storage.list_objects(root, dangling=True)
    except ObjectNotFoundError as error:
        above = ("/".join(root.split("/")[:count]) for count in range(1, root.count("/") + 1))
        archive = next((url for url in above if is_archive(url) and _exists(url)), None)
        if archive is not None:
            raise DatasetError(
                f"--source {storage.shown(root)}: lies in an archive, which is packed whole. "
                f"Name {storage.shown(archive)}, or unpack it."
            ) from None
        likely = storage.near(root)
        raise DatasetError(
            f"--source {error}{did_you_mean(likely and f'--source {shell_word(likely)}')}"
        ) from None


def _files(
    root: str, items: Iterable[storage.ObjectInfo], listing: Listing
) -> Iterator[SourceFile]:
    items = iter(items)
    with ThreadPoolExecutor(_PEEK_THREADS, thread_name_prefix="peek") as pool:
        while batch := list(islice(items, _PEEKED)):
            unclear = [item for item in batch if _is_unclear(item)]
            heads = defaultdict(bytes, zip(unclear, pool.map(_head_of, unclear), strict=True))
            for item in batch:
                path = item.url.removeprefix(root).lstrip("/")
                if item.size >= 0 and _is_plain(path):
                    yield SourceFile(path, item.url, item.size, item.etag or "")
                elif item.etag is None and item.size < 0:
                    yield from _dangling(path, item.url, listing)
                elif item.size < 0:
                    listing.others["devices"] += 1
                elif is_archive(path) and not is_hidden(path):
                    prefix = without_archive_suffix(path)
                    inside = _members(item.url, item.etag or "", prefix, listing)
                    yield from _to_its_end(inside, path, item.url)
                elif is_table(path) and not is_hidden(path):
                    yield from _to_its_end(_rows(item, path, listing), path, item.url)
                else:
                    file = SourceFile(path, item.url, item.size, item.etag or "")
                    yield from _judged(file, partial(heads.__getitem__, item), listing)


def _rows(item: storage.ObjectInfo, path: str, listing: Listing) -> Iterator[SourceFile]:
    prefix = str(PurePosixPath(path).with_suffix(""))
    rows = image_rows(item.url, item, prefix, listing.image_column)
    if rows is None:
        columns = [] if listing.image_column else columns_of_bytes(item.url)
        if columns:
            file = SourceFile(path, item.url, item.size, item.etag or "")
            held = f"no first value of its columns of bytes ({', '.join(columns)}) is an image"
            yield _refused(file, "ignored", OTHER_BYTES, held)
        else:
            listing.others[PurePosixPath(path).suffix.lower()] += 1
        return
    for row in rows.files:
        # The law counts images; what a table holds besides is told once for each row, too.
        listing.others.update(rows.changed)
        yield row


def _is_plain(path: str) -> bool:
    """Surely an image to be packed: most of 10^7, in a quarter of the time."""
    return path.isascii() and not (needs_head(path) or path.startswith(".") or "/." in path)


def _is_unclear(item: storage.ObjectInfo) -> bool:
    name = item.url.rpartition("/")[2]
    if item.size <= 0 or not (needs_head(name) or name.startswith("._")):
        return False
    return not (is_archive(name) or is_table(name))


def _head_of(item: storage.ObjectInfo) -> bytes:
    try:
        return storage.read(item.url, 0, HEAD_BYTES)
    except ObjectNotFoundError:  # removed since it was listed
        return b""


def is_hidden(path: str) -> bool:
    """Whether a part of a path below a source begins with a dot."""
    return any(part.startswith(".") for part in path.split("/") if part not in (".", ".."))


def _judged(file: SourceFile, head: Callable[[], bytes], listing: Listing) -> Iterator[SourceFile]:
    """The input, if it could be an image; else it is counted."""
    name = file.path.rstrip("/").rpartition("/")[2]
    if is_apple_double(name, head):
        listing.others["._"] += 1
        return
    verdict, kind = judge(name, head)
    if is_archive(file.path):  # a hidden one: it is not looked into
        verdict = "ignored"
    if verdict == "beside":
        listing.others[kind] += 1
        return
    try:
        file.path.encode()
    except UnicodeEncodeError:
        yield _refused(file, "rejected", "name", "its name is not UTF-8: no key can be made of it")
        return
    if is_hidden(file.path):
        yield _refused(file, "ignored", "hidden", "its name, or its folder's, begins with a dot")
    elif verdict == "ignored":
        yield _refused(file, "ignored", kind, "not a format that can be read here")
    else:
        yield file


def _refused(file: SourceFile, status: str, reason: str, message: str) -> SourceFile:
    """The input as one that is never opened; its names in letters that any file can hold."""
    path, url = (
        text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        for text in (file.path, file.url)
    )
    return SourceFile(
        path=path,
        url=url,
        size=file.size,
        etag=file.etag,
        offset=file.offset,
        member=file.member,
        inner=file.inner,
        status="rejected" if status == "rejected" else "ignored",
        reason=reason,
        message=message,
    )


def _dangling(path: str, url: str, listing: Listing) -> Iterator[SourceFile]:
    if not needs_head(path):
        file = SourceFile(path, url, 0, "")
        yield _refused(file, "ignored", "dangling", "a link that leads to nothing, or in a ring")
    else:
        listing.others["dangling links"] += 1


def _members(url: str, etag: str, prefix: str, listing: Listing) -> Iterator[SourceFile]:
    for member in members_of(url, etag):
        path = _path_in(prefix, member.name)
        if member.kind == "file" and not member.linked and _is_plain(path):
            yield _file_of(path, url, member)
        elif member.kind == "file" and is_archive(path) and not is_hidden(path):
            yield from _inside(url, etag, path, member, listing)
        else:
            yield from _member(_Found(path, url, member), listing)


def _inside(
    url: str, etag: str, path: str, archive: ArchiveMember, listing: Listing
) -> Iterator[SourceFile]:
    """What lies in an archive in an archive; an archive in that one is not looked into."""
    prefix = without_archive_suffix(path)
    try:
        for member in members_inside(url, etag, archive):
            inside = _path_in(prefix, member.name)
            if member.kind == "file" and is_archive(inside):
                file = _file_of(inside, url, member)
                yield _refused(
                    file, "ignored", "nested", "over two archives deep: unpack the outer ones"
                )
            else:
                yield from _member(_Found(inside, url, member), listing)
    except DatasetError as error:
        file = _file_of(path, url, archive)
        yield _refused(file, "rejected", UNREADABLE, f"an archive that can't be read: {error}")


def _path_in(prefix: str, name: str) -> str:
    if name[:1].isalnum() and not ("//" in name or "/." in name or name.endswith("/")):
        return f"{prefix}/{name}" if prefix else name  # as below, in a tenth of the time
    return (PurePosixPath(prefix) / PurePosixPath(name.lstrip("/"))).as_posix()


def _member(found: _Found, listing: Listing) -> Iterator[SourceFile]:
    member = found.member
    if member.guessed:
        listing.others[GUESSED] += 1
    if member.kind == "dangling":
        yield from _dangling(found.path, found.url, listing)
    elif member.kind != "file":
        listing.others["folders" if member.kind == "folder" else "devices"] += 1
    elif is_table(found.path) and not is_hidden(found.path):
        file = _file_of(found.path, found.url, member)
        yield _refused(file, "ignored", PACKED_TABLE, "its images, if it has any, are not read")
    else:
        yield from _judged(_file_of(found.path, found.url, member), member.peek, listing)


def _file_of(path: str, url: str, member: ArchiveMember) -> SourceFile:
    return SourceFile(
        path=path,
        url=url,
        size=member.size,
        etag=member.etag,
        offset=member.offset,
        member=member.member,
        inner=member.inner,
    )
