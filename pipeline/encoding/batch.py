"""A batch of uint8 images to stored tensors: finite, in range, a function of the batch alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.latents.identity import EncodeOptions
from pipeline.latents.noise import normal_noise
from pipeline.vae.vae import VAE

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class EncodedBatch:
    """Stored tensors [b, Z, h, w] by column; `refused` rows (reason by row) must not be written."""

    tensors: dict[str, Array]
    refused: dict[int, str]
    redone: bool


def encode_batch(
    vae: VAE, images: Tensor, keys: Sequence[str], valid: Array, options: EncodeOptions
) -> EncodedBatch:
    """Encodes images uint8 [b, C, H, W]; rows that are not `valid` are computed but never judged.

    A batch with a value that is not finite, or beyond the stored type, is computed again as a whole
    in fp32. Rows that are still wrong are refused: `non_finite`, or `overflow` of the stored type.
    """
    tensors = _compute(vae, images, keys, options, options.precision == "bf16")
    refused = _refuse(tensors, valid, options)
    redone = bool(refused) and options.precision == "bf16"
    if redone:
        tensors = _compute(vae, images, keys, options, False)
        refused = _refuse(tensors, valid, options)
    with np.errstate(over="ignore"):
        stored = {name: value.astype(options.dtype) for name, value in tensors.items()}
    return EncodedBatch(stored, refused, redone)


def _compute(
    vae: VAE, images: Tensor, keys: Sequence[str], options: EncodeOptions, autocast: bool
) -> dict[str, Array]:
    """The tensors to store, as float32."""
    device = next(vae.parameters()).device
    on_device = images.to(device, non_blocking=True)
    views = {"": on_device}
    if options.flip:
        views["_flipped"] = on_device.flip(-1)
    tensors: dict[str, Tensor] = {}
    for suffix, view in views.items():
        with (
            torch.inference_mode(),
            torch.autocast(device.type, torch.bfloat16, enabled=autocast),
        ):
            posterior = vae.encode(view)
        if options.content == "sample":
            noise = [normal_noise(key, options.seed, vae.latent_shape, suffix) for key in keys]
            with torch.inference_mode():
                drawn = posterior.sample(torch.from_numpy(np.stack(noise)).to(device))
            tensors[f"sample{suffix}"] = drawn
            continue
        tensors[f"mean{suffix}"] = posterior.mean
        if options.content == "moments":
            tensors[f"logvar{suffix}"] = posterior.log_variance
    return {name: tensors[name].float().cpu().numpy() for name in options.tensors}


def _refuse(tensors: Mapping[str, Array], valid: Array, options: EncodeOptions) -> dict[int, str]:
    largest = float(np.finfo(options.dtype).max)
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
