"""Temporary folders that outlive their job only until the next one."""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OWNER = ".owner"


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A new folder in the temporary one, which goes with the block; first, those of killed jobs go.

    Its owner keeps `.owner` in it locked. The kernel opens a lock when its process ends, in
    whatever way, so a folder whose lock is open is nobody's.
    """
    for owner in Path(tempfile.gettempdir()).glob(f"{prefix}*/{_OWNER}"):
        try:
            with owner.open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(owner.parent, ignore_errors=True)
        except OSError:  # In use, another user's, or just gone.
            continue
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        with (folder / "new").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / "new").rename(folder / _OWNER)  # Nobody sees it unlocked.
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
