"""Images cut to the shapes that are encoded: the model's square, or several sizes of one decoding.

Each view gives each image one cut: the whole square, or the bucket that its proportions are nearest
to, resized so that the largest part fits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pipeline.config import PreprocessConfig
from pipeline.data.decode import decoded_image, probe_image
from pipeline.data.preprocess import covered, fit_into, preprocess_into
from pipeline.data.shard_index import RawSample
from pipeline.errors import ConfigError, SampleError
from pipeline.json_value import Json
from pipeline.latents.identity import EncodeOptions
from pipeline.latents.receipt import LatentPart
from pipeline.vae.tiling import pixels_per_latent
from pipeline.vae.vae import VAE

Shape = tuple[int, int]


@dataclass(frozen=True)
class Place:
    """Where a cut goes: its view's size, and its own height and width in pixels."""

    size: int
    shape: Shape


@dataclass(frozen=True)
class Told:
    """What the store tells of a cut, beside the columns."""

    original_size: tuple[int, int]
    crop_box: tuple[int, int, int, int]

    def columns(self) -> Json:
        """As columns of the store."""
        return {"original_size": [*self.original_size], "crop_box": [*self.crop_box]}


@dataclass(frozen=True)
class CutSample:
    """A sample at a position of its shard, and its pixels uint8 [C, H, W] for each place.

    One that can't be read has a `reason` and black pixels.
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
        size = self._preprocess.image_size
        self._plain = Place(size, (size, size))

    def cut(self, position: int, sample: RawSample) -> CutSample:
        """The sample, cut for every view; decoded once."""
        # Where one goes whose size can't be read, so that it is told somewhere.
        places = [Place(view.size, view.shapes[0]) for view in self._views] or [self._plain]
        reason, told = None, dict[Place, Told]()
        cuts: dict[Place, Tensor] = {}
        try:
            if self._views:
                header = probe_image(sample.checked_image())
                full = header.height, header.width
                places = [Place(view.size, view.shape_for(*full)) for view in self._views]
                cuts = self._cut(sample.image, places, full)
                told = {place: self._told(full, place.shape) for place in places}
            else:
                cuts = {self._plain: self._black(self._plain)}
                preprocess_into(cuts[self._plain], sample.checked_image(), self._preprocess)
        except SampleError as error:
            reason = error.reason
            cuts = {place: self._black(place) for place in places}
        return CutSample(position, sample.key, sample.columns, reason, cuts=cuts, told=told)

    def _cut(self, data: bytes, places: Sequence[Place], full: Shape) -> dict[Place, Tensor]:
        preprocess = self._preprocess
        # How much larger the image is than what is wanted of it, where that is least.
        spare = min(min(full[0] / p.shape[0], full[1] / p.shape[1]) for p in places)
        short = math.ceil(min(full) / max(1.0, spare))
        cuts = {place: self._black(place) for place in places}
        with decoded_image(data, channels=preprocess.channels, shrink_to=short) as pixels:
            for out in cuts.values():
                fit_into(out, pixels, preprocess)
        return cuts

    def _told(self, full: Shape, shape: Shape) -> Told:
        height, width = tall, wide = full
        if self._preprocess.crop == "center":
            tall, wide = covered(height, width, *shape)
        return Told(full, ((height - tall) // 2, (width - wide) // 2, tall, wide))

    def _black(self, place: Place) -> Tensor:
        return torch.zeros((self._preprocess.channels, *place.shape), dtype=torch.uint8)


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
