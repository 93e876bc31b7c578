"""Every knob of every job, as frozen models that refuse what they don't know.

A field's description gives its unit and the meaning of None; flags, YAML keys and `--help` are all
made from these models (`jobs/command.py`). Impossible combinations fail here, at construction.
"""

from pipeline.config.jobs import (
    DemoConfig,
    EvaluateConfig,
    ExplainConfig,
    IndexConfig,
    ModelsConfig,
    PackConfig,
    PullConfig,
    VerifyConfig,
)
from pipeline.config.latents import DecodeConfig, EncodeConfig, ExportConfig, StoresConfig
from pipeline.config.operations import DoctorConfig, SubmitConfig, WatchConfig
from pipeline.config.sections import (
    Crop,
    Likelihood,
    LoaderConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PreprocessConfig,
    Resize,
    Section,
    Tail,
    TrackingConfig,
    Url,
    without_passwords,
)
from pipeline.config.train import TrainConfig

__all__ = [
    "Crop",
    "DecodeConfig",
    "DemoConfig",
    "DoctorConfig",
    "EncodeConfig",
    "EvaluateConfig",
    "ExplainConfig",
    "ExportConfig",
    "IndexConfig",
    "Likelihood",
    "LoaderConfig",
    "ModelConfig",
    "ModelsConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PackConfig",
    "PreprocessConfig",
    "PullConfig",
    "Resize",
    "Section",
    "StoresConfig",
    "SubmitConfig",
    "Tail",
    "TrackingConfig",
    "TrainConfig",
    "Url",
    "VerifyConfig",
    "WatchConfig",
    "without_passwords",
]
