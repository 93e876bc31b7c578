"""The knobs of `jobs.encode`."""

from typing import Literal

from pydantic import Field

from pipeline.config.sections import AllowCustom, Section, TrackingConfig, Url


class EncodeConfig(Section):
    """`jobs.encode`: a dataset becomes a latent store, exactly once."""

    model: str = Field(description="models:/NAME@ALIAS, models:/NAME/VERSION or a bundle's path.")
    data: Url = Field(description="The dataset to encode.")
    output: Url = Field(description="Where the latent store lives.")
    actors: int = Field(1, ge=0, description="Ray actors; 0: encode in this process.")
    cores: float = Field(1, gt=0, description="CPU cores that one actor asks Ray for.")
    gpus: float | None = Field(
        None, ge=0, description="GPUs per actor; None: 1 where the cluster has any, else 0."
    )
    shards_in_flight: int | None = Field(
        None,
        gt=0,
        description="Shards that one actor works on at a time; None: its cores + 1, at most 8.",
    )
    threads: int = Field(1, gt=0, description="Decoding threads per shard in flight.")
    batch_size: int = Field(64, gt=0, description="Images per batch; part of the store's identity.")
    dtype: Literal["float16", "float32"] = Field("float16", description="Type of stored latents.")
    content: Literal["moments", "mean", "sample"] = Field(
        "moments", description="Mean and log-variance, the mean alone, or one draw per image."
    )
    seed: int = Field(0, ge=0, description="Seed of `--content sample`; part of the identity.")
    flip: bool = Field(False, description="Store the mirrored images' latents as well.")
    columns: tuple[str, ...] = Field((), description="Source columns to copy, such as label.")
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="Autocast type.")
    attempts: int = Field(3, gt=0, description="Tries per shard before it is quarantined.")
    deaths: int = Field(
        10,
        gt=0,
        description="Workers that may die over one shard, alone, before it is quarantined.",
    )
    bad_fraction: float = Field(0.001, ge=0, le=1, description="Largest share of failed images.")
    quarantine_exit: int = Field(3, description="Exit code when parts failed past the budget.")
    limit: int | None = Field(
        None, gt=0, description="Encode the first shards that hold this many images; None: all."
    )
    dry_run: bool = Field(
        False, description="Say images, bytes, hours and the store's size; write nothing."
    )
    probe_seconds: float = Field(
        30, gt=0, description="How long --dry-run encodes to find the rate."
    )
    report_images: int = Field(
        16, ge=0, description="Images that the report decodes again; 0: no report."
    )
    allow_custom: AllowCustom = ()
    tracking: TrackingConfig = TrackingConfig()
