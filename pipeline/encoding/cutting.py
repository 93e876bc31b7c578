"""Images cut to the shapes that are encoded: the model's square, or several sizes of one decoding.

Each view gives each image one cut: the whole square, or the bucket that its proportions are nearest
to, resized so that the largest part fits; and, where asked for, crops of the same shape from random
places.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pipeline.config import PreprocessConfig
from pipeline.data.decode import decoded_image, probe_image
from pipeline.data.preprocess import (
    covered,
    fit_into,
    preprocess_into,
    random_corner,
    sample_draw,
)
from pipeline.data.shard_index import RawSample
from pipeline.errors import ConfigError, SampleError
from pipeline.json_value import Json
from pipeline.latents.identity import CROP_BOXES, EncodeOptions
from pipeline.latents.receipt import LatentPart
from pipeline.vae.tiling import pixels_per_latent
from pipeline.vae.vae import VAE

Shape = tuple[int, int]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Place:
    """Where a cut goes: its view's size, and its own height and width in pixels."""

    size: int
    shape: Shape


@dataclass(frozen=True)
class Told:
    """What the store tells of a cut, beside the columns."""

    original_size: tuple[int, int]
    crop_box: Box
    crop_boxes: tuple[Box, ...]

    def columns(self) -> Json:
        """As columns of the store."""
        boxes = [number for box in self.crop_boxes for number in box]
        own = {"original_size": [*self.original_size], "crop_box": [*self.crop_box]}
        return {**own, CROP_BOXES: boxes} if boxes else own


@dataclass(frozen=True)
class CutSample:
    """A sample at a position of its shard, and its pixels uint8 [cuts, C, H, W] for each place.

    The cut from the centre comes first, random crops follow. One that can't be read has a `reason`
    and black pixels.
    """

    position: int
    key: str
    columns: Json
    reason: str | None
    cuts: dict[Place, Tensor]
    told: dict[Place, Told] = field(default_factory=dict)

    def alone(self, place: Place) -> "CutSample":
        """With one cut, and what is told of it among the columns."""
        told = self.told.get(place)
        columns = {**self.columns, **(told.columns() if told else {})}
        return replace(self, columns=columns, cuts={place: self.cuts[place]}, told={})


class Cutter:
    """Cuts samples for a model and the options of an encoding, from any thread."""

    def __init__(self, preprocess: PreprocessConfig, options: EncodeOptions) -> None:
        self._preprocess, self._views = seen(preprocess, options), options.views
        self._crops, self._seed = options.crops, options.seed
        size = self._preprocess.image_size
        self._plain = Place(size, (size, size))

    def cut(self, position: int, sample: RawSample) -> CutSample:
        """The sample, cut for every view; decoded once."""
        # Where one goes whose size can't be read, so that it is told somewhere.
        places = [Place(view.size, view.shapes[0]) for view in self._views] or [self._plain]
        reason, told = None, dict[Place, Told]()
        cuts: dict[Place, Tensor] = {}
        try:
            if self._views or self._crops:
                header = probe_image(sample.checked_image())
                full = header.height, header.width
                if self._views:
                    places = [Place(view.size, view.shape_for(*full)) for view in self._views]
                draws = [sample_draw(self._seed, n, sample.key) for n in range(self._crops)]
                cuts, decoded = self._cut(sample.image, places, full, draws)
                told = {p: self._told(full, decoded, p.shape, draws) for p in places}
            else:
                cuts = {self._plain: self._black(self._plain)}
                preprocess_into(cuts[self._plain][0], sample.checked_image(), self._preprocess)
        except SampleError as error:
            reason = error.reason
            cuts = {place: self._black(place) for place in places}
        return CutSample(position, sample.key, sample.columns, reason, cuts=cuts, told=told)

    def _cut(
        self, data: bytes, places: Sequence[Place], full: Shape, draws: Sequence[int]
    ) -> tuple[dict[Place, Tensor], Shape]:
        """The cuts, and the height and width that were decoded."""
        preprocess = self._preprocess
        at_random = preprocess.model_copy(update={"crop": "random"})
        # How much larger the image is than what is wanted of it, where that is least.
        spare = min(min(full[0] / p.shape[0], full[1] / p.shape[1]) for p in places)
        short = math.ceil(min(full) / max(1.0, spare))
        cuts = {place: self._black(place) for place in places}
        with decoded_image(data, channels=preprocess.channels, shrink_to=short) as pixels:
            for out in cuts.values():
                fit_into(out[0], pixels, preprocess)
                for crop, draw in zip(out[1:], draws, strict=True):
                    fit_into(crop, pixels, at_random, draw=draw)
            decoded = pixels.shape[0], pixels.shape[1]
        return cuts, decoded

    def _told(self, full: Shape, decoded: Shape, shape: Shape, draws: Sequence[int]) -> Told:
        height, width = tall, wide = full
        if self._preprocess.crop == "center":
            tall, wide = covered(height, width, *shape)
        spare = height - tall, width - wide
        small = covered(*decoded, *shape)
        boxes = []
        for draw in draws:
            # Places are drawn in what was decoded, which may be a half or an eighth of the image.
            corner = random_corner(decoded[0] - small[0], decoded[1] - small[1], draw)
            top, left = (
                min(room, round(at * whole / part))
                for at, room, whole, part in zip(corner, spare, full, decoded, strict=True)
            )
            boxes.append((top, left, tall, wide))
        return Told(full, (spare[0] // 2, spare[1] // 2, tall, wide), tuple(boxes))

    def _black(self, place: Place) -> Tensor:
        cuts = 1 + self._crops
        return torch.zeros((cuts, self._preprocess.channels, *place.shape), dtype=torch.uint8)


def seen(preprocess: PreprocessConfig, options: EncodeOptions) -> PreprocessConfig:
    """How an encoding cuts images: from the centre, also where training cropped at random."""
    size = options.views[0].size if options.views else None
    asked = {"crop": options.crop, "resize": options.resize, "image_size": size}
    return preprocess.held_out().model_copy(
        update={name: value for name, value in asked.items() if value is not None}
    )


def latent_shape_of(vae: VAE, shape: Shape) -> tuple[int, int, int]:
    """(Z, h, w) of images of this height and width."""
    if shape == vae.image_shape[1:]:
        return vae.latent_shape
    factor = pixels_per_latent(vae)
    return vae.latent_shape[0], shape[0] // factor, shape[1] // factor


def place_of(vae: VAE, options: EncodeOptions, part: LatentPart) -> Place:
    """Where the images of a stored part were cut to."""
    if not options.views:
        return Place(part.size, (part.size, part.size))
    factor = pixels_per_latent(vae)
    return Place(part.size, (part.shape[1] * factor, part.shape[2] * factor))


def check_views(vae: VAE, options: EncodeOptions) -> None:
    """Raises `ConfigError` for shapes, or tiles, that the network can't take."""
    if options.tile and options.tile % pixels_per_latent(vae):
        raise ConfigError(
            f"tiles of {options.tile} pixels: this network makes one latent of "
            f"{pixels_per_latent(vae)} x {pixels_per_latent(vae)}, so `--tile` is a multiple."
        )
    if options.crops and seen(vae.preprocess, options).crop != "center":
        raise ConfigError("`--crops` are beside a cut from the centre: give `--crop center`.")
    if not options.views:
        return
    if len({view.size for view in options.views}) < len(options.views):
        raise ConfigError("sizes: each can be given once.")
    if any(view.step for view in options.views) and seen(vae.preprocess, options).crop != "center":
        raise ConfigError("`--buckets` cut from the centre: leave `--crop` out, or give center.")
    factor = pixels_per_latent(vae)
    for view in options.views:
        if odd := [shape for shape in view.shapes if shape[0] % factor or shape[1] % factor]:
            raise ConfigError(
                f"images of {odd[0][0]} x {odd[0][1]} pixels: this network makes one latent of "
                f"{factor} x {factor}, so sizes and steps are multiples of {factor}."
            )
        if not view.shapes:
            raise ConfigError(f"buckets {view.size}:{view.step}: no bucket has so small an area.")
