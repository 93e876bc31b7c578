"""The knobs of `jobs.verify`."""

from typing import Self

from pydantic import Field, model_validator

from pipeline.config.sections import (
    A_DATASET,
    A_STORE,
    MODEL_OF_STORE,
    AllowCustom,
    Section,
    ShardsBelow,
    Url,
)

PROVED_BATCH = 256
"""Images per step of the order that is proved. The order is cut into lanes and chunks alike for any
batch; this one, the default of a training, has room for as many ranks."""


class VerifyConfig(Section):
    """`jobs.verify`: prove a dataset or a latent store whole."""

    dataset: Url | None = Field(None, description=A_DATASET)
    store: Url | None = Field(None, description=A_STORE)
    keys: bool = Field(False, description="Also list the samples: key and path, shard by shard.")
    worlds: tuple[int, ...] = Field(
        (1, 3, 8), description="Numbers of ranks for which the order of a dataset is proved."
    )
    sample: int = Field(
        0, ge=0, description="With --store: encode this many random images again, and compare."
    )
    model: str | None = Field(None, description=MODEL_OF_STORE)
    shards_below: ShardsBelow = ()
    allow_custom: AllowCustom = ()

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if any(not 0 < world <= PROVED_BATCH for world in self.worlds):
            raise ValueError(
                f"worlds: give `--worlds` numbers from 1 to {PROVED_BATCH}: each rank needs a "
                "slot of the batches whose order is proved"
            )
        if (self.dataset is None) == (self.store is None):
            raise ValueError("give `--dataset URL` or `--store URL`, and not both")
        if self.sample and self.store is None:
            raise ValueError("--sample compares latents with images: give `--store URL`")
        return self
