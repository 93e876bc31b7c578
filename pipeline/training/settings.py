"""What a run's config means to each part of training: the one place that opens it."""

from dataclasses import dataclass

from pipeline.config import OptimizerConfig, TrainConfig
from pipeline.runs.run import Run
from pipeline.training.batches import BatchSettings
from pipeline.training.gradients import StepSettings
from pipeline.training.holdout import HoldOutSettings
from pipeline.training.restore import Init, StateSettings


@dataclass(frozen=True)
class TrainSettings:
    """A training, by the parts that read it."""

    name: str
    data: str
    holdout: str | None
    shards_below: tuple[str, ...]
    steps: int
    checkpoint_every: int
    profile: str | None
    optimizer: OptimizerConfig
    state: StateSettings
    step: StepSettings
    batches: BatchSettings
    looks: HoldOutSettings
    bad_fraction: float


def settings_of(config: TrainConfig) -> TrainSettings:
    """The same for every rank, wherever it runs."""
    return TrainSettings(
        name=config.run,
        data=config.data,
        holdout=config.holdout,
        shards_below=config.shards_below,
        steps=config.steps,
        checkpoint_every=config.checkpoint_every,
        profile=config.profile,
        optimizer=config.optimizer,
        state=StateSettings(
            model=config.model,
            preprocess=config.preprocess,
            optimizer=config.optimizer,
            seed=config.seed,
            precision=config.precision,
            # Kept there by the first start, where every worker finds it and nothing moves it.
            init=Init(config.init, Run.at(config).path("init")) if config.init else None,
            freeze=config.freeze,
            compile=config.compile,
            exact=config.exact,
            deterministic=config.deterministic,
        ),
        step=StepSettings(
            objective=config.objective,
            seed=config.seed,
            clip_norm=config.optimizer.clip_norm,
            precision=config.precision,
            micro_batch_size=config.micro_batch_size,
            exact=config.exact,
        ),
        batches=BatchSettings(
            preprocess=config.preprocess,
            global_batch_size=config.global_batch_size,
            seed=config.seed,
            flip=config.flip,
            transform=config.transform,
            stall_seconds=config.stall_seconds,
            loader=config.loader,
        ),
        looks=HoldOutSettings(
            every_steps=config.evaluate_every,
            patience=config.patience,
            # An objective such as a plain autoencoder's makes the ELBO worse the better it gets.
            keeps_best=config.objective.aims_at_elbo,
            warmup_steps=max(config.optimizer.warmup_steps, config.objective.warmup_steps or 0),
        ),
        bad_fraction=config.loader.bad_fraction,
    )
