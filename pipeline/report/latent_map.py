"""The latent map: images as points of a plane, some of them marked, and the ways between those.

Every way between two marked images is decoded ahead, so that the page needs no model.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pipeline.figures.canvas import to_array, to_pixels
from pipeline.figures.latents import Floats, to_plane
from pipeline.progress import Progress
from pipeline.vae import VAE

MARKED = 24
"""As many as the alphabet has letters, but for two."""
_STEPS, _FEWEST_STEPS = 9, 3
_MOST_VALUES = 30_000_000
"""Pixel values that are decoded for the ways: 9 steps of 64 x 64 colour images, seconds to minutes
on two cores; of larger images fewer steps."""
_SIDE = 64
"""Of a small picture, in pixels, at most."""
_AT_ONCE = 16
_ATLAS_BYTES = {"images": 1_200_000, "ways": 2_600_000}
"""Of which a third more stands in the page: it stays well below 8 MB, whatever the images."""
_QUALITIES = (90, 80, 65, 45, 25, 10, 4)
_HOPELESS = 8
"""Times its bytes: no PNG of pixels so many becomes small enough, and trying takes seconds."""


@dataclass(frozen=True)
class Encoded:
    """Images `[N, C, H, W]` uint8 with their latent means `[N, Z, h, w]`, paths and labels.

    `shown`: what the images are, in words. `labels`: None where there are none.
    """

    shown: str
    images: Tensor
    means: Tensor
    keys: Sequence[str]
    labels: Sequence[str] | None


@dataclass(frozen=True)
class Atlas:
    """Small pictures of `side` pixels in rows of `columns`, as one file of this media type."""

    media: str
    data: bytes = field(repr=False)
    side: int
    columns: int


@dataclass(frozen=True)
class LatentMap:
    """Points `[N, 2]` in [0, 1], y upwards; picture n of `images` is of point n.

    `marked`: points, and `ways` holds `steps` pictures for each two of them, in the order of
    `itertools.combinations`.
    """

    shown: str
    points: Floats
    axes: tuple[str, str]
    share: float | None
    keys: Sequence[str]
    labels: Sequence[str] | None
    images: Atlas
    marked: Sequence[int]
    steps: int
    ways: Atlas | None


def draw_map(vae: VAE, encoded: Encoded) -> LatentMap:
    """The map of some images; decodes every way between two marked ones."""
    flat = to_array(encoded.means).reshape(len(encoded.means), -1).astype(np.float64)
    points, axes, share = to_plane(flat)
    marked = spread(points, MARKED)
    steps = steps_of(len(marked), math.prod(vae.image_shape))
    ways = _decode_ways(vae, encoded.means[marked], steps) if len(marked) > 1 else None
    side = min(_SIDE, max(encoded.images.shape[-2:]))
    return LatentMap(
        shown=encoded.shown,
        points=_to_unit(points),
        axes=axes,
        share=share,
        keys=encoded.keys,
        labels=encoded.labels,
        images=_atlas(_shrunk(encoded.images, side), 25, _ATLAS_BYTES["images"]),
        marked=marked,
        steps=steps,
        ways=None if ways is None else _atlas(ways, steps * 6, _ATLAS_BYTES["ways"]),
    )


def spread(points: Floats, count: int) -> list[int]:
    """Up to `count` of the points `[N, 2]`, each as far as can be from those before it.

    The first is the one nearest to the middle; points that lie on one another count once.
    """
    if not len(points):
        return []
    chosen = [int(np.linalg.norm(points - points.mean(axis=0), axis=1).argmin())]
    distance = np.linalg.norm(points - points[chosen[0]], axis=1)
    while len(chosen) < count and distance.max() > 0:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return chosen


def steps_of(marked: int, values: int) -> int:
    """Pictures of a way, its ends among them: fewer for images of more `values` each."""
    ways = max(1, math.comb(marked, 2))
    return max(_FEWEST_STEPS, min(_STEPS, 2 + _MOST_VALUES // (ways * values)))


def _decode_ways(vae: VAE, means: Tensor, steps: int) -> npt.NDArray[np.uint8]:
    """Small pictures `[ways * steps, s, s, C]` of the straight ways between `means`."""
    pairs = list(combinations(range(len(means)), 2))
    shares = torch.linspace(0, 1, steps)[1:-1]
    with torch.inference_mode(), Progress("ways", len(pairs) * len(shares), "images") as progress:
        ends = torch.cat([vae.decode(part) for part in means.to(vae.device).split(_AT_ONCE)])
        side = min(_SIDE, max(ends.shape[-2:]))
        small_ends = _shrunk(ends, side)
        between = [means[a].lerp(means[b], share) for a, b in pairs for share in shares.tolist()]
        parts = []
        for part in torch.stack(between).to(vae.device).split(_AT_ONCE):
            parts.append(_shrunk(vae.decode(part), side))
            progress.advance(len(part))
    inner = np.concatenate(parts).reshape(len(pairs), len(shares), *small_ends.shape[1:])
    first = small_ends[[a for a, _ in pairs]][:, None]
    last = small_ends[[b for _, b in pairs]][:, None]
    return np.concatenate([first, inner, last], axis=1).reshape(-1, *small_ends.shape[1:])


def _shrunk(images: Tensor, side: int) -> npt.NDArray[np.uint8]:
    """Images `[N, C, H, W]`, uint8 or in [0, 1], as `[N, side, side, 3]`: what is no square gets a
    margin.
    """
    floats = images.float() if images.is_floating_point() else images
    pixels = np.rint(to_pixels(floats) * 255).astype(np.uint8)
    size = (side, side)
    fitted = (ImageOps.pad(Image.fromarray(each), size, Image.Resampling.BOX) for each in pixels)
    return np.stack([np.asarray(each) for each in fitted])


def _atlas(pictures: npt.NDArray[np.uint8], columns: int, most_bytes: int) -> Atlas:
    """The pictures `[N, s, s, 3]` as one: exact where that is small, else a JPEG that is."""
    count, side = len(pictures), pictures.shape[1]
    columns = min(columns, count)
    rows = -(-count // columns)
    whole = np.zeros((rows * columns, side, side, 3), np.uint8)
    whole[:count] = pictures
    sheet = whole.reshape(rows, columns, side, side, 3).transpose(0, 2, 1, 3, 4)
    image = Image.fromarray(sheet.reshape(rows * side, columns * side, 3))
    if sheet.nbytes <= _HOPELESS * most_bytes:
        data = _saved(image, "PNG")
        if len(data) <= most_bytes:
            return Atlas("image/png", data, side, columns)
    for quality in _QUALITIES:
        data = _saved(image, "JPEG", quality=quality)
        if len(data) <= most_bytes:
            break
    return Atlas("image/jpeg", data, side, columns)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _to_unit(points: Floats) -> Floats:
    """Into [0, 1], one scale for both axes, in the middle of the square."""
    low, high = points.min(axis=0), points.max(axis=0)
    half = float((high - low).max()) / 2 or 1.0
    return np.asarray(((points - (low + high) / 2) / half + 1) / 2)
