"""The knobs of `jobs.explain`."""

import math
from typing import ClassVar, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from pipeline.config.sections import (
    A_RUN,
    NAMED_MODEL,
    AllowCustom,
    MeasurementConfig,
    ShardsBelow,
    Url,
)

Quantity = Literal["elbo", "kl", "log_likelihood"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)


class ExplainConfig(MeasurementConfig):
    """`jobs.explain`: what each number means, with this run's own figures."""

    interrupted: ClassVar[str] = "what was measured is not kept; the same command begins again."
    is_look: ClassVar[bool] = True

    run: str | None = Field(None, description=A_RUN)
    model: str | None = Field(None, description=NAMED_MODEL)
    data: Url | None = Field(None, description="Images to measure on; None: the run's hold-out.")
    mine: tuple[str, ...] = Field(
        (),
        description="Figures you got elsewhere, in nats per image, to be diagnosed: elbo=-90.1 "
        "kl=20 log_likelihood=-70.",
    )
    shards_below: ShardsBelow = ()
    allow_custom: AllowCustom = ()

    @property
    def figures(self) -> dict[Quantity, float]:
        """Those of `mine`, by quantity."""
        told = dict(each.split("=", 1) for each in self.mine)
        return {name: float(told[name]) for name in QUANTITIES if name in told}

    @field_validator("mine")
    @classmethod
    def _of_known_quantities(cls, mine: tuple[str, ...]) -> tuple[str, ...]:
        for each in mine:
            name, _, value = each.partition("=")
            try:
                known = name in QUANTITIES and math.isfinite(float(value))
            except ValueError:
                known = False
            if not known:
                raise ValueError(f"{each!r} is none of {', '.join(QUANTITIES)} with =NUMBER")
        return mine

    @model_validator(mode="after")
    def _run_or_model(self) -> Self:
        if (self.run is None) == (self.model is None):
            raise ValueError("give `--run NAME`, or `--model URI --data URL`, and not both")
        return self
