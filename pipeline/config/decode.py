"""The knobs of `jobs.decode`."""

from typing import Self

from pydantic import Field, model_validator

from pipeline.config.sections import (
    A_STORE,
    LIMIT,
    MODEL_OF_STORE,
    SIZE,
    AllowCustom,
    Section,
    Url,
)


class DecodeConfig(Section):
    """`jobs.decode`: latents of a store back to images."""

    store: Url = Field(description=A_STORE)
    output: Url = Field(description="Where the PNG images go.")
    size: int | None = Field(None, gt=0, description=SIZE)
    model: str | None = Field(None, description=MODEL_OF_STORE)
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
    limit: int | None = Field(None, gt=0, description=LIMIT)
    allow_custom: AllowCustom = ()

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [self.interpolate is not None, self.edit is not None, self.axis is not None]
        if sum(ways) > 1:
            raise ValueError("give one of `--interpolate`, `--edit` and `--axis`")
        return self
