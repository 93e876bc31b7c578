"""A batch of uint8 images to stored tensors: finite, in range, a function of the batch alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.encoding.tiles import encode_in_tiles
from pipeline.int8 import to_int8
from pipeline.key_noise import normal_noise
from pipeline.latents.identity import EncodeOptions, crop_suffix
from pipeline.latents.latent_file import SCALE
from pipeline.vae.vae import VAE

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class EncodedBatch:
    """Tensors [b, Z, h, w] as readers get them, and `stored` by the file's columns.

    `refused` rows (reason by row) must not be written. `rounding`: what eight bits cost them.
    """

    tensors: dict[str, Array]
    stored: dict[str, Array]
    refused: dict[int, str]
    redone: bool
    rounding: "BatchRounding | None" = None


@dataclass(frozen=True)
class BatchRounding:
    """Of each row the largest and the mean error of the first tensor, in its own units: [b].

    `decibels`: PSNR of one image (row `shown`) decoded from eight bits, against float32.
    """

    largest: Array
    mean: Array
    shown: int
    decibels: float


def encode_batch(
    vae: VAE, images: Tensor, keys: Sequence[str], valid: Array, options: EncodeOptions
) -> EncodedBatch:
    """Encodes images uint8 [b, cuts, C, H, W]; rows that are not `valid` are never judged.

    `cuts` are the one from the centre, and the options' random crops.

    A batch with a value that is not finite, or beyond the stored type, is computed again as a whole
    in fp32. Rows that are still wrong are refused: `non_finite`, or `overflow` of the stored type.
    """
    tensors = _compute(vae, images, keys, options, options.precision == "bf16")
    refused = _refuse(tensors, valid, options)
    redone = bool(refused) and options.precision == "bf16"
    if redone:
        tensors = _compute(vae, images, keys, options, False)
        refused = _refuse(tensors, valid, options)
    if options.dtype == "int8":
        return _in_eight_bits(vae, tensors, refused, valid, options, redone=redone)
    with np.errstate(over="ignore"):
        stored = {name: value.astype(options.dtype) for name, value in tensors.items()}
    return EncodedBatch(stored, stored, refused, redone)


def _in_eight_bits(
    vae: VAE,
    tensors: Mapping[str, Array],
    refused: dict[int, str],
    valid: Array,
    options: EncodeOptions,
    *,
    redone: bool,
) -> EncodedBatch:
    # What is not finite is written nowhere, and must not warn on its way.
    finite = {n: np.nan_to_num(v, posinf=0.0, neginf=0.0) for n, v in tensors.items()}
    small = {name: to_int8(value) for name, value in finite.items()}
    values: dict[str, Array] = {name: each.values for name, each in small.items()}
    stored: dict[str, Array] = {name: each.numbers for name, each in small.items()}
    stored |= {name + SCALE: each.scales for name, each in small.items()}
    primary = options.tensors[0]
    error = np.abs(values[primary] - finite[primary]).reshape(len(valid), -1)
    good = [row for row in np.flatnonzero(valid).tolist() if row not in refused]
    rounding = None
    if good:
        exact, rounded = (each[primary][good[:1]] for each in (finite, values))
        decibels = _decoded_psnr(vae, exact, rounded)
        rounding = BatchRounding(error.max(1), error.mean(1), good[0], decibels)
    return EncodedBatch(values, stored, refused, redone, rounding)


def _decoded_psnr(vae: VAE, exact: Array, rounded: Array) -> float:
    """PSNR in dB, peak 1, of what latents [1, Z, h, w] decode to; 100 for no difference."""
    device = next(vae.parameters()).device
    with torch.inference_mode():
        one, other = (
            vae.decode(torch.from_numpy(np.ascontiguousarray(each)).to(device)).double().cpu()
            for each in (exact, rounded)
        )
    return -10 * math.log10(max(float((one - other).square().mean()), 1e-10))


def _compute(
    vae: VAE, images: Tensor, keys: Sequence[str], options: EncodeOptions, autocast: bool
) -> dict[str, Array]:
    """The tensors to store, as float32."""
    device = next(vae.parameters()).device
    on_device = images.to(device, non_blocking=True)
    endings = ("", *map(crop_suffix, range(options.crops)))
    views = dict(zip(endings, on_device.unbind(1), strict=True))
    if options.flip:
        views |= {f"{ending}_flipped": view.flip(-1) for ending, view in views.items()}
    tensors: dict[str, Tensor] = {}
    for suffix, view in views.items():
        with (
            torch.inference_mode(),
            torch.autocast(device.type, torch.bfloat16, enabled=autocast),
        ):
            posterior = encode_in_tiles(vae, view, options.tile)
        if options.content == "sample":
            noise = normal_noise(keys, options.seed, posterior.mean.shape[1:], suffix)
            with torch.inference_mode():
                drawn = posterior.sample(torch.from_numpy(noise).to(device))
            tensors[f"sample{suffix}"] = drawn
            continue
        tensors[f"mean{suffix}"] = posterior.mean
        if options.content == "moments":
            tensors[f"logvar{suffix}"] = posterior.log_variance
    return {name: tensors[name].float().cpu().numpy() for name in options.tensors}


def _refuse(tensors: Mapping[str, Array], valid: Array, options: EncodeOptions) -> dict[int, str]:
    largest = float(np.finfo(options.value_type).max)
    refused: dict[int, str] = {}
    for value in tensors.values():
        flat = value.reshape(len(value), -1)
        # One pass for the good case: NaN and infinity both fail the comparison.
        fits = np.abs(flat).max(axis=1) <= largest
        for row in np.flatnonzero(~fits & valid).tolist():
            finite = bool(np.isfinite(flat[row]).all())
            reason = "overflow" if finite else "non_finite"
            if refused.get(row) != "non_finite":
                refused[row] = reason
    return refused
