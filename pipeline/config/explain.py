"""The knobs of `jobs.explain`."""

from typing import Self

from pydantic import Field, model_validator

from pipeline.config.sections import (
    A_RUN,
    AllowCustom,
    MeasurementConfig,
    Url,
)


class ExplainConfig(MeasurementConfig):
    """`jobs.explain`: what each number means, with this run's own figures."""

    run: str | None = Field(None, description=A_RUN)
    model: str | None = Field(
        None, description="Instead of a run: models:/NAME@ALIAS, models:/NAME/VERSION or a bundle."
    )
    data: Url | None = Field(None, description="Images to measure on; None: the run's hold-out.")
    beta: float | None = Field(
        None, ge=0, description="Weight of the KL in training; None: the run's, 1 for a model."
    )
    my_elbo: float | None = Field(None, description="An ELBO you got elsewhere, nats per image.")
    my_kl: float | None = Field(None, description="A KL you got elsewhere, nats per image.")
    my_log_likelihood: float | None = Field(
        None, description="An E log p(x|z) you got elsewhere, nats per image."
    )
    allow_custom: AllowCustom = ()

    @model_validator(mode="after")
    def _run_or_model(self) -> Self:
        if (self.run is None) == (self.model is None):
            raise ValueError("give --run NAME, or --model URI with --data URL, and not both")
        return self
