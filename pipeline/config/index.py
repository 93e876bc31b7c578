"""The knobs of `jobs.index`."""

from typing import Literal

from pydantic import Field

from pipeline.config.sections import (
    CHECK,
    BudgetConfig,
    Url,
)


class IndexConfig(BudgetConfig):
    """`jobs.index`: adopt existing WebDataset tars in place, without copying them."""

    source: tuple[Url, ...] = Field(
        min_length=1, description="Tars, or folders and prefixes of tars; braces {000..009} too."
    )
    output: Url = Field(description="Where the dataset goes.")
    verify: Literal["full", "header", "none"] = Field("header", description=CHECK)
    image_extension: str | None = Field(
        None, description="The image's, where samples have several; None: the plain one, as x.png."
    )
