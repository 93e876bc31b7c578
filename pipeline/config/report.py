"""The knobs of `jobs.report`."""

from typing import ClassVar, Self

from pydantic import Field, model_validator

from pipeline.config.sections import (
    A_RUN,
    A_STORE,
    MODEL_OF_STORE,
    AllowCustom,
    ShardsBelow,
    StorageConfig,
    Url,
)


class ReportConfig(StorageConfig):
    """`jobs.report`: one page of a run or a store, to be opened anywhere."""

    is_look: ClassVar[bool] = True

    run: str | None = Field(None, description=A_RUN)
    store: Url | None = Field(None, description=A_STORE)
    compare: str | None = Field(
        None, description="Another run, or with --store another store: what changed against it."
    )
    output: Url | None = Field(None, description="The HTML file; None: report-NAME.html, here.")
    model: str | None = Field(None, description=MODEL_OF_STORE)
    shards_below: ShardsBelow = ()
    allow_custom: AllowCustom = ()

    @model_validator(mode="after")
    def _run_or_store(self) -> Self:
        if (self.run is None) == (self.store is None):
            raise ValueError("give `--run NAME` or `--store URL`, and not both")
        if self.output is not None and not self.output.lower().endswith((".html", ".htm")):
            # Nothing of a store, a run or a dataset is called so, and no picture: a page replaces
            # what has its name.
            raise ValueError("a page's name ends in .html: give `--output report.html`")
        if self.run is not None and self.model is not None:
            raise ValueError("a run has its own model: leave out `--model`")
        return self
