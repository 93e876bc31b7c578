"""Images too large for memory, encoded and decoded tile by tile, and what that costs in truth.

A tile's network sees neither the rest of the image (attention, group statistics) nor what lies
beyond its edge, so tiles are an approximation: overlaps are blended, and `tiling_error` measures
what is left against the untiled result.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.vae.posterior import Posterior, posterior_from_moments
from pipeline.vae.vae import VAE


@dataclass(frozen=True)
class TilingError:
    """Root-mean-square differences between tiled and untiled results for one image.

    mean: of the posterior's means, in units of their own root-mean-square. deviation: of the log
    deviations, in nats. image: of the decoded image, in units of the whole range [0, 1].
    """

    mean: float
    deviation: float
    image: float


Tile = int | tuple[int, int]
"""Pixels of a square's side, or height and width."""


def encode_tiled(vae: VAE, images: Tensor, tile: Tile, overlap: int) -> Posterior:
    """q(z|x) of uint8 images `[B, C, H, W]` of any size, by tiles of `tile` pixels.

    `tile`, `overlap`, H and W are multiples of the network's pixels per latent. Only networks whose
    latent is a grid can do it; raises `ModelError` for the others.
    """
    factor, sides = pixels_per_latent(vae), _sides(tile)
    _check(factor, sides, overlap, images.shape[-2:])

    def moments(part: Tensor) -> Tensor:
        posterior = vae.encode(part)
        return torch.cat([posterior.mean, posterior.log_variance], dim=1)

    blended = _blend(images, sides, overlap, moments, 1 / factor)
    return posterior_from_moments("diagonal", blended, vae.latent_shape)


def decode_tiled(vae: VAE, latents: Tensor, tile: int, overlap: int) -> Tensor:
    """The mean image `[B, C, H, W]` in [0, 1] of latents `[B, Z, h, w]`, tile by tile.

    `tile` and `overlap` are in pixels of the image, as in `encode_tiled`.
    """
    factor = pixels_per_latent(vae)
    height, width = latents.shape[-2:]
    _check(factor, (tile, tile), overlap, (height * factor, width * factor))
    side = tile // factor
    return _blend(latents, (side, side), overlap // factor, vae.decode, factor)


@torch.no_grad()
def tiling_error(vae: VAE, image: Tensor, tile: int, overlap: int) -> TilingError:
    """What tiling changes for one uint8 image `[C, H, W]` that fits into memory whole."""
    whole, tiled = vae.encode(image[None]), encode_tiled(vae, image[None], tile, overlap)
    decoded = decode_tiled(vae, whole.mean, tile, overlap)
    scale = _rms(whole.mean)
    return TilingError(
        mean=_rms(tiled.mean - whole.mean) / scale if scale else 0.0,
        deviation=_rms(tiled.log_variance - whole.log_variance) / 2,
        image=_rms(decoded - vae.decode(whole.mean)),
    )


def pixels_per_latent(vae: VAE) -> int:
    """In each direction; raises `ModelError` for networks whose latents are no grid."""
    factor = vae.pixels_per_latent
    if factor is None:
        raise ModelError(
            f"a {vae.model_config.kind} network with latents of {vae.latent_shape} take no "
            "other size, nor tiles: they are no grid of the image. Use kind autoencoder_kl."
        )
    return factor


def _sides(tile: Tile) -> tuple[int, int]:
    return (tile, tile) if isinstance(tile, int) else tile


def _check(factor: int, tile: tuple[int, int], overlap: int, size: tuple[int, ...]) -> None:
    wrong = [value for value in (*tile, overlap, *size) if value % factor]
    larger = any(one > side for one, side in zip(tile, size, strict=True))
    if wrong or not 0 <= overlap < min(tile) or larger:
        raise ModelError(
            f"tiles of {tile[0]} x {tile[1]} pixels with {overlap} of overlap don't fit images of "
            f"{tuple(size)}: all are multiples of {factor}, and overlap < tile <= the image's "
            "sides."
        )


def _blend(
    values: Tensor,
    tile: tuple[int, int],
    overlap: int,
    work: Callable[[Tensor], Tensor],
    scale: float,
) -> Tensor:
    """`work` on each tile of `values`, weighted down linearly across overlaps."""
    height, width = values.shape[-2:]
    down, across = (
        _ramp(round(side * scale), round(overlap * scale)).to(values.device) for side in tile
    )
    window = down[:, None] * across[None]
    places = [
        (top, left)
        for top in _starts(height, tile[0], overlap)
        for left in _starts(width, tile[1], overlap)
    ]

    def covered(top: int, left: int) -> tuple[slice, slice]:
        return (
            slice(round(top * scale), round((top + tile[0]) * scale)),
            slice(round(left * scale), round((left + tile[1]) * scale)),
        )

    weights = torch.zeros(round(height * scale), round(width * scale), device=values.device)
    for place in places:
        weights[covered(*place)] += window
    total: Tensor | None = None
    for top, left in places:
        done = work(values[..., top : top + tile[0], left : left + tile[1]])
        if total is None:
            total = done.new_zeros(*done.shape[:2], *weights.shape)
        rows, columns = covered(top, left)
        total[..., rows, columns] += done * (window / weights[rows, columns])
    assert total is not None, "there is at least one tile"
    return total


def _starts(size: int, tile: int, overlap: int) -> Iterator[int]:
    """Where tiles begin; the last one ends with the image and overlaps more."""
    count = math.ceil((size - overlap) / (tile - overlap))
    for number in range(count):
        yield min(number * (tile - overlap), size - tile)


def _ramp(length: int, overlap: int) -> Tensor:
    inside = torch.arange(length, dtype=torch.float32)
    nearest = torch.minimum(inside, length - 1 - inside) + 1
    return (nearest / (overlap + 1)).clamp(max=1)


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())
