"""The knobs of `jobs.verify`."""

from typing import ClassVar, Self

from pydantic import Field, model_validator

from pipeline.config.sections import (
    A_DATASET,
    A_STORE,
    KEYS,
    MODEL_OF_STORE,
    AllowCustom,
    Section,
    ShardsBelow,
    Url,
)

PROVED_BATCH = 256
"""Images per step of the order that is proved. The order is cut into lanes and chunks alike for any
batch; this one is the default of a training."""
PROVED_WORLDS = (1, 3, 8)
"""Ranks for which it is proved: one alone, a number that does not divide the batch, one that does.
The order asks nothing of a rank but which slots it owns."""


class VerifyConfig(Section):
    """`jobs.verify`: prove a dataset or a latent store whole."""

    interrupted: ClassVar[str] = "what was read so far is not kept; the same command begins again."
    is_look: ClassVar[bool] = True

    dataset: Url | None = Field(None, description=A_DATASET)
    store: Url | None = Field(None, description=A_STORE)
    keys: bool = Field(False, description=KEYS)
    sample: int = Field(
        0, ge=0, description="With --store: encode this many random images again, and compare."
    )
    model: str | None = Field(None, description=MODEL_OF_STORE)
    shards_below: ShardsBelow = ()
    allow_custom: AllowCustom = ()

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.sample and self.store is None:
            raise ValueError("--sample compares latents with images: give `--store URL`")
        both = self.dataset is not None and self.store is not None
        if (self.dataset is None and self.store is None) or (both and not self.sample):
            raise ValueError(
                "give `--dataset URL` or `--store URL`; both only with `--sample N`, for a dataset "
                "that has moved since it was encoded"
            )
        return self
