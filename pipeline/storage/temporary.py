"""Temporary folders that outlive their job only until the next one.

All users of a machine may share the folder that they lie in, so that under any name that can be
guessed somebody else's link or FIFO may lie.
"""

import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import StorageError
from pipeline.masking import one_line
from pipeline.storage import local

_OWNER = ".owner"
_GIVEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_NOT_OURS = (errno.ELOOP, errno.ENOTDIR, errno.EACCES, errno.EPERM)


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A new folder in the temporary one, which goes with the block; first, those of killed jobs go.

    Its owner keeps `.owner` in it locked. The kernel opens a lock when its process ends, in
    whatever way, so a folder whose lock is open is nobody's.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        _forget(folder)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        with (folder / "new").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / "new").rename(folder / _OWNER)  # Nobody sees it unlocked.
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _forget(folder: Path) -> None:
    """Removes a folder of ours that nobody holds; what is in use, or not ours, is left alone."""
    try:
        # Ray opens its own to everybody: what they may put there is neither followed nor read.
        inside = _open_own(folder, os.O_DIRECTORY, shared=True)
    except OSError:
        return
    try:
        lock = _open_own(Path(_OWNER), 0, inside)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
    except OSError:  # In use, just gone, or none of these folders.
        return
    finally:
        os.close(inside)


def private_folder(folder: Path) -> int:
    """A handle on a folder in the temporary one that is this user's alone, made if it is not there.

    Raises `StorageError` for what else may lie there: a link, a file, another user's folder.
    """
    while True:
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise local.explain(error, folder, "creating") from None
        try:
            return _open_own(folder, os.O_DIRECTORY)
        except FileNotFoundError:  # Whoever held it last removed it just now.
            continue
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise local.explain(error, folder, "opening") from None
            raise StorageError(
                f"{one_line(str(folder))}: is a link, a file, or a folder that is not this user's "
                "alone, and nothing was read or written there. Remove it, or set TMPDIR to a "
                "folder of yours."
            ) from None


def _open_own(path: Path, flags: int, inside: int | None = None, *, shared: bool = False) -> int:
    """A handle on a file or folder of this user's; raises `OSError` for any other, without waiting.

    A folder is one that nobody else may look into, unless it may be `shared`.
    """
    handle = os.open(path, _GIVEN | flags, dir_fd=inside)
    status = os.fstat(handle)
    alone = shared or stat.S_ISREG(status.st_mode) or not status.st_mode & 0o077
    if status.st_uid == os.getuid() and alone:
        return handle
    os.close(handle)
    raise PermissionError(errno.EPERM, "not this user's alone", str(path))
