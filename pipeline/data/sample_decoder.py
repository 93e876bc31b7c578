"""From ids to pixels: each sample read, checked, decoded, mirrored and transformed, or masked."""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import PreprocessConfig
from pipeline.data.cache import DecodedCache
from pipeline.data.fetch import SampleReader
from pipeline.data.order import PADDED, Ids
from pipeline.data.preprocess import (
    Augmentation,
    apply_transform,
    is_mirrored,
    load_transform,
    preprocess_into,
    sample_draw,
)
from pipeline.data.shard_index import RawSample
from pipeline.errors import SampleError
from pipeline.json_value import Json


@dataclass(frozen=True)
class Row:
    """What one slot came to: its key ("" if padded), columns, and why it is bad, if it is."""

    key: str
    columns: Json
    error: str | None
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0


class SampleDecoder:
    """Decodes samples of an order with this `seed` into tensors, from any thread."""

    def __init__(
        self,
        reader: SampleReader,
        preprocess: PreprocessConfig,
        augmentation: Augmentation,
        *,
        seed: int,
        decoded: DecodedCache | None = None,
    ) -> None:
        self.preprocess = preprocess
        self._reader = reader
        self._seed, self._decoded = seed, decoded
        self._flip, self._path = augmentation.flip, augmentation.transform
        self._transform = load_transform(self._path) if self._path else None

    def is_kept(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Which samples' pixels were kept in an earlier epoch."""
        if self._decoded is None:
            return np.zeros(len(ids), np.bool_)
        return self._decoded.has(ids)

    def decode(
        self, epoch: int, ids: Sequence[int], alone: Sequence[bool], images: Tensor
    ) -> list[Row]:
        """Fills `images` [n, C, S, S]; zeros where a slot is padded or its sample bad."""
        rows = [
            self._decode_one(epoch, sample, image, alone=by_itself)
            for sample, by_itself, image in zip(ids, alone, images, strict=True)
        ]
        good = [at for at, row in enumerate(rows) if row.key and row.error is None]
        if self._transform is not None and self._path is not None and good:
            chosen = images[good]
            seeds = [sample_draw(self._seed, epoch, rows[at].key) for at in good]
            apply_transform(self._transform, self._path, chosen, seeds)
            images[good] = chosen
        return rows

    def _decode_one(self, epoch: int, sample: int, image: Tensor, *, alone: bool) -> Row:
        if sample == PADDED:
            image.zero_()
            return Row("", {}, None)
        # The pixels were kept in an earlier epoch: then no byte of the shard is read.
        if self._decoded is not None and self._decoded.load(sample, image.numpy()):
            key = self._reader.key(sample)
            self._mirror(image, sample_draw(self._seed, epoch, key))
            return Row(key, {}, None)
        started = time.perf_counter()
        raw = self._reader.read(sample, alone=alone)
        fetched = time.perf_counter()
        error = None
        try:
            self._decode_into(image, sample, raw, sample_draw(self._seed, epoch, raw.key))
        except SampleError as bad:
            image.zero_()
            error = bad.reason
        took = time.perf_counter() - fetched
        return Row(raw.key, raw.columns, error, fetched - started, took)

    def _decode_into(self, image: Tensor, sample: int, raw: RawSample, draw: int) -> None:
        data = self._checked(sample, raw)
        if self._decoded is None:
            preprocess_into(image, data, self.preprocess, flip=self._flip, draw=draw)
        else:
            preprocess_into(image, data, self.preprocess)
            self._decoded.keep(sample, image.numpy())
            self._mirror(image, draw)

    def _mirror(self, image: Tensor, draw: int) -> None:
        if self._flip and is_mirrored(draw):
            image.copy_(image.flip(2))

    def _checked(self, sample: int, raw: RawSample) -> bytes:
        """The image's bytes; what was damaged on the way is fetched once more, by itself."""
        try:
            return raw.checked_image()
        except SampleError:
            return self._reader.read(sample, alone=True).checked_image()


@dataclass(frozen=True)
class DecodingBatch:
    """A batch in work: `images` [b, C, S, S] are whole when all of its tasks are."""

    epoch: int
    index: int
    images: Tensor
    tasks: "list[Future[list[Row]]]"

    @property
    def is_ready(self) -> bool:
        """Whether nobody would wait for it."""
        return all(task.done() for task in self.tasks)

    def rows(self, stall_seconds: float) -> list[Row]:
        """Waits for it; raises `TimeoutError` when a task brings nothing for so long."""
        return [row for task in self.tasks for row in task.result(timeout=stall_seconds)]


class DecodeThreads:
    """Decodes batches on `count` threads, each image into its place of the batch's tensor."""

    def __init__(self, decoder: SampleDecoder, count: int) -> None:
        self._decoder, self._count = decoder, count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="decode")

    def submit(
        self, epoch: int, index: int, ids: Sequence[int], alone: Sequence[bool]
    ) -> DecodingBatch:
        """Begins batch `index` of an epoch; `alone` says which ids are read by themselves."""
        preprocess = self._decoder.preprocess
        # numpy asks for huge pages where torch does not: decoding into them is a tenth faster.
        shape = (len(ids), preprocess.channels, preprocess.image_size, preprocess.image_size)
        images = torch.from_numpy(np.empty(shape, np.uint8))
        # As many tasks as threads have work for, not one per image: a future costs 30 us.
        per_task = max(1, -(-len(ids) // (4 * self._count)))
        tasks = [
            self._pool.submit(self._decoder.decode, epoch, ids[part], alone[part], images[part])
            for part in (slice(at, at + per_task) for at in range(0, len(ids), per_task))
        ]
        return DecodingBatch(epoch, index, images, tasks)

    def close(self) -> None:
        """Ends the threads; tasks under way are finished first."""
        self._pool.shutdown(wait=True, cancel_futures=True)
