"""What is optimised, and by which steps."""

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.config.sections import Section


class ObjectiveConfig(Section):
    """What is optimised; the true ELBO is reported beside it whatever is chosen here.

    beta: log-likelihood - beta KL. free_bits: the same, with each latent dimension's KL counted as
    at least `free_nats`. geco: least KL with the reconstruction held at `target_bits_per_dim`.
    iwae: the bound of `samples` latents. autoencoder: the reconstruction at the mean alone.
    """

    kind: Literal["beta", "free_bits", "geco", "iwae", "autoencoder"] = Field(
        "beta",
        description="What is maximised: beta (the ELBO at beta 1), free_bits, geco, iwae ...",
    )
    beta: float = Field(1.0, ge=0, description="Weight of the KL term, after its warm-up if any.")
    warmup: str = Field(
        "none",
        description="How beta rises from 0: linear:STEPS, once; cyclical:STEPS, in the first half "
        "of each cycle of so many steps.",
    )
    free_nats: float | None = Field(
        None, gt=0, description="free_bits: nats of KL per latent dimension that cost nothing more."
    )
    target_bits_per_dim: float | None = Field(
        None, gt=0, description="geco: -log p(x|z) to hold, in bits per pixel and channel."
    )
    samples: int = Field(1, gt=0, description="K latents per image: multi-sample ELBO, or IWAE_K.")

    @property
    def aims_at_elbo(self) -> bool:
        """Whether what is optimised is the ELBO, or a bound that a better ELBO goes with."""
        return self.kind in ("beta", "free_bits", "iwae") and self.beta == 1

    @property
    def warmup_steps(self) -> int | None:
        """Of the linear warm-up, or of one cycle; None: there is no warm-up."""
        steps = self.warmup.partition(":")[2]
        return int(steps) if steps else None

    @property
    def is_cyclical(self) -> bool:
        """Whether beta rises again in each cycle."""
        return self.warmup.startswith("cyclical:")

    @property
    def needs_mean(self) -> bool:
        """Whether the loss is made of `log_likelihood_at_mean`."""
        return self.kind == "autoencoder"

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.kind not in ("beta", "free_bits") and (self.beta != 1 or self.warmup != "none"):
            raise ValueError(
                f"beta and its warm-up mean nothing for {self.kind}: leave `--objective.beta` and "
                "`--objective.warmup` out"
            )
        for name, kind in (("free_nats", "free_bits"), ("target_bits_per_dim", "geco")):
            flag, given = f"--objective.{name.replace('_', '-')}", getattr(self, name) is not None
            if given != (self.kind == kind):
                raise ValueError(
                    f"{name} means something for {kind} alone: give `--objective.kind {kind}`, or "
                    f"leave `{flag}` out"
                    if given
                    else f"{kind} needs a number: give `{flag} NUMBER`"
                )
        if re.fullmatch(r"none|(linear|cyclical):[1-9]\d{0,8}", self.warmup) is None:
            raise ValueError(
                f"warmup {self.warmup}: is not none, nor linear or cyclical with its length: give "
                "`--objective.warmup linear:STEPS`"
            )
        if self.kind == "iwae" and self.samples == 1:
            raise ValueError(
                "iwae takes 2 samples or more, with 1 it is the ELBO: give `--objective.samples 5`"
            )
        if self.kind == "autoencoder" and self.samples > 1:
            raise ValueError("autoencoder draws nothing: leave `--objective.samples` out")
        return self


class OptimizerConfig(Section):
    """AdamW and what surrounds it."""

    learning_rate: float = Field(1e-3, gt=0, description="Peak step size.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    warmup_steps: int = Field(50, ge=0, description="Steps of linear warm-up from 0.")
    schedule: Literal["constant", "cosine"] = Field("cosine", description="After the warm-up.")
    clip_norm: float = Field(100.0, gt=0, description="Largest gradient norm; above, it is scaled.")
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="Decay of the weights' average; 0: none."
    )
