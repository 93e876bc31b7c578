"""What a node keeps on its disk between epochs: fetched chunks, and decoded images.

Nothing here is trusted: chunks are checked by each image's crc32 before it is decoded, decoded
images by a crc32 of their own. Any number of processes may share a folder; killed ones leave at
most a temporary file.
"""

import logging
import os
import stat
import tempfile
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import storage
from pipeline.config import PreprocessConfig
from pipeline.data.dataset import Dataset
from pipeline.data.preprocess import preprocess_digest
from pipeline.errors import StorageError
from pipeline.masking import one_line

logger = logging.getLogger(__name__)

_PARTIAL = ".partial-"
_LEFTOVER_SECONDS = 3600.0
"""A chunk is written within seconds: what is unfinished and so old is a dead process's."""


class ChunkCache:
    """Byte ranges of shards by the shards' checksums, at most about `limit_bytes` of them."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = _made(folder, "chunks")
        self._limit_bytes = limit_bytes
        self._forget_leftovers()
        self._held_bytes = sum(size for _, size, _ in self._found())
        self._is_full = False
        self.hits = 0
        self.misses = 0

    def read(self, sha256: str, start: int, end: int, fetch: Callable[[], bytes]) -> bytes:
        """The range from disk, or by `fetch`, which then is kept."""
        path = self._folder / sha256 / f"{start}-{end}"
        with suppress(StorageError):
            data = storage.read(str(path), 0, end - start + 1)
            if len(data) == end - start:
                self.hits += 1
                return data
        self.misses += 1
        data = fetch()
        if len(data) == end - start <= self._limit_bytes:
            self._keep(path, data)
        return data

    def _keep(self, path: Path, data: bytes) -> None:
        """A cache that can't be written costs its use, not the run."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._folder, prefix=_PARTIAL)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                Path(name).replace(path)
            except OSError:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            if not self._is_full:
                logger.warning("%s: nothing more is kept for now: %s", self._folder, error)
            self._is_full = True
            return
        self._is_full = False
        self._held_bytes += len(data)
        if self._held_bytes > self._limit_bytes:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        """Down to nine tenths, by age; other processes' files count too."""
        found = self._found()
        held = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if held <= 0.9 * self._limit_bytes:
                break
            path.unlink(missing_ok=True)
            held -= size
        self._held_bytes = held

    def _found(self) -> list[tuple[int, int, Path]]:
        """Time of writing, size and path of each chunk; others may remove some meanwhile.

        Files alone, and none behind a link: all that is found here may be removed.
        """
        found = []
        for folder in self._folder.iterdir():
            with suppress(FileNotFoundError, NotADirectoryError):
                for path in () if folder.is_symlink() else folder.iterdir():
                    with suppress(FileNotFoundError):
                        state = path.lstat()
                        if stat.S_ISREG(state.st_mode):
                            found.append((state.st_mtime_ns, state.st_size, path))
        return found

    def _forget_leftovers(self) -> None:
        """Removes what processes that were killed while writing left an hour or more ago."""
        for path in self._folder.glob(f"{_PARTIAL}*"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
                    path.unlink(missing_ok=True)


class DecodedCache:
    """Decoded uint8 images of one dataset and preprocessing, in one sparse file by live id."""

    def __init__(self, folder: Path, dataset: Dataset, preprocess: PreprocessConfig) -> None:
        name = f"{dataset.digest[:16]}-{preprocess_digest(preprocess)[:16]}"
        place = _made(folder, f"decoded/{name}")
        size = preprocess.image_size
        shape = (len(dataset), preprocess.channels, size, size)
        self._images: npt.NDArray[np.uint8] = _mapped(place / "images.u8", np.uint8, shape)
        # crc32 + 1 of each image; 0: there is none.
        self._sums: npt.NDArray[np.uint64] = _mapped(place / "sums.u64", np.uint64, shape[:1])
        self._place = place
        self._is_full = False
        if not self._reserve("sums.u64", 0, self._sums.nbytes):
            self._sums = np.zeros(shape[:1], np.uint64)
        self.hits = 0
        self.misses = 0

    def has(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of these samples are there."""
        there: npt.NDArray[np.bool_] = self._sums[samples] != 0
        return there

    def load(self, sample: int, out: npt.NDArray[np.uint8]) -> bool:
        """Copies a sample's pixels into `out`; False where they are not there, or damaged."""
        kept = int(self._sums[sample])
        if kept:
            np.copyto(out, self._images[sample])
            if zlib.crc32(out.data) + 1 == kept:
                self.hits += 1
                return True
        self.misses += 1
        return False

    def keep(self, sample: int, pixels: npt.NDArray[np.uint8]) -> None:
        """Stores a sample's pixels, while there is room for them."""
        if not self._is_full and self._reserve("images.u8", sample * pixels.nbytes, pixels.nbytes):
            self._images[sample] = pixels
            self._sums[sample] = zlib.crc32(pixels.data) + 1

    def _reserve(self, name: str, start: int, size: int) -> bool:
        """Whether there is room: without any, the first touch of mapped memory kills the process.

        A full disk costs the cache's use, not the run.
        """
        try:
            with (self._place / name).open("r+b") as file:
                os.posix_fallocate(file.fileno(), start, max(1, size))
        except OSError as error:
            logger.warning("%s: nothing more is kept: %s", self._place, error)
            self._is_full = True
            return False
        return True


def _mapped(path: Path, kind: type, shape: tuple[int, ...]) -> Any:
    """A file of zeros, mapped into memory; it takes disk only where it is written."""
    wanted = int(np.prod(shape)) * np.dtype(kind).itemsize
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise _foreign(path)
    try:
        with path.open("ab") as file:
            if file.tell() < wanted:
                file.truncate(wanted)
        return np.memmap(path, kind, "r+", shape=shape)
    except OSError as error:
        raise StorageError(
            f"{path}: can't be made {wanted / 1e12:,.3f} TB long, as {shape[0]:,} decoded samples "
            f"need ({error.strerror}). ext4 ends a file at 17.6 TB: name a folder on XFS with "
            "`--loader.cache-folder`, or leave `--loader.cache-decoded` out: then chunks are kept."
        ) from None


def _made(place: Path, name: str) -> Path:
    folder = place / name
    for each in (folder, folder.parent):
        if each != place and each.is_symlink():
            raise _foreign(each)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{folder}: can't be made for the loader's cache ({error.strerror}). Name a folder "
            "that can be written with `--loader.cache-folder`, or leave it out."
        ) from None
    return folder


def _foreign(path: Path) -> StorageError:
    """Of what another user of a shared folder may have laid down in place of the cache's own."""
    return StorageError(
        f"{one_line(str(path))}: is a link, a FIFO or a device in place of the loader's cache, and "
        "nothing was read or written there. Remove it, or name another folder with "
        "`--loader.cache-folder`."
    )
