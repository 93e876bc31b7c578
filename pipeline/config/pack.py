"""The knobs of `jobs.pack`."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.sections import (
    CHECK,
    PortionConfig,
    Url,
)

QUALITY = 90
"""Of images that are encoded anew: above it files grow faster than anybody sees a difference."""


class PackConfig(PortionConfig):
    """`jobs.pack`: folders, archives and tables of images become a sharded dataset."""

    interrupted: ClassVar[str] = "finished shards are kept; the same command packs the rest."

    first: ClassVar[tuple[str, ...]] = (
        "source",
        "output",
        "append",
        "holdout",
        "annotations",
        "verify",
        "encoding",
        "shard_bytes",
        "limit",
        "dry_run",
    )

    source: tuple[Url, ...] = Field(
        (),
        description="Folders, prefixes, globs; tar, zip, Parquet or Arrow files that hold images; "
        "tables (.csv, .tsv, .jsonl, .parquet) whose rows name them.",
    )
    output: Url = Field(description="Where the dataset goes.")
    append: bool = Field(False, description="Add what an existing dataset has not seen yet.")
    remove: tuple[str, ...] = Field(
        (), description="Paths (or keys) of samples to remove (with --append)."
    )
    retry_rejected: bool = Field(
        False, description="With --append: read only what was rejected or ignored before."
    )
    deduplicate: bool = Field(
        False,
        description="Of inputs with the same bytes one counts alone: the one packed "
        "before, else the first by a hash of its path; rejects.jsonl lists the others.",
    )
    image_column: str | None = Field(
        None, description="The column of tables that holds the images; None: the one that does."
    )
    below: tuple[Url, ...] = Field(
        (),
        description="Prefixes below which the rows of a list may name inputs, besides its own "
        "folder.",
    )
    repack: tuple[str, ...] = Field(
        (), description="Damaged shards, as jobs.verify names them, to pack anew (with --append)."
    )
    shard_bytes: int = Field(256 * 2**20, ge=4096, description="Target size of a shard, in bytes.")
    holdout: float = Field(
        0.0, ge=0, lt=1, description="Share split off by content hash into OUTPUT/holdout."
    )
    verify: Literal["full", "header"] = Field("full", description=CHECK)
    annotations: Url | None = Field(
        None, description="Labels and captions by path: a .csv, .tsv, .jsonl or .parquet table."
    )
    unmatched: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Largest share of images without a row, and of rows without an image, that is "
        "no error.",
    )
    encoding: str = Field(
        "keep",
        pattern=r"^(keep|(jpeg|webp)(:([1-9]\d?|100))?)$",
        description="keep: the original bytes; jpeg or webp, with a quality as jpeg:95 (without "
        f"{QUALITY}): each image is encoded anew.",
    )
    short_side: int | None = Field(
        None, gt=0, description="Shorter side after encoding anew, in pixels; None: as it is."
    )
    min_side: int = Field(1, gt=0, description="Images with a shorter side are rejected, pixels.")
    checksum: bool = Field(
        False, description="With --append: compare contents, not sizes and tags of files."
    )
    workers: int | None = Field(None, gt=0, description="Cores to use; None: all.")
    ignore: tuple[str, ...] = Field(
        (),
        description="Kinds of inputs that may be ignored, such as .dng or hidden; all others that "
        "look like images count against bad_fraction.",
    )

    @property
    def new_encoding(self) -> tuple[Literal["keep", "jpeg", "webp"], int]:
        """The encoding and its quality, from 1 to 100."""
        kind, _, quality = self.encoding.partition(":")
        kinds: dict[str, Literal["keep", "jpeg", "webp"]] = {"jpeg": "jpeg", "webp": "webp"}
        return kinds.get(kind, "keep"), int(quality or QUALITY)

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if not self.source and not self.remove:
            raise ValueError("nothing to pack: give `--source URL` (or `--remove KEYS`)")
        if self.repack and not (self.append and self.source):
            raise ValueError("repack needs `--append`, and the `--source URL` of the images")
        if self.retry_rejected and not (self.append and self.source):
            raise ValueError(
                "retry_rejected needs `--append`, and the `--source URL` of the images"
            )
        if self.short_side is not None and self.encoding == "keep":
            raise ValueError(
                "short_side needs `--encoding jpeg` or webp: kept bytes keep their size"
            )
        return self
