"""The knobs of `jobs.demo`."""

from pydantic import Field

from pipeline.config.sections import (
    Section,
)


class DemoConfig(Section):
    """`jobs.demo`: the whole way, on handwritten digits or on a folder of your own."""

    images: str | None = Field(None, description="A folder tree of images; None: digits.")
    steps: int = Field(400, gt=0, description="Training steps.")
