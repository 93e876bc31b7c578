"""Which arithmetic an encoding may take: never one that the stored numbers would show."""

import math
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from pipeline.data.dataset import Dataset
from pipeline.encoding.determinism import exact_numerics
from pipeline.encoding.shard_batches import encode_cuts, shard_batches
from pipeline.latents.identity import EncodeOptions
from pipeline.vae.vae import VAE


@dataclass(frozen=True)
class Rounding:
    """What bf16 makes of some images' means, against fp32.

    `largest` is the largest difference; `steps` the largest in steps between neighbouring numbers
    of the stored type: at most 1 is within that type's own rounding.
    """

    images: int
    largest: float
    steps: float

    @property
    def is_within(self) -> bool:
        """Whether nobody could tell from what is stored."""
        return self.images > 0 and self.steps <= 1


def measure_rounding(
    vae: VAE, dataset: Dataset, options: EncodeOptions, threads: int = 1
) -> Rounding:
    """Of the first batch of a dataset, as it would be encoded, on the model's device."""
    wide = replace(options, content="mean", flip=False, dtype="float32")
    for shard in dataset.shards[:1]:
        batches = shard_batches(vae, dataset, shard, wide, threads)
        with exact_numerics(), closing(batches):
            batch = next(batches, None)
            if batch is None:
                break
            low = encode_cuts(vae, batch.place, batch.samples, replace(wide, precision="bf16"))
        rows = [row for row in range(len(batch.samples)) if row not in batch.reasons]
        exact = batch.encoded.tensors["mean"][rows]
        if low.encoded.redone:
            return Rounding(len(exact), math.inf, math.inf)
        if len(exact):
            difference = np.abs(low.encoded.tensors["mean"][rows].astype(np.float64) - exact)
            with np.errstate(over="ignore"):
                step = np.spacing(np.abs(exact).astype(options.value_type)).astype(np.float64)
            return Rounding(len(exact), float(difference.max()), float((difference / step).max()))
    return Rounding(0, 0.0, 0.0)
