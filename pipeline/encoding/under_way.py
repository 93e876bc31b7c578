"""How far the shards are that a process encodes now, and how they are given up."""

import threading
from dataclasses import dataclass

from pipeline.progress import Progress


class AbandonedError(RuntimeError):
    """Nobody waits for this shard any more: what it has so far is dropped."""


class UnderWay:
    """Images of the shards in work, told batch by batch; from any thread."""

    def __init__(self) -> None:
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._images: dict[int, float] = {}

    def count(self, shard: int, images: float) -> None:
        """So many more of a shard are encoded; `AbandonedError` once all is to end."""
        if self._ended.is_set():
            raise AbandonedError(f"shard {shard} was given up")
        with self._lock:
            self._images[shard] = self._images.get(shard, 0) + images

    def forget(self, shard: int) -> None:
        """It is done, or begins anew."""
        with self._lock:
            self._images.pop(shard, None)

    def images(self) -> dict[int, float]:
        """Of each shard in work those that are encoded; a size of several is a part of one."""
        with self._lock:
            return dict(self._images)

    def end(self) -> None:
        """Each shard ends at its next batch."""
        self._ended.set()


@dataclass
class Counted:
    """Images that the progress has been told of: those of finished shards, and of the others."""

    progress: Progress
    finished: int = 0
    shown: int = 0

    def look(self, under_way: float) -> None:
        """A shard that is tried again is shown no further back than it was."""
        now = max(self.shown, self.finished + int(under_way))
        self.progress.advance(now - self.shown)
        self.shown = now
