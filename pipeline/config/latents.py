"""The configuration of the jobs around latent stores."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.config.sections import Section, TrackingConfig, Url


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
    tracking: TrackingConfig = TrackingConfig()


class DecodeConfig(Section):
    """`jobs.decode`: latents of a store back to images."""

    store: Url = Field(description="The latent store.")
    output: Url = Field(description="Where the PNG images go.")
    model: str | None = Field(
        None, description="Where the store's model is; None: where it was when it encoded."
    )
    keys: tuple[str, ...] = Field((), description="Samples to decode; none: all, up to --limit.")
    interpolate: tuple[str, str] | None = Field(
        None, description="Two keys: a straight walk in --steps between their latents."
    )
    edit: tuple[str, str] | None = Field(
        None, description="Two labels: each image moves from the first's mean to the second's."
    )
    axis: int | None = Field(
        None, ge=0, description="Each image moves 3 deviations along this principal axis; 0 first."
    )
    steps: int = Field(8, gt=1, description="Images of a walk.")
    sheet: bool = Field(False, description="One contact sheet instead of a file per image.")
    limit: int | None = Field(None, gt=0, description="At most this many images; None: all.")
    batch_size: int = Field(64, gt=0, description="Latents decoded at a time.")
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [self.interpolate is not None, self.edit is not None, self.axis is not None]
        if sum(ways) > 1:
            raise ValueError("give one of --interpolate, --edit and --axis")
        return self


class ExportConfig(Section):
    """`jobs.export`: a store as WebDataset tars."""

    store: Url = Field(description="The latent store.")
    output: Url = Field(description="A folder that is new, empty or holds the same export.")
    format: Literal["npy", "safetensors"] = Field("npy", description="How tensors are stored.")


class StoresConfig(Section):
    """`jobs.stores`: what a latent store holds, and what of it nothing names."""

    output: Url = Field(description="The latent store, as jobs.encode calls it.")
    gc: bool = Field(False, description="Look for what no snapshot names; nothing is removed.")
    delete: bool = Field(False, description="With --gc: remove it.")
    unfinished: bool = Field(
        False, description="With --gc: also what encodings that never ended made; none may run."
    )

    @model_validator(mode="after")
    def _delete_after_gc(self) -> Self:
        if (self.delete or self.unfinished) and not self.gc:
            raise ValueError("--delete and --unfinished belong to --gc; look at --gc alone first")
        return self
