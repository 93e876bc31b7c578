"""The knobs of `jobs.index`."""

from typing import Literal

from pydantic import Field

from pipeline.config.sections import (
    Section,
    Url,
)


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
