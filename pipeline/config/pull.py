"""The knobs of `jobs.pull`."""

from pydantic import Field

from pipeline.config.sections import (
    A_NEW_FOLDER,
    Section,
    Url,
)


class PullConfig(Section):
    """`jobs.pull`: a registered model's bundle to disk, checksums verified."""

    model: str = Field(description="models:/NAME@ALIAS or models:/NAME/VERSION.")
    output: Url = Field(description=A_NEW_FOLDER)
