"""The knobs of `jobs.stores`."""

from typing import Self

from pydantic import Field, model_validator

from pipeline.config.sections import A_STORE, KEYS, Section, Url


class StoresConfig(Section):
    """`jobs.stores`: what a latent store holds, and what of it nothing names."""

    store: Url = Field(description=A_STORE)
    keys: bool = Field(False, description=KEYS)
    gc: bool = Field(False, description="Look for what no snapshot names; nothing is removed.")
    delete: bool = Field(False, description="With --gc: remove it.")
    unfinished: bool = Field(
        False, description="With --gc: also what encodings that never ended made; none may run."
    )

    @model_validator(mode="after")
    def _delete_after_gc(self) -> Self:
        if (self.delete or self.unfinished) and not self.gc:
            raise ValueError(
                "--delete and --unfinished belong to `--gc`; look at `--gc` alone first"
            )
        return self
