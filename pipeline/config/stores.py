"""The knobs of `jobs.stores`."""

from typing import ClassVar, Self

from pydantic import Field, model_validator

from pipeline.config.sections import (
    A_DATASET,
    A_STORE,
    DELETE,
    ERASE,
    KEYS,
    Pushgateway,
    Section,
    Url,
)
from pipeline.masking import shell_word


class StoresConfig(Section):
    """`jobs.stores`: what a dataset or a store holds; remove what nothing needs, or images."""

    is_look: ClassVar[bool] = True

    dataset: Url | None = Field(None, description=A_DATASET)
    store: Url | None = Field(None, description=A_STORE)
    pushgateway: Pushgateway = None
    keys: bool = Field(False, description=KEYS)
    gc: bool = Field(
        False, description="Look for what no snapshot of a store, no generation of a dataset names."
    )
    keep_last: int = Field(
        0,
        ge=0,
        description="With --gc: of a dataset's generations only the newest stay, this many; 0: "
        "all of them.",
    )
    erase: tuple[str, ...] = Field((), description=ERASE)
    delete: bool = Field(False, description=DELETE)
    unfinished: bool = Field(
        False, description="Also what encodings that never ended made; none may run."
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.dataset is None and self.store is None and self.pushgateway is None:
            raise ValueError(
                "give `--store URL`, `--dataset URL` (or both), or `--pushgateway URL`"
            )
        if self.erase and self.dataset is None and self.store is None:
            raise ValueError("an image is erased from `--dataset URL`, `--store URL` or both")
        if self.gc and self.erase:
            raise ValueError("do one thing at a time: `--gc`, or `--erase KEYS`")
        if (self.delete or self.unfinished) and not (self.gc or self.erase):
            raise ValueError(
                "--delete and --unfinished belong to `--gc` or `--erase KEYS`; look at those alone "
                "first"
            )
        if self.keep_last and not (self.gc and self.dataset is not None):
            raise ValueError("keep_last counts a dataset's generations: give `--dataset URL --gc`")
        if self.keys and self.store is None:
            asked = f"python -m jobs.verify --dataset {shell_word(self.dataset or 'URL')} --keys"
            raise ValueError(f"keys of a dataset are listed by `{asked}`")
        return self
