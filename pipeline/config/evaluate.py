"""The knobs of `jobs.evaluate`."""

from pydantic import Field

from pipeline.config.sections import (
    AllowCustom,
    Section,
    TrackingConfig,
    Url,
)


class EvaluateConfig(Section):
    """`jobs.evaluate`: exact held-out numbers and pictures of a model."""

    model: str = Field(
        description="models:/NAME@ALIAS, models:/NAME/VERSION, a bundle's path or a finished run."
    )
    storage: Url = Field("./runs", description="Where runs live, for models given as runs.")
    data: Url = Field(description="The dataset, usually the hold-out.")
    output: Url | None = Field(None, description="Folder for report and pictures; None: none.")
    importance_samples: int = Field(64, gt=0, description="K of the IWAE_K bound.")
    batch_size: int = Field(100, gt=0, description="Images per batch, over all workers.")
    seed: int = Field(0, ge=0, description="Seed of the noise.")
    workers: int = Field(0, ge=0, description="Ray tasks that share the images; 0: this process.")
    compare: tuple[str, ...] = Field(
        (), description="More models or runs, set beside it image by image."
    )
    split_images: int = Field(
        64, ge=0, le=256, description="First images whose posterior gap is split in two; 0: none."
    )
    latents: int = Field(
        10_000, gt=0, description="First images whose posteriors are kept for latent statistics."
    )
    allow_custom: AllowCustom = ()
    tracking: TrackingConfig = TrackingConfig()
