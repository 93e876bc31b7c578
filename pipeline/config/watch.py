"""The knobs of `jobs.watch`."""

from typing import ClassVar, Self

from pydantic import Field, model_validator

from pipeline.config.sections import A_RUN, A_STORE, StorageConfig, Url


class WatchConfig(StorageConfig):
    """`jobs.watch`: live numbers in the terminal, of a run, of an encoding or of all there are."""

    is_look: ClassVar[bool] = True

    run: str | None = Field(None, description=A_RUN)
    store: Url | None = Field(None, description=A_STORE)
    url: str | None = Field(
        None,
        description="http://HOST:PORT/metrics of a run or an encoding, or http://HOST:9090 of a "
        "Prometheus: all runs and stores that it knows.",
    )
    once: bool = Field(False, description="Print one picture, after two looks, and end.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(each is not None for each in (self.run, self.store, self.url)) != 1:
            raise ValueError("give one of `--run NAME`, `--store URL`, `--url URL`")
        return self

    @property
    def endpoint(self) -> str | None:
        """The address of one run's or encoding's /metrics, if that was given."""
        return self.url if self.url is not None and "/metrics" in self.url else None

    @property
    def prometheus(self) -> str | None:
        """The address of a Prometheus, if that was given."""
        return self.url if self.endpoint is None else None
