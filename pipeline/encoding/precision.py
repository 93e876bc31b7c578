"""Which arithmetic an encoding may take: never one that the stored numbers would show."""

import math
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipeline.data.dataset import Dataset
from pipeline.data.manifest import ShardRecord
from pipeline.encoding.determinism import exact_numerics
from pipeline.encoding.shard_batches import encode_cuts, shard_batches
from pipeline.errors import AccessDeniedError, PipelineError, StoreError, is_shortage
from pipeline.latents.identity import EncodeOptions
from pipeline.vae.vae import VAE

_SHARDS = 20
"""Shards that are looked at for images that can be read; what ails more is one cause for all."""


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


@dataclass(frozen=True)
class Unmeasured:
    """Nothing is known of bf16, for this reason."""

    reason: str


def try_bf16(
    vae: VAE, dataset: Dataset, options: EncodeOptions, device: torch.device
) -> Rounding | Unmeasured:
    """Whether an encoding in this process, on this device, may be in bf16.

    Raises `StoreError` where memory, disk or a connection is short: no word on the arithmetic.
    """
    if not (torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()):
        return Unmeasured("where it is encoded bf16 would not be faster")
    try:
        found = measure_rounding(vae.to(device), dataset, options)
    except (PipelineError, OSError, RuntimeError, MemoryError) as error:
        raise StoreError(
            f"comparing bf16 with fp32 on a first batch: {error} Nothing was encoded. See to it, "
            "and run the same command again; or say which it is to be: `--precision fp32`."
        ) from error
    return found if found.images else Unmeasured("no image could be tried in bf16")


def measure_rounding(
    vae: VAE, dataset: Dataset, options: EncodeOptions, threads: int = 1
) -> Rounding:
    """Of the first batch that can be read, as it would be encoded, on the model's device.

    A shard that fails by itself is passed over: encoding it will say so. No image: all are 0.
    """
    for shard in dataset.shards[:_SHARDS]:
        try:
            found = _of_shard(vae, dataset, shard, options, threads)
        except (PipelineError, OSError, RuntimeError) as error:
            if is_shortage(error) or isinstance(error, AccessDeniedError):
                raise
            continue
        if found.images:
            return found
    return Rounding(0, 0.0, 0.0)


def _of_shard(
    vae: VAE, dataset: Dataset, shard: ShardRecord, options: EncodeOptions, threads: int
) -> Rounding:
    wide = replace(options, content="mean", flip=False, crops=0, dtype="float32")
    batches = shard_batches(vae, dataset, shard, wide, threads)
    with exact_numerics(), closing(batches):
        batch = next(batches, None)
        if batch is None:
            return Rounding(0, 0.0, 0.0)
        low = encode_cuts(vae, batch.place, batch.samples, replace(wide, precision="bf16"))
    rows = [row for row in range(len(batch.samples)) if row not in batch.reasons]
    exact = batch.encoded.tensors["mean"][rows]
    if low.encoded.redone:
        return Rounding(len(exact), math.inf, math.inf)
    if not len(exact):
        return Rounding(0, 0.0, 0.0)
    difference = np.abs(low.encoded.tensors["mean"][rows].astype(np.float64) - exact)
    with np.errstate(over="ignore"):
        step = np.spacing(np.abs(exact).astype(options.value_type)).astype(np.float64)
    return Rounding(len(exact), float(difference.max()), float((difference / step).max()))
