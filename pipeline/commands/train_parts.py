"""What a run's config means to each who has a part in it: opened here, and nowhere else."""

from dataclasses import dataclass

from pipeline.cluster.worker_group import GroupSettings
from pipeline.config import TrainConfig
from pipeline.json_value import flat
from pipeline.rank import RankSettings
from pipeline.registry.checkpoint_versions import VersionSettings
from pipeline.runs.run import Run
from pipeline.tracking.mlflow_client import tracking_uri
from pipeline.tracking.recorder import RecorderSettings
from pipeline.training.settings import settings_of

_PARAMETER_CHARACTERS = 500
"""MLflow's own limit for a parameter's value; it refuses longer ones."""


_ALWAYS = frozenset(
    {
        "data", "run", "steps", "global_batch_size", "image_size", "seed", "workers", "precision",
        "model.kind", "model.likelihood", "objective.kind", "objective.beta",
        "optimizer.learning_rate",
    }
)  # fmt: skip
"""What runs are compared by, also where it is as by default."""


@dataclass(frozen=True)
class TrainParts:
    """A run, by who reads what of it."""

    rank: RankSettings
    group: GroupSettings
    recording: RecorderSettings
    versions: VersionSettings


def parts_of(config: TrainConfig) -> TrainParts:
    """A run's parts; of a config with absolute URLs, and with its hold-out (see `resolve`)."""
    run, (name, alias) = Run.at(config), config.tracking.registered_as(config.run)
    return TrainParts(
        rank=RankSettings(run, settings_of(config), config.tracking.every_steps),
        group=GroupSettings(
            min_workers=config.min_workers,
            max_workers=config.max_workers,
            cpus_per_worker=config.cpus_per_worker,
            max_failures=config.max_failures,
            stall_seconds=config.stall_seconds,
        ),
        recording=RecorderSettings(
            run_url=run.url,
            name=config.run,
            tracking=config.tracking,
            mlflow_uri=tracking_uri(),
            params=parameters(config),
        ),
        versions=VersionSettings(
            run=run,
            run_name=config.run,
            data=config.data,
            holdout=config.holdout,
            model=config.model,
            preprocess=config.preprocess,
            objective=config.objective,
            name=name,
            alias=alias,
            every=config.tracking.register_every,
        ),
    )


def parameters(config: TrainConfig) -> dict[str, str]:
    """What MLflow shows of a run's settings: those that somebody chose, and a few of `_ALWAYS`.

    Sixty more would say what everybody's run has; they lie beside the run, in config.json.
    """
    default, given = (
        flat(each.model_dump(mode="json", exclude={"tracking", "no_register"}))
        for each in (TrainConfig(data=config.data, run=config.run), config)
    )
    return {
        key: str(value)[:_PARAMETER_CHARACTERS]
        for key, value in given.items()
        if key in _ALWAYS or value != default[key]
    }
