"""The local filesystem: replace atomically, create exactly once, list without leftovers."""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath

from pipeline.errors import (
    AccessDeniedError,
    ObjectChangedError,
    ObjectNotFoundError,
    StorageError,
    StorageShortageError,
    is_shortage,
)
from pipeline.masking import one_line

_TEMPORARY = ".partial"
# Without O_NONBLOCK a FIFO is waited on for ever by whoever opens it.
_READING = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def scratch(path: Path) -> Path:
    """A new name beside `path`, which listings do not show."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{_TEMPORARY}")


def read(path: Path, start: int, end: int | None, tag: str | None = None) -> bytes:
    """Bytes [start, end); fewer where the file ends before."""
    try:
        # Half of what a file object costs, which is a hundredth of a photo's decoding.
        file = os.open(path, _READING)
        try:
            status = os.fstat(file)
            check_regular(status, path)
            last = status.st_size if end is None else min(end, status.st_size)
            parts, at = [], start
            while at < last and (part := os.pread(file, last - at, at)):
                parts.append(part)
                at += len(part)
            # Of the file that was read, and after that: neither a new one nor new bytes pass.
            if tag and version(os.fstat(file)) != tag:
                raise ObjectChangedError(f"{path}: has changed since it was listed.")
            return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            os.close(file)
    except OSError as error:
        raise explain(error, path, "reading") from None


def check_regular(status: os.stat_result, path: Path) -> None:
    """Raises `StorageError` for a FIFO, a socket or a device, of which a read may never end."""
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no regular file")
        raise StorageError(
            f"{path}: is {kind}, no file: it was not read. Put a file there, or name one."
        )


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def publish(path: Path, data: bytes | Path) -> None:
    """Replaces `path` at once; a file made by `scratch` is renamed, any other is copied."""
    try:
        ours = isinstance(data, Path) and data.parent == path.parent and _is_temporary(data.name)
        temporary = data if ours and isinstance(data, Path) else scratch(path)
        with _folder_for(path):
            try:
                if not ours:
                    _write(temporary, data)
                _sync(temporary)
                os.replace(temporary, path)
            except BaseException:  # Ctrl-C too leaves no half-written file.
                temporary.unlink(missing_ok=True)
                raise
        _sync(path.parent)
    except OSError as error:
        raise explain(error, path, "writing") from None


def create_if_absent(path: Path, data: bytes) -> bool:
    """True for exactly one caller: a hard link either makes the name or fails."""
    try:
        temporary = scratch(path)
        with _folder_for(path):
            try:
                _write(temporary, data)
                _sync(temporary)
                os.link(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        _sync(path.parent)
    except FileExistsError:
        return False
    except OSError as error:
        raise explain(error, path, "creating") from None
    return True


def delete(path: Path) -> None:
    """Removes a file; absent is fine."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise explain(error, path, "deleting") from None


def walk(root: Path) -> Iterator[tuple[str, os.stat_result | None]]:
    """Every file below `root` in the order of their paths, as S3 lists keys; links are followed.

    A link that leads to nothing, or to a folder that it lies in, has no status. FIFOs, sockets and
    devices are given like files. Folders may lie as deep as a path is long.
    """
    # Each open folder: what is left of it, and which folders led to it, to which no link may lead.
    first = _identity(root)
    open_folders = [(iter(_sorted_entries(root)), first)]
    above = {first, *map(_identity, root.resolve().parents)}
    while open_folders:
        entries, identity = open_folders[-1]
        entry = next(entries, None)
        if entry is None:
            open_folders.pop()
            above.discard(identity)
            continue
        try:
            if _is_folder(entry):
                folder = Path(entry.path)
                inside = _identity(folder)
                if inside in above:  # A listing would never end; what lies there has a name.
                    yield entry.path, None
                    continue
                above.add(inside)
                open_folders.append((iter(_sorted_entries(folder)), inside))
                continue
            status: os.stat_result | None = entry.stat()
        except OSError as error:  # removed since, or a link that dangles or leads to itself
            if error.errno not in (errno.ENOENT, errno.ELOOP):
                raise
            if not entry.is_symlink():
                continue
            status = None
        yield entry.path, status


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as error:
        raise explain(error, folder, "listing") from None
    return status.st_dev, status.st_ino


def _sorted_entries(folder: Path) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(folder) as entries:
            found = [
                (f"{entry.name}/" if _is_folder(entry) else entry.name, entry)
                for entry in entries
                if not _is_temporary(entry.name)
            ]
    except OSError as error:
        # A link may lead where nobody may look: the system's error names it, not the folder.
        raise explain(error, Path(error.filename or folder), "listing") from None
    return [entry for _, entry in sorted(found, key=lambda pair: os.fsencode(pair[0]))]


def links(root: Path, name: str = "") -> Iterator[Path]:
    """Links to folders on the way from `root`, which may be one, to `name` below it, and in that.

    Listings follow them; who removes what a listing gives must not.
    """
    place = root
    for part in PurePath(name).parts:
        place /= part
        if place.is_symlink():
            yield place
            return
    left = [place]
    while left:
        folder = left.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        left.append(Path(entry.path))
                    elif entry.is_symlink() and _is_folder(entry):
                        yield Path(entry.path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise explain(error, folder, "listing") from None


def delete_empty_folder(path: Path) -> None:
    """Removes a folder that holds nothing; absent is fine."""
    with suppress(OSError):
        path.rmdir()


def unfinished(root: Path, *, below: bool) -> Iterator[tuple[str, os.stat_result]]:
    """Every scratch file in `root`, and in folders `below` it."""
    for folder, folders, names in os.walk(root):
        if not below:
            folders.clear()
        for name in filter(_is_temporary, names):
            path = os.path.join(folder, name)
            try:
                yield path, os.stat(path)
            except FileNotFoundError:  # published since
                continue


def version(status: os.stat_result) -> str:
    """Changes when the file is written again; stands where S3 has its ETag."""
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def explain(error: OSError, path: Path, doing: str) -> StorageError:
    """The error for a user, from the system's."""
    name = one_line(str(path))
    if doing in ("writing", "creating") and isinstance(error, FileExistsError | NotADirectoryError):
        return StorageError(f"{name}: can't be made: a part of its path is a file. Name another.")
    if isinstance(error, NotADirectoryError) and path.is_file():
        return ObjectNotFoundError(f"{name}: is a file, not a folder. Check the path.")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return ObjectNotFoundError(f"{name}: does not exist. Check the path.")
    if isinstance(error, PermissionError):
        return AccessDeniedError(f"{name}: {doing} is not permitted. Check its owner and mode.")
    kind = StorageShortageError if is_shortage(error) else StorageError
    return kind(f"{name}: {doing} failed: {error.strerror or error}.")


@contextmanager
def _folder_for(path: Path) -> Iterator[None]:
    """Makes the folders that `path` lies in; where nothing comes of it, the new ones go again."""
    new = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:  # Ctrl-C too leaves no folder that nothing came into.
        with suppress(OSError):  # never made, or in use meanwhile
            for folder in new:
                folder.rmdir()
        raise


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(_TEMPORARY)


def _write(path: Path, data: bytes | Path) -> None:
    if isinstance(data, Path):
        shutil.copyfile(data, path)
    else:
        path.write_bytes(data)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
