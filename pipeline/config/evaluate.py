"""The knobs of `jobs.evaluate`."""

from typing import ClassVar

from pydantic import Field

from pipeline.config.sections import (
    A_DATASET,
    NAMED_MODEL,
    AllowCustom,
    MeasurementConfig,
    ShardsBelow,
    Url,
)


class EvaluateConfig(MeasurementConfig):
    """`jobs.evaluate`: exact held-out numbers and pictures of a model."""

    interrupted: ClassVar[str] = "what was measured is not kept; the same command begins again."

    model: str = Field(description=NAMED_MODEL)
    data: Url = Field(description=A_DATASET)
    batch_size: int = Field(100, gt=0, description="Images per batch, over all workers.")
    workers: int = Field(0, ge=0, description="Ray tasks that share the images; 0: this process.")
    compare: tuple[str, ...] = Field(
        (), description="More models or runs, set beside it image by image."
    )
    bound_images: int = Field(
        32,
        ge=0,
        le=256,
        description="Images whose log p(x) gets better bounds than importance sampling's: the "
        "first, and as many drawn from the model; fewer where, by a short trial, either would take "
        "a minute, which is longer beside other load; 0: none.",
    )
    features: str | None = Field(
        None,
        description="Network for the distances of samples and reconstructions to real images: a "
        "TorchScript file or package.module:Class; None: pixels' principal components.",
    )
    lpips: str | None = Field(
        None,
        description="File of AlexNet's ImageNet weights as torchvision saves them, for LPIPS; "
        "needs the extra lpips; None: no LPIPS.",
    )
    shards_below: ShardsBelow = ()
    allow_custom: AllowCustom = ()
