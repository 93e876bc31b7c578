"""The knobs of `jobs.explain`."""

from typing import Self

from pydantic import Field, model_validator

from pipeline.config.sections import (
    AllowCustom,
    Section,
    TrackingConfig,
    Url,
)


class ExplainConfig(Section):
    """`jobs.explain`: what each number means, with this run's own figures."""

    run: str | None = Field(None, description="A finished run's name.")
    storage: Url = Field("./runs", description="Where runs live (with --run).")
    model: str | None = Field(
        None, description="Instead of a run: models:/NAME@ALIAS, models:/NAME/VERSION or a bundle."
    )
    data: Url | None = Field(None, description="Images to measure on; None: the run's hold-out.")
    output: Url | None = Field(None, description="Folder for page and pictures; None: none.")
    importance_samples: int = Field(64, gt=0, description="K of the IWAE_K bound.")
    seed: int = Field(0, ge=0, description="Seed of the noise.")
    beta: float | None = Field(
        None, ge=0, description="Weight of the KL in training; None: the run's, 1 for a model."
    )
    my_elbo: float | None = Field(None, description="An ELBO you got elsewhere, nats per image.")
    my_kl: float | None = Field(None, description="A KL you got elsewhere, nats per image.")
    my_log_likelihood: float | None = Field(
        None, description="An E log p(x|z) you got elsewhere, nats per image."
    )
    allow_custom: AllowCustom = ()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _run_or_model(self) -> Self:
        if (self.run is None) == (self.model is None):
            raise ValueError("give --run NAME, or --model URI with --data URL, and not both")
        return self
