"""Every knob of every job, as frozen models that refuse what they don't know.

A field's description gives its unit and the meaning of None; flags, YAML keys and `--help` are all
made from these models (`jobs/command.py`). Impossible combinations fail here, at construction.
"""

from pipeline.config.bench import BenchConfig
from pipeline.config.decode import DecodeConfig
from pipeline.config.demo import DemoConfig
from pipeline.config.doctor import DoctorConfig
from pipeline.config.encode import EncodeConfig
from pipeline.config.evaluate import EvaluateConfig
from pipeline.config.explain import ExplainConfig
from pipeline.config.export import ExportConfig
from pipeline.config.index import IndexConfig
from pipeline.config.models import ModelsConfig
from pipeline.config.network import Likelihood, ModelConfig
from pipeline.config.optimisation import ObjectiveConfig, OptimizerConfig
from pipeline.config.pack import PackConfig
from pipeline.config.pull import PullConfig
from pipeline.config.report import ReportConfig
from pipeline.config.runs import RunsConfig
from pipeline.config.sections import (
    Crop,
    EncodingTrackingConfig,
    LoaderConfig,
    MetricsConfig,
    PreprocessConfig,
    Resize,
    Section,
    Tail,
    TrackingConfig,
    Url,
)
from pipeline.config.stores import StoresConfig
from pipeline.config.submit import SubmitConfig
from pipeline.config.train import TrainConfig
from pipeline.config.verify import VerifyConfig
from pipeline.config.watch import WatchConfig

__all__ = [
    "BenchConfig",
    "Crop",
    "DecodeConfig",
    "DemoConfig",
    "DoctorConfig",
    "EncodeConfig",
    "EncodingTrackingConfig",
    "EvaluateConfig",
    "ExplainConfig",
    "ExportConfig",
    "IndexConfig",
    "Likelihood",
    "LoaderConfig",
    "MetricsConfig",
    "ModelConfig",
    "ModelsConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PackConfig",
    "PreprocessConfig",
    "PullConfig",
    "ReportConfig",
    "Resize",
    "RunsConfig",
    "Section",
    "StoresConfig",
    "SubmitConfig",
    "Tail",
    "TrackingConfig",
    "TrainConfig",
    "Url",
    "VerifyConfig",
    "WatchConfig",
]
