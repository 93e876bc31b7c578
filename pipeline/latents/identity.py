"""What decides the bytes of a latent store, but for the processor and torch's release."""

import hashlib
import math
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal

from pydantic import TypeAdapter

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.json_value import Json
from pipeline.latent_scale import UNSAID, LatentScale

Content = Literal["moments", "mean", "sample"]
Precision = Literal["bf16", "fp32"]
StoredType = Literal["float16", "float32", "int8"]

OWN_COLUMNS = {"original_size": "list<int64>[2]", "crop_box": "list<int64>[4]"}
"""Of each image that was cut for this store: its height and width, and top, left, height, width of
what was cut from it, in pixels of the image itself."""
CROP_BOXES = "crop_boxes"
"""The boxes of an image's random crops, one after the other."""
RESERVED_COLUMNS = (*OWN_COLUMNS, CROP_BOXES, "key", "position", "mean", "logvar", "sample")
_SUFFIXES = re.compile(r"(_crop\d+)?(_flipped)?$")
_FORMAT_VERSION = 2
_MOST = 2**20
"""Of a latent's channels and sides, of a batch, of a view's pixels a side: there are no larger."""


@dataclass(frozen=True)
class View:
    """A size that images are encoded at: a square of `size` pixels, or buckets of its area.

    `step` 0: the square. Else the sides of each bucket are multiples of `step`, as many as keep
    within the area, and at most `MOST_STRETCHED` times as long as each other.
    """

    size: int
    step: int = 0

    @cached_property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each bucket, the widest last."""
        if not self.step:
            return ((self.size, self.size),)
        found = set()
        for side in range(self.step, MOST_STRETCHED * self.size + 1, self.step):
            other = self.size**2 // side // self.step * self.step
            if other and max(side, other) <= MOST_STRETCHED * min(side, other):
                found |= {(side, other), (other, side)}
        # Of two that are equally wide the larger one.
        best = {height / width: (height, width) for height, width in sorted(found)}
        return tuple(sorted(best.values(), key=lambda shape: (shape[1] / shape[0], shape)))

    def shape_for(self, height: int, width: int) -> tuple[int, int]:
        """The bucket that an image comes nearest to, by the ratio of the ratios."""
        wanted = math.log(width / height)
        return min(
            self.shapes, key=lambda s: (abs(math.log(s[1] / s[0]) - wanted), -s[0] * s[1], s)
        )


MOST_STRETCHED = 4
"""Beyond it are panoramas, so few that each would be a bucket of its own."""


@dataclass(frozen=True)
class AlsoEncoder:
    """A user's encoder beside the VAE: its import path, the digest that it gives of its weights and
    code, and its columns with how many numbers each has."""

    path: str
    digest: str
    columns: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class EncodeOptions:
    """Everything about an encoding, apart from the model, that changes a stored byte.

    `content`: mean and log-variance, the mean alone, or one draw per image with `seed`. `flip` adds
    the mirrored image's latents as columns of their own, `crops` those of so many cuts at places
    that `seed` draws. `batch_size` counts: a convolution's rounding depends on the batch's shape.
    `columns` are copied from the source samples.
    """

    precision: Precision
    batch_size: int = 64
    dtype: StoredType = "float16"
    content: Content = "moments"
    seed: int = 0
    flip: bool = False
    columns: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    """Of each column, as `pipeline.data.column_types` names them; none: all of them are text."""
    where: str = ""
    """Only samples whose columns meet this are encoded, as `storage.row_filter` spells it."""
    where_kinds: tuple[tuple[str, str], ...] = ()
    """The columns that `where` asks for, each with its kind."""
    views: tuple[View, ...] = ()
    """Sizes that the images are cut to, each decoded once; none: the model's own size."""
    crop: Literal["center", "pad", "stretch"] | None = None
    resize: Literal["bilinear", "bicubic"] | None = None
    """As images are cut for this store; None: as the model's preprocessing says."""
    also: tuple[AlsoEncoder, ...] = ()
    tile: int = 0
    """Pixels of the squares that larger images are encoded in; 0: each whole."""
    crops: int = 0

    def __post_init__(self) -> None:
        theirs = [name for each in self.also for name, _ in each.columns]
        for name in (*self.columns, *theirs):
            if [*self.columns, *theirs].count(name) > 1:
                raise ConfigError(f"columns: two are called {name!r}. Rename one of them.")
            if _SUFFIXES.sub("", name) in RESERVED_COLUMNS:
                raise ConfigError(
                    f"columns: {name!r} is the name of one of the store's own columns "
                    f"({', '.join(RESERVED_COLUMNS)}). Rename it in the source, or leave it out."
                )

    @property
    def column_kinds(self) -> dict[str, str]:
        """The kind of each column, by name, in the file's order."""
        kinds = self.kinds or ("",) * len(self.columns)
        own = dict(OWN_COLUMNS) if self.views or self.crops else {}
        if self.crops:
            own[CROP_BOXES] = f"list<int64>[{4 * self.crops}]"
        theirs = {n: f"list<float32>[{size}]" for each in self.also for n, size in each.columns}
        return dict(zip(self.columns, kinds, strict=True)) | own | theirs

    def to_json(self) -> Json:
        """A JSON-able dictionary of every option that counts."""
        options = {
            **asdict(self), "columns": list(self.columns), "kinds": list(self.kinds),
            "where_kinds": [list(pair) for pair in self.where_kinds],
            # A seed that nothing draws with must not split stores that are equal.
            "seed": self.seed if self.content == "sample" or self.crops else 0,
        }  # fmt: skip
        if not set(self.kinds) - {"", "string"}:
            del options["kinds"]  # text is what columns are when nothing is said
        if not self.where:
            del options["where"], options["where_kinds"]
        if not self.also:
            del options["also"]
        if not self.tile:
            del options["tile"]
        if not self.crops:
            del options["crops"]
        options["views"] = [asdict(view) for view in self.views]
        return options

    @property
    def value_type(self) -> Literal["float16", "float32"]:
        """Of the numbers that readers get: eight bits stand for float32."""
        return "float32" if self.dtype == "int8" else self.dtype

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of the tensor columns, in the file's order."""
        names = {"moments": ("mean", "logvar"), "mean": ("mean",), "sample": ("sample",)}
        plain = names[self.content]
        return tuple(
            name + cut + mirrored
            for cut in ("", *map(crop_suffix, range(self.crops)))
            for mirrored in ("", "_flipped")[: 1 + self.flip]
            for name in plain
        )


def crop_suffix(number: int) -> str:
    """The ending of the names of a random crop's tensors; the first crop is number 0."""
    return f"_crop{number + 1}"


@dataclass(frozen=True)
class Identity:
    """What decides an image's numbers but for the processor and torch's release; two never mix."""

    model_digest: str
    preprocess_digest: str
    latent_shape: tuple[int, int, int]
    options: EncodeOptions
    scale: LatentScale = UNSAID
    """What the model says of its latents: no number of them follows from it, but what they mean."""

    def __post_init__(self) -> None:
        sizes = (*self.latent_shape, self.options.batch_size)
        if min(sizes) < 1 or max(sizes) > _MOST:
            raise ValueError(
                f"latents of the shape {self.latent_shape} in batches of {self.options.batch_size}"
            )
        views = self.options.views
        if any(not 0 < view.size <= _MOST or not 0 <= view.step <= view.size for view in views):
            raise ValueError(f"images of more than {_MOST:,} pixels a side, or of none")

    @property
    def digest(self) -> str:
        """32 hexadecimal digits."""
        return hashlib.sha256(storage.canonical_json(self.to_json())).hexdigest()[:32]

    def to_json(self) -> Json:
        """A JSON-able dictionary of every field that counts."""
        return {
            "version": _FORMAT_VERSION,
            "model_digest": self.model_digest,
            "preprocess_digest": self.preprocess_digest,
            "latent_shape": list(self.latent_shape),
            "options": self.options.to_json(),
            "scale": self.scale.to_json(),
        }

    @classmethod
    def from_json(cls, value: Json) -> "Identity":
        """The inverse of `to_json`; raises `ValueError` for anything else."""
        return TypeAdapter(cls).validate_python(value)
