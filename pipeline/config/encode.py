"""The knobs of `jobs.encode`."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.sections import (
    A_DATASET,
    A_STORE,
    NAMED_MODEL,
    REFUSED,
    SEED,
    AllowCustom,
    EncodingTrackingConfig,
    PortionConfig,
    Resize,
    ShardsBelow,
    Url,
)


class EncodeConfig(PortionConfig):
    """`jobs.encode`: a dataset becomes a latent store, exactly once."""

    interrupted: ClassVar[str] = "encoded shards are kept; the same command encodes the rest."

    first: ClassVar[tuple[str, ...]] = (
        "model",
        "data",
        "output",
        "actors",
        "batch_size",
        "dtype",
        "columns",
        "where",
        "image_size",
        "buckets",
        "limit",
        "dry_run",
    )

    model: str = Field(description=NAMED_MODEL)
    data: Url = Field(description=A_DATASET)
    output: Url = Field(description=A_STORE)
    actors: int = Field(1, ge=0, description="Ray actors; 0: encode in this process.")
    cores: float = Field(1, gt=0, description="CPU cores that one actor asks Ray for.")
    gpus: float | None = Field(
        None, ge=0, description="GPUs per actor; None: 1 where the cluster has any, else 0."
    )
    batch_size: int = Field(64, gt=0, description="Images per batch; part of the store's identity.")
    dtype: Literal["float16", "float32", "int8"] = Field(
        "float16",
        description="Type of stored latents; int8: 255 steps for each image and channel, what they "
        "cost is measured.",
    )
    content: Literal["moments", "mean", "sample"] = Field(
        "moments", description="Mean and log-variance, the mean alone, or one draw per image."
    )
    seed: int = Field(0, ge=0, description=SEED)
    flip: bool = Field(False, description="Store the mirrored images' latents as well.")
    crops: int = Field(
        0,
        ge=0,
        le=100,
        description="Store the latents of so many random crops of each image as well, by `seed`.",
    )
    columns: tuple[str, ...] = Field(
        (),
        description="Source columns to copy, such as label; NAME:KIND where later images need a "
        "wider kind than the first (caption:list<string>).",
    )
    also: tuple[str, ...] = Field(
        (),
        description="Your own encoders to run beside the VAE, as package.module:Class: vectors of "
        "each image or its columns (text embeddings, CLIP, DINO): docs/extend.md.",
    )
    image_size: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (), description="Sizes in pixels to encode at, each image decoded once; none: the model's."
    )
    buckets: tuple[Annotated[str, Field(pattern=r"^[1-9]\d{0,4}:[1-9]\d{0,4}$")], ...] = Field(
        (),
        description="SIZE:STEP: each image in the shape nearest to its own, of SIZE x SIZE pixels' "
        "area at most, sides multiples of STEP (256:64).",
    )
    crop: Literal["center", "pad", "stretch"] | None = Field(
        None, description="How a rectangle becomes a square; None: as the model was trained."
    )
    resize: Resize | None = Field(
        None, description="Filter of the resizing, antialiased; None: as the model was trained."
    )
    tile: int | None = Field(
        None,
        gt=0,
        description="Encode larger images in squares of so many pixels, which overlap by a quarter "
        "and are blended; what that costs is measured. None: each whole.",
    )
    where: str | None = Field(
        None,
        description="Encode only images whose columns meet this, such as 'aesthetic >= 5 and label "
        'in ["cat"]\'; part of the identity. None: all.',
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="Type of the network's arithmetic; auto: bf16 where the first batch shows that "
        "the stored means stay the same, else fp32.",
    )
    replace_model: bool = Field(
        False,
        description="Let a store whose current snapshot is of another model become this one's.",
    )
    attempts: int = Field(3, gt=0, description="Tries per shard before it is quarantined.")
    bad_fraction: float = Field(0.001, ge=0, le=1, description=REFUSED)
    shards_below: ShardsBelow = ()
    allow_custom: AllowCustom = ()
    tracking: EncodingTrackingConfig = EncodingTrackingConfig()

    @model_validator(mode="after")
    def _one_kind_of_size(self) -> Self:
        if self.image_size and self.buckets:
            raise ValueError("give --image-size or --buckets; several of each are possible")
        return self
