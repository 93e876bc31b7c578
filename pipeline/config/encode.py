"""The knobs of `jobs.encode`."""

from typing import ClassVar, Literal

from pydantic import Field

from pipeline.config.sections import (
    A_DATASET,
    A_STORE,
    PRECISION,
    REFUSED,
    AllowCustom,
    EncodingTrackingConfig,
    PortionConfig,
    ShardsBelow,
    Url,
)


class EncodeConfig(PortionConfig):
    """`jobs.encode`: a dataset becomes a latent store, exactly once."""

    first: ClassVar[tuple[str, ...]] = (
        "model",
        "data",
        "output",
        "actors",
        "gpus",
        "batch_size",
        "dtype",
        "content",
        "columns",
        "limit",
        "dry_run",
    )

    model: str = Field(description="models:/NAME@ALIAS, models:/NAME/VERSION or a bundle's path.")
    data: Url = Field(description=A_DATASET)
    output: Url = Field(description=A_STORE)
    actors: int = Field(1, ge=0, description="Ray actors; 0: encode in this process.")
    cores: float = Field(1, gt=0, description="CPU cores that one actor asks Ray for.")
    gpus: float | None = Field(
        None, ge=0, description="GPUs per actor; None: 1 where the cluster has any, else 0."
    )
    batch_size: int = Field(64, gt=0, description="Images per batch; part of the store's identity.")
    dtype: Literal["float16", "float32"] = Field("float16", description="Type of stored latents.")
    content: Literal["moments", "mean", "sample"] = Field(
        "moments", description="Mean and log-variance, the mean alone, or one draw per image."
    )
    seed: int = Field(0, ge=0, description="Seed of `--content sample`; part of the identity.")
    flip: bool = Field(False, description="Store the mirrored images' latents as well.")
    columns: tuple[str, ...] = Field((), description="Source columns to copy, such as label.")
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description=PRECISION)
    replace_model: bool = Field(
        False,
        description="Let a store whose current snapshot is of another model become this one's.",
    )
    attempts: int = Field(3, gt=0, description="Tries per shard before it is quarantined.")
    bad_fraction: float = Field(0.001, ge=0, le=1, description=REFUSED)
    shards_below: ShardsBelow = ()
    allow_custom: AllowCustom = ()
    tracking: EncodingTrackingConfig = EncodingTrackingConfig()
