"""Images that are encoded in tiles, and what that costs against encoding them whole."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.data.manifest import Count
from pipeline.encoding.determinism import exact_numerics
from pipeline.errors import is_shortage
from pipeline.vae.posterior import Posterior
from pipeline.vae.tiling import encode_tiled, pixels_per_latent
from pipeline.vae.vae import VAE

_OVERLAP = 4
"""Of a tile's side the part in which it is blended with the next."""


@dataclass(frozen=True)
class TilingCost:
    """Tiles against the whole, over some images that fit into memory whole, in fp32.

    `mean`, `largest`: root-mean-square difference of the means, in units of their own, on average
    and at most. `lowest_decibels`: the least PSNR of an image decoded from tiles' means, against
    that of the whole's, peak 1.
    """

    images: Count
    mean: float
    largest: float
    lowest_decibels: float


def encode_in_tiles(vae: VAE, images: Tensor, tile: int) -> Posterior:
    """q(z|x) of uint8 images [B, C, H, W]; whole where `tile` is 0 or no side is longer."""
    sides = images.shape[-2:]
    if not tile or max(sides) <= tile:
        return vae.encode(images)
    factor = pixels_per_latent(vae)
    fitting = min(tile, sides[0]), min(tile, sides[1])
    return encode_tiled(vae, images, fitting, min(fitting) // _OVERLAP // factor * factor)


def tiling_cost(vae: VAE, images: Tensor, tile: int) -> TilingCost | None:
    """Of these uint8 images [n, C, H, W]; None where they are not tiled, or don't fit whole."""
    if not tile or max(images.shape[-2:]) <= tile:
        return None
    errors, decibels = list[float](), list[float]()
    device = next(vae.parameters()).device
    try:
        with exact_numerics(), torch.inference_mode():
            for image in images.split(1):
                on_device = image.to(device)
                whole = vae.encode(on_device).mean
                tiled = encode_in_tiles(vae, on_device, tile).mean
                errors.append(_rms(tiled - whole) / max(_rms(whole), 1e-30))
                decibels.append(-20 * math.log10(max(_rms(vae.decode(tiled) - vae.decode(whole)),
                                                     1e-5)))  # fmt: skip
    except (RuntimeError, MemoryError) as error:
        if is_shortage(error):
            return None
        raise
    return TilingCost(len(errors), sum(errors) / len(errors), max(errors), min(decibels))


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())
