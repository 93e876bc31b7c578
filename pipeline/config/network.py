"""The knobs of a network: its kind and parts, its likelihood, its posterior."""

import re
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.config.sections import Section

Likelihood = Literal[
    "bernoulli",
    "continuous_bernoulli",
    "gaussian",
    "gaussian_fixed",
    "gaussian_per_pixel",
    "laplace",
    "logistic",
    "logistic_mixture",
]
STARTING_SIGMA = {"gaussian": 0.25, "gaussian_fixed": 0.1, "laplace": 0.25}
"""Where the one scale of each likelihood that has one starts, or stays; 1 is the whole range.

0.25 is the deviation of CIFAR-10's pixels: what a decoder needs that knows the mean alone."""


def _listed(defaults: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value}" for name, value in defaults.items())


class ModelConfig(Section):
    """The network, its likelihood and its posterior."""

    kind: Literal["linear", "mlp", "conv", "autoencoder_kl", "library", "custom"] = Field(
        "conv", description="The network's family."
    )
    latent_channels: int | None = Field(
        None,
        gt=0,
        le=2**16,
        description="Z of the latent [Z, h, w]; None: linear 8, mlp 50, conv 32, autoencoder_kl "
        "3, 4, 16, 64 for factor 4, 8, 16, 32.",
    )
    factor: Literal[4, 8, 16, 32] | None = Field(
        None, description="autoencoder_kl: pixels per latent in each direction; None: 8."
    )
    gradient_checkpointing: bool = Field(
        False, description="autoencoder_kl: compute again instead of keeping activations."
    )
    custom: str | None = Field(
        None,
        description="custom: your own torch module, as MODULE:CLASS, built with (shape, model). It "
        "has latent_shape (Z, h, w), encode(images) to [B, 2Z, h, w] and decode(latents) to "
        "[B, shape.num_parameters, S, S]: docs/extend.md.",
    )
    library: str | None = Field(
        None,
        description="library: the config.json, as text, of one of diffusers' other autoencoders of "
        "images, which that library runs; a folder of theirs says it by itself.",
    )
    latent_size: int | None = Field(
        None,
        gt=0,
        le=2**16,
        description="conv: h = w of the latent; None: 1, a vector for the whole image.",
    )
    width: int | None = Field(
        None,
        gt=0,
        le=2**20,
        description="First level's channels (None: conv 32, autoencoder_kl 128); mlp: units (200).",
    )
    widths: tuple[int, ...] | None = Field(
        None,
        max_length=16,
        description="autoencoder_kl: channels of each level, of which each halves the image but "
        "the last; None: by factor and width.",
    )
    layers: int | None = Field(
        None, gt=0, le=100, description="autoencoder_kl: residual blocks of a level; None: 2."
    )
    groups: int | None = Field(
        None, gt=0, le=2**16, description="autoencoder_kl: groups of its norms; None: 32."
    )
    activation: Literal["silu", "mish", "gelu", "relu"] | None = Field(
        None, description="autoencoder_kl: of its residual blocks; None: silu."
    )
    attention: tuple[str, ...] | None = Field(
        None,
        description="autoencoder_kl: where attention is: mid, downN, upN for its block N from 0; "
        "None: mid.",
    )
    quant_convs: Literal["both", "quant", "post_quant", "none"] | None = Field(
        None, description="autoencoder_kl: 1x1 convolutions around the latent; None: both."
    )
    likelihood: Likelihood = Field(
        "gaussian",
        description="p(x|z), in nats of the uint8 image (bernoulli: of the binarised one).",
    )
    sigma: float | None = Field(
        None,
        ge=1 / 256,
        le=1,
        description="The one scale of all pixels, 1 is the whole range: where a learned one "
        f"starts or a fixed one stays; None: {_listed(STARTING_SIGMA)}.",
    )
    posterior: Literal["diagonal", "full"] = Field(
        "diagonal", description="Covariance of q(z|x); full: linear and mlp only."
    )

    @property
    def starting_sigma(self) -> float:
        """`sigma`, or its default for a likelihood that has one."""
        return STARTING_SIGMA[self.likelihood] if self.sigma is None else self.sigma

    @property
    def own_classes(self) -> tuple[str, ...]:
        """The classes that whoever wrote this config named, and so allows to be imported."""
        return () if self.custom is None else (self.custom,)

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.posterior == "full" and self.kind not in ("linear", "mlp"):
            raise ValueError(
                f"posterior full is for linear and mlp, not for {self.kind}: give `--model.kind "
                "mlp`, or leave `--model.posterior` out"
            )
        for name, kinds in _KINDS_OF_KNOBS.items():
            if getattr(self, name) and self.kind not in kinds:
                raise ValueError(
                    f"{name} is for {' and '.join(kinds)}, not for {self.kind}: give "
                    f"`--model.kind {kinds[0]}`, or leave `--model.{name.replace('_', '-')}` out"
                )
        if self.widths is not None and (self.factor or self.width):
            raise ValueError(
                "widths say it all: leave `--model.factor` and `--model.width` out, or "
                "`--model.widths`"
            )
        if self.widths is not None and not all(1 <= each <= 2**16 for each in self.widths or [0]):
            raise ValueError(
                "widths are channels, 1 to 65,536 for each of one or more levels: give "
                "`--model.widths 128 256 512 512`"
            )
        for place in self.attention or ():
            if re.fullmatch(r"mid|(down|up)\d{1,2}", place) is None:
                raise ValueError(
                    f"attention {place}: give mid, downN or upN, N from 0, as `--model.attention "
                    "mid`"
                )
        if self.kind == "library" and self.library is None:
            raise ValueError("kind library needs a config.json's text: give `--model.library TEXT`")
        if self.kind == "custom" and self.custom is None:
            raise ValueError(
                "kind custom is a class of your own (docs/extend.md): give `--model.custom "
                "MODULE:CLASS`"
            )
        if self.sigma is not None and self.likelihood not in STARTING_SIGMA:
            raise ValueError(
                f"sigma means nothing for {self.likelihood}, only for {', '.join(STARTING_SIGMA)}: "
                "leave `--model.sigma` out"
            )
        return self


_KINDS_OF_KNOBS = {
    "width": ("mlp", "conv", "autoencoder_kl", "custom"),
    "latent_size": ("conv", "custom"),
    "factor": ("autoencoder_kl",),
    "widths": ("autoencoder_kl",),
    "layers": ("autoencoder_kl",),
    "groups": ("autoencoder_kl",),
    "activation": ("autoencoder_kl",),
    "attention": ("autoencoder_kl",),
    "quant_convs": ("autoencoder_kl",),
    "gradient_checkpointing": ("autoencoder_kl",),
    "library": ("library",),
    "custom": ("custom",),
}
"""Knobs of networks that not every kind reads."""
