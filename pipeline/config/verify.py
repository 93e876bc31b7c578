"""The knobs of `jobs.verify`."""

from typing import Self

from pydantic import Field, model_validator

from pipeline.config.sections import (
    AllowCustom,
    Section,
    TrackingConfig,
    Url,
)


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
    allow_custom: AllowCustom = ()
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
