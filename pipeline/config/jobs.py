"""The configuration of each job: what its flags and YAML keys are made from."""

import warnings
from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.config.sections import (
    Section,
    TrackingConfig,
    Url,
)


class PackConfig(Section):
    """`jobs.pack`: folders, tars and zips of images become a sharded dataset."""

    source: tuple[Url, ...] = Field(
        (), description="Folders, tar or zip archives, globs, object-storage prefixes."
    )
    output: Url = Field(description="Where the dataset goes.")
    append: bool = Field(False, description="Add what an existing dataset has not seen yet.")
    remove: tuple[str, ...] = Field((), description="Keys to remove (with --append).")
    repack: tuple[str, ...] = Field(
        (), description="Damaged shards, as jobs.verify names them, to pack anew (with --append)."
    )
    shard_bytes: int = Field(256 * 2**20, ge=4096, description="Target size of a shard, in bytes.")
    holdout: float = Field(
        0.0, ge=0, lt=1, description="Share split off by content hash into OUTPUT/holdout."
    )
    verify: Literal["full", "header"] = Field("full", description="How each image is checked.")
    annotations: Url | None = Field(
        None, description="Labels and captions by path: a .csv, .tsv, .jsonl or .parquet table."
    )
    encoding: Literal["keep", "jpeg", "webp"] = Field(
        "keep", description="keep: the original bytes; else each image is encoded anew."
    )
    quality: int = Field(90, ge=1, le=100, description="Quality of the new encoding.")
    short_side: int | None = Field(
        None, gt=0, description="Shorter side after encoding anew, in pixels; None: as it is."
    )
    min_side: int = Field(1, gt=0, description="Images with a shorter side are rejected, pixels.")
    pixel_limit: int = Field(
        89_478_485, gt=0, description="Images of more pixels are rejected as bombs."
    )
    checksum: bool = Field(
        False, description="With --append: compare contents, not sizes and tags of files."
    )
    limit: int | None = Field(None, gt=0, description="Pack that many inputs at most; None: all.")
    dry_run: bool = Field(False, description="Say how many, how large and how long, and end.")
    probe_seconds: float = Field(5, gt=0, description="How long --dry-run inspects, in seconds.")
    workers: int | None = Field(None, gt=0, description="Cores to use; None: all.")
    bad_fraction: float = Field(
        0.01, ge=0, le=1, description="Largest share of rejected inputs that still exits with 0."
    )
    quarantine_exit: int = Field(3, description="Exit code when the rejected exceed the budget.")

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if not self.source and not self.remove:
            raise ValueError("give --source URL (or --remove KEYS)")
        if self.repack and not (self.append and self.source):
            raise ValueError("repack needs --append, and the --source of the images")
        if self.short_side is not None and self.encoding == "keep":
            raise ValueError("short_side needs --encoding jpeg or webp: kept bytes keep their size")
        return self


class IndexConfig(Section):
    """`jobs.index`: adopt existing WebDataset tars in place, without copying them."""

    source: tuple[Url, ...] = Field(
        min_length=1, description="Tars, or folders and prefixes of tars; braces {000..009} too."
    )
    output: Url = Field(description="Where manifest and indexes go.")
    verify: Literal["full", "header", "none"] = Field(
        "header", description="How each image is checked: decoded, by its header, or not."
    )
    workers: int | None = Field(None, gt=0, description="Threads; None: one per core.")
    bad_fraction: float = Field(
        0.01, ge=0, le=1, description="Largest share of rejected samples that still exits with 0."
    )
    quarantine_exit: int = Field(3, description="Exit code when the rejected exceed the budget.")


class EvaluateConfig(Section):
    """`jobs.evaluate`: exact held-out numbers and pictures of a model."""

    model: str = Field(
        description="models:/NAME@ALIAS, models:/NAME/VERSION, a bundle's path or a finished run."
    )
    storage: Url = Field("./runs", description="Where runs live, for models given as runs.")
    data: Url = Field(description="The dataset, usually the hold-out.")
    output: Url | None = Field(None, description="Folder for report and pictures; None: none.")
    importance_samples: int = Field(64, gt=0, description="K of the IWAE_K bound.")
    batch_size: int = Field(100, gt=0, description="Images per batch, over all workers.")
    seed: int = Field(0, ge=0, description="Seed of the noise.")
    workers: int = Field(0, ge=0, description="Ray tasks that share the images; 0: this process.")
    compare: tuple[str, ...] = Field(
        (), description="More models or runs, set beside it image by image."
    )
    split_images: int = Field(
        64, ge=0, le=256, description="First images whose posterior gap is split in two; 0: none."
    )
    latents: int = Field(
        10_000, gt=0, description="First images whose posteriors are kept for latent statistics."
    )
    tracking: TrackingConfig = TrackingConfig()


class ExplainConfig(Section):
    """`jobs.explain`: what each number means, with this run's own figures."""

    run: str | None = Field(None, description="A finished run's name.")
    storage: Url = Field("./runs", description="Where runs live (with --run).")
    model: str | None = Field(
        None, description="Instead of a run: models:/NAME@ALIAS, models:/NAME/VERSION or a bundle."
    )
    data: Url | None = Field(None, description="Images to measure on; None: the run's hold-out.")
    output: Url | None = Field(None, description="Folder for page and pictures; None: none.")
    importance_samples: int = Field(64, gt=0, description="K of the IWAE_K bound.")
    seed: int = Field(0, ge=0, description="Seed of the noise.")
    beta: float | None = Field(
        None, ge=0, description="Weight of the KL in training; None: the run's, 1 for a model."
    )
    my_elbo: float | None = Field(None, description="An ELBO you got elsewhere, nats per image.")
    my_kl: float | None = Field(None, description="A KL you got elsewhere, nats per image.")
    my_log_likelihood: float | None = Field(
        None, description="An E log p(x|z) you got elsewhere, nats per image."
    )
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _run_or_model(self) -> Self:
        if (self.run is None) == (self.model is None):
            raise ValueError("give --run NAME, or --model URI with --data URL, and not both")
        return self


class VerifyConfig(Section):
    """`jobs.verify`: prove a dataset or a latent store whole."""

    dataset: Url | None = Field(None, description="A dataset's URL.")
    store: Url | None = Field(None, description="A latent store's URL.")
    worlds: tuple[int, ...] = Field(
        (1, 3, 8), description="Numbers of ranks for which the order of a dataset is proved."
    )
    global_batch_size: int = Field(
        256, gt=0, description="Images per step over all ranks, of the order that is proved."
    )
    sample: int = Field(
        0, ge=0, description="With --store: encode this many random images again, and compare."
    )
    seed: int = Field(0, ge=0, description="Chooses the images of --sample.")
    model: str | None = Field(
        None, description="Where the store's model is for --sample; None: where it was."
    )
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if any(not 0 < world <= self.global_batch_size for world in self.worlds):
            raise ValueError(
                f"worlds: give numbers from 1 to global_batch_size {self.global_batch_size}: each "
                "rank needs a slot of every batch"
            )
        if (self.dataset is None) == (self.store is None):
            raise ValueError("give --dataset URL or --store URL, and not both")
        if self.sample and self.store is None:
            raise ValueError("--sample compares latents with images: give --store URL")
        return self


class PullConfig(Section):
    """`jobs.pull`: a registered model's bundle to disk, checksums verified."""

    model: str = Field(description="models:/NAME@ALIAS or models:/NAME/VERSION.")
    output: Url = Field(description="A local folder that is new, empty or holds the same bundle.")
    tracking: TrackingConfig = TrackingConfig()


with warnings.catch_warnings():
    # A field called `register` hides `ABCMeta.register`, which nobody calls.
    warnings.simplefilter("ignore", UserWarning)

    class ModelsConfig(Section):
        """`jobs.models`: list the registry; add, promote, take back or trace a version."""

        register: Url | None = Field(None, description="A bundle's or a diffusers VAE's folder.")
        promote: str | None = Field(
            None,
            description="models:/NAME@ALIAS or models:/NAME/VERSION: champion, if it beats it.",
        )
        data: Url | None = Field(
            None, description="With --promote: measure both on this hold-out; None: as registered."
        )
        rollback: str | None = Field(
            None, description="A model's NAME: the champion before is champion again."
        )
        lineage: str | None = Field(
            None, description="A version's URI: dataset, run, model and latent stores."
        )
        tracking: TrackingConfig = TrackingConfig()

        @model_validator(mode="after")
        def _one_thing(self) -> Self:
            asked = [self.register, self.promote, self.rollback, self.lineage]
            if sum(each is not None for each in asked) > 1:
                raise ValueError("give one of --register, --promote, --rollback, --lineage")
            if self.data is not None and self.promote is None:
                raise ValueError("data belongs to --promote: give both or neither")
            return self


class DemoConfig(Section):
    """`jobs.demo`: the whole way, on handwritten digits or on a folder of your own."""

    images: str | None = Field(None, description="A folder tree of images; None: digits.")
    steps: int = Field(400, gt=0, description="Training steps.")
    workers: int = Field(2, ge=1, description="Ray Train workers and encoding actors.")
