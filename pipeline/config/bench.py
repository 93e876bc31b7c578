"""The knobs of `jobs.bench`."""

from typing import Any, Literal

from pydantic import Field

from pipeline.config.network import ModelConfig
from pipeline.config.optimisation import ObjectiveConfig
from pipeline.config.sections import (
    A_DATASET,
    A_FOLDER_OF_PICTURES,
    PRECISION,
    AllowCustom,
    LoaderConfig,
    PreprocessConfig,
    ShardsBelow,
    StorageConfig,
    Url,
)
from pipeline.config.train import TrainConfig


def _as_in_training(name: str, default: Any) -> Any:
    """A knob that means here what it means there."""
    told = TrainConfig.model_fields[name]
    return Field(default, description=told.description)


class BenchConfig(PreprocessConfig, StorageConfig):
    """`jobs.bench`: what limits training on this data and machine, and which knob helps most."""

    data: Url = Field(description=A_DATASET)
    model: str | None = Field(
        None,
        description="models:/NAME@ALIAS, a bundle's path or a finished run, whose network and "
        "preprocessing are timed; None: those of --network.kind and --image-size.",
    )
    compare: bool = Field(False, description="Also time stock webdataset on the same shards.")
    output: Url | None = Field(None, description=A_FOLDER_OF_PICTURES)
    global_batch_size: int = _as_in_training("global_batch_size", 256)
    flip: bool = _as_in_training("flip", False)
    transform: str | None = _as_in_training("transform", None)
    precision: Literal["auto", "bf16", "fp16", "fp32", "fp64"] = Field(
        "auto", description=PRECISION
    )
    micro_batch_size: int | None = _as_in_training("micro_batch_size", None)
    exact: bool = _as_in_training("exact", False)
    deterministic: bool = _as_in_training("deterministic", False)
    network: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    loader: LoaderConfig = LoaderConfig()
    shards_below: ShardsBelow = ()
    allow_custom: AllowCustom = ()
