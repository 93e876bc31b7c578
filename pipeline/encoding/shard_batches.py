"""One source shard as encoded batches: chosen, cut, grouped by shape, through the network."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import torch

from pipeline.data.column_types import arrow_array
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import ShardRecord
from pipeline.data.shard_index import RawSample
from pipeline.data.shard_reader import read_samples, samples_at
from pipeline.encoding.also import Also
from pipeline.encoding.batch import EncodedBatch, encode_batch
from pipeline.encoding.cutting import CutSample, Cutter, Place
from pipeline.latents.identity import EncodeOptions
from pipeline.storage.row_filter import parse_where
from pipeline.vae.vae import VAE


@dataclass(frozen=True)
class PlacedBatch:
    """Samples of one place, and what the network made of them; `reasons` by row: why one has none.

    `encoded` may have more rows, of padding.
    """

    place: Place
    samples: tuple[CutSample, ...]
    encoded: EncodedBatch
    beside: dict[int, str] = field(default_factory=dict)
    """Rows that an encoder beside the VAE made no numbers of, with the reason."""

    @property
    def reasons(self) -> dict[int, str]:
        """Of each row without latents."""
        found = {row: s.reason for row, s in enumerate(self.samples) if s.reason is not None}
        return self.beside | found | self.encoded.refused

    def with_vectors(self, also: Sequence[Also], vae: VAE) -> "PlacedBatch":
        """With what these encoders make of its images and columns, as columns; on the VAE's device.

        A row whose vector is not finite is refused. Rows without an image are not shown to them.
        """
        good = [row for row, sample in enumerate(self.samples) if sample.reason is None]
        if not also or not good:
            return self
        chosen = [self.samples[row] for row in good]
        images = torch.stack([sample.cuts[self.place][0] for sample in chosen]).to(vae.device)
        names = dict.fromkeys(name for sample in chosen for name in sample.columns)
        columns = {name: [sample.columns.get(name) for sample in chosen] for name in names}
        samples, beside = list(self.samples), dict[int, str]()
        for each in also:
            for name, vectors in each.vectors(images, columns).items():
                for row, vector in zip(good, vectors, strict=True):
                    values = {**samples[row].columns, name: vector.tolist()}
                    samples[row] = replace(samples[row], columns=values)
                    if not np.isfinite(vector).all():
                        beside[row] = f"non_finite {name}"
        return replace(self, samples=tuple(samples), beside=beside)


def shard_batches(
    vae: VAE,
    dataset: Dataset,
    shard: ShardRecord,
    options: EncodeOptions,
    threads: int,
    *,
    also: Sequence[Also] = (),
) -> Generator[PlacedBatch]:
    """Every chosen sample of a shard, once for each view, in batches of one place each.

    Which samples come together follows from the shard and the options alone. `also` are the
    options' encoders beside the VAE, where their columns are wanted.
    """
    cutter, choose = Cutter(vae.preprocess, options), chooser(options)
    waiting: dict[Place, list[CutSample]] = {}
    size, columns = options.batch_size, columns_of(options)
    with ThreadPoolExecutor(threads, thread_name_prefix="cut") as pool:
        for block in read_samples(dataset, shard, size, columns):
            if choose is not None:
                taken = choose([sample for _, sample in block])
                block = [each for each, met in zip(block, taken, strict=True) if met]
            for cut in pool.map(lambda each: cutter.cut(*each), block):
                for place in cut.cuts:
                    waiting.setdefault(place, []).append(cut.alone(place))
            for place, samples in waiting.items():
                if len(samples) >= size:
                    done = encode_cuts(vae, place, samples[:size], options)
                    yield done.with_vectors(also, vae)
                    waiting[place] = samples[size:]
    for place in sorted(waiting, key=lambda place: (place.size, place.shape)):
        if waiting[place]:
            done = encode_cuts(vae, place, waiting[place], options)
            yield done.with_vectors(also, vae)


def encode_again(
    vae: VAE,
    dataset: Dataset,
    shard: ShardRecord,
    options: EncodeOptions,
    place: Place,
    *,
    positions: Sequence[int],
) -> PlacedBatch:
    """The batch of these samples alone, as `shard_batches` made it."""
    cutter = Cutter(vae.preprocess, options)
    raw = samples_at(dataset, shard, positions)
    cuts = [cutter.cut(position, sample).alone(place) for position, sample in raw]
    return encode_cuts(vae, place, cuts, options)


def encode_cuts(
    vae: VAE, place: Place, samples: Sequence[CutSample], options: EncodeOptions
) -> PlacedBatch:
    """Samples of one place through the network.

    Batches of the model's own size are padded to the full one: it costs one batch a shard. Of many
    buckets it would cost as many, so those end as they are.
    """
    missing = 0 if options.views else options.batch_size - len(samples)
    pixels = [sample.cuts[place] for sample in samples]
    images = torch.stack([*pixels, *[torch.zeros_like(pixels[0])] * missing])
    keys = [*(sample.key for sample in samples), *[""] * missing]
    valid = torch.tensor([*(s.reason is None for s in samples), *[False] * missing]).numpy()
    return PlacedBatch(place, tuple(samples), encode_batch(vae, images, keys, valid, options))


def columns_of(options: EncodeOptions) -> tuple[str, ...]:
    """What is read beside each image: the columns to copy, and those that `where` asks for."""
    return tuple(dict.fromkeys((*options.columns, *(name for name, _ in options.where_kinds))))


def chooser(options: EncodeOptions) -> Callable[[Sequence[RawSample]], Sequence[bool]] | None:
    """Which samples are encoded, from their columns alone; None: all of them.

    One whose columns can't be read is among them, so that it is told as failed.
    """
    if not options.where:
        return None
    where = parse_where(options.where)

    def choose(samples: Sequence[RawSample]) -> Sequence[bool]:
        columns = [
            arrow_array([sample.columns.get(name) for sample in samples], kind)
            for name, kind in options.where_kinds
        ]
        table = pa.table(columns, names=[name for name, _ in options.where_kinds])
        mask = where.mask(table).tolist()
        return [met or s.fault is not None for met, s in zip(mask, samples, strict=True)]

    return choose
