"""The knobs of `jobs.models`."""

import warnings
from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.config.sections import (
    AllowCustom,
    Section,
    ShardsBelow,
    Url,
    registrable,
)

with warnings.catch_warnings():
    # A field called `register` hides `ABCMeta.register`, which nobody calls.
    warnings.simplefilter("ignore", UserWarning)

    class ModelsConfig(Section):
        """`jobs.models`: list the registry; add, promote, take back or trace a version."""

        register: Url | None = Field(None, description="A bundle's or a diffusers VAE's folder.")
        model: str | None = Field(
            None,
            description="With --register: its name in the registry; None: the folder's. An alias "
            "moves to it with NAME@ALIAS alone. With --export: models:/NAME@ALIAS, "
            "models:/NAME/VERSION or a folder.",
        )
        export: Literal["diffusers"] | None = Field(
            None, description="Write --model to --output as this library reads it."
        )
        output: Url | None = Field(None, description="With --export: the folder to write.")
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
        shards_below: ShardsBelow = ()
        allow_custom: AllowCustom = ()

        @model_validator(mode="after")
        def _one_thing(self) -> Self:
            asked = [self.register, self.promote, self.rollback, self.lineage, self.export]
            if sum(each is not None for each in asked) > 1:
                raise ValueError(
                    "give one of `--register`, `--export`, `--promote`, `--rollback`, `--lineage`"
                )
            if (self.export is None) != (self.output is None) or (self.export and not self.model):
                raise ValueError(
                    "an export has a model and a place: give `--export diffusers --model URI "
                    "--output FOLDER`"
                )
            if self.export is None and self.model is not None:
                registrable(self.model)
            if self.data is not None and self.promote is None:
                raise ValueError("data belongs to `--promote URI`: give both or neither")
            return self
