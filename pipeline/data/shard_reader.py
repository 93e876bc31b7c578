"""One shard in its own order, for encoding, and a few images for figures.

Images are read as they are judged: from the centre, also where training crops at random.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.config import PreprocessConfig
from pipeline.data.batch import Batch
from pipeline.data.dataset import Dataset
from pipeline.data.fetch import SampleReader
from pipeline.data.manifest import ShardRecord
from pipeline.data.preprocess import preprocess_into
from pipeline.data.shard_index import RawSample
from pipeline.errors import SampleError


def read_shard(
    dataset: Dataset,
    shard: ShardRecord,
    preprocess: PreprocessConfig,
    batch_size: int,
    columns: Sequence[str] = (),
    threads: int | None = None,
) -> Iterator[Batch]:
    """Every sample of one shard, also removed ones, in shard order; one batch is read ahead.

    The last batch is padded to `batch_size`: a batch's shape changes the last bits of a network's
    output. A bad sample is masked, its reason in `Batch.errors`.
    """
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        for index, samples in enumerate(read_samples(dataset, shard, batch_size, columns)):
            alone = [sample for _, sample in samples]
            yield _decode_all(
                alone, preprocess, batch_size, index=index, pool=pool, columns=columns
            )


def read_samples(
    dataset: Dataset, shard: ShardRecord, size: int, columns: Sequence[str] = ()
) -> Iterator[list[tuple[int, RawSample]]]:
    """Every sample of a shard with its position, `size` at a time; one block is read ahead."""
    reader = _reader_of(dataset, shard, columns)
    with ThreadPoolExecutor(1) as ahead:

        def fetch(first: int) -> list[RawSample]:
            return reader.read_positions(0, first, min(shard.samples, first + size))

        waiting = ahead.submit(fetch, 0) if shard.samples else None
        for first in range(0, shard.samples, size):
            assert waiting is not None, "a fetch is always under way before its block"
            samples = waiting.result()
            if first + size < shard.samples:
                waiting = ahead.submit(fetch, first + size)
            yield list(enumerate(samples, first))


def samples_at(
    dataset: Dataset, shard: ShardRecord, positions: Sequence[int]
) -> list[tuple[int, RawSample]]:
    """The samples at these ascending positions of a shard; neighbours come by one read."""
    reader = _reader_of(dataset, shard, ())
    starts = [n for n, at in enumerate(positions) if n == 0 or at != positions[n - 1] + 1]
    found: list[tuple[int, RawSample]] = []
    for start, stop in itertools.pairwise([*starts, len(positions)]):
        first, last = positions[start], positions[stop - 1] + 1
        found += enumerate(reader.read_positions(0, first, last), first)
    return found


def load_images(dataset: Dataset, count: int, preprocess: PreprocessConfig) -> Batch:
    """The first `count` samples that count, in manifest order: the same ones at any time."""
    reader = SampleReader(dataset, 32, 64 * 2**20, ("label",))
    samples = [reader.read(sample) for sample in range(min(count, len(dataset)))]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return _decode_all(
            samples, preprocess, len(samples), index=0, pool=pool, columns=("label",)
        )


def _reader_of(dataset: Dataset, shard: ShardRecord, columns: Sequence[str]) -> SampleReader:
    """Reads one shard, its number 0: no look for it among 10^5 others."""
    alone = replace(dataset, manifest=replace(dataset.manifest, shards=(shard,)))
    return SampleReader(alone, 1, 0, columns)


def _decode_all(
    samples: Sequence[RawSample],
    preprocess: PreprocessConfig,
    batch_size: int,
    index: int,
    pool: ThreadPoolExecutor,
    columns: Sequence[str],
) -> Batch:
    preprocess = preprocess.held_out()
    size = preprocess.image_size
    images = torch.zeros((batch_size, preprocess.channels, size, size), dtype=torch.uint8)

    def decode(sample: RawSample, image: Tensor) -> str | None:
        try:
            preprocess_into(image, sample.checked_image(), preprocess)
        except SampleError as error:
            image.zero_()
            return error.reason
        return None

    reasons = list(pool.map(decode, samples, images))
    missing = batch_size - len(samples)
    return Batch(
        images=images,
        keys=[sample.key for sample in samples] + [""] * missing,
        valid=torch.tensor([reason is None for reason in reasons] + [False] * missing),
        columns={
            name: [sample.columns.get(name) for sample in samples] + [None] * missing
            for name in columns
        },
        epoch=0,
        index=index,
        slots=range(batch_size),
        errors={s.key: reason for s, reason in zip(samples, reasons, strict=True) if reason},
    )
