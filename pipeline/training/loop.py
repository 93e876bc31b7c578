"""The training loop, as a generator of reports: no Ray, no MLflow, no clock but for durations."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.config import TrainConfig
from pipeline.data import Batch, Dataset, Loader, load_images
from pipeline.errors import RunError
from pipeline.training.checkpoint import Checkpoint, CheckpointWriter, newest_checkpoint
from pipeline.training.ema import Ema
from pipeline.training.history import HistoryWriter
from pipeline.training.points import Outbox, Point
from pipeline.training.run import Attempt, Run
from pipeline.training.schedule import learning_rate
from pipeline.training.step import StepReport, StepSettings, TrainState, make_optimizer, train_step
from pipeline.training.stop import StopReason, StopSignal
from pipeline.training.validation import Validation, validate
from pipeline.training.world import World
from pipeline.vae import VAE, ObjectiveState, build_vae, save_bundle

Reason = Literal["done"] | StopReason
_STOPS: tuple[StopReason, ...] = ("stopped", "superseded", "drained")

STARTING_IMAGES = 256
"""First training images whose mean the untrained decoder is set to."""


@dataclass(frozen=True)
class Ended:
    """The last report: the run is `done`, was `stopped`, or another start took it over.

    `drained` is `stopped` by a node that is being taken away: the same run goes on elsewhere.

    `terms` are the last step's (empty if none was made), `digest` names the bundle of a done run,
    made from the averaged weights by rank 0.
    """

    reason: Reason
    step: int
    images_seen: int
    bad_images: int
    terms: dict[str, float]
    validations: list[Validation]
    digest: str | None


def train(
    config: TrainConfig,
    run: Run,
    attempt: Attempt,
    world: World,
    outbox: Outbox,
    drained: Callable[[], bool] = lambda: False,
) -> Iterator[StepReport | Validation | Ended]:
    """Trains from the newest checkpoint to `config.steps`, yielding a report after each step.

    Every rank runs it alike. A checkpoint holds the points that are in rank 0's `outbox` by then,
    so the consumer adds a step's point before it takes the next report.
    """
    dataset, holdout = open_pinned(config, run)
    state, checkpoint = _restore(config, run, world, dataset)
    validations = [Validation(**data) for data in checkpoint.validations] if checkpoint else []
    if checkpoint and world.rank == 0:
        for point in checkpoint.points:
            outbox.add(Point.from_json(point))
    reason: Reason = "done"
    report: StepReport | None = None
    with (
        closing(_loader(config, dataset, world, checkpoint)) as loader,
        closing(CheckpointWriter(run, attempt, config.keep_checkpoints)) as writer,
        closing(StopSignal(run, attempt, drained)) as stop,
    ):
        history = HistoryWriter(run, holdout, state.vae) if holdout and world.rank == 0 else None
        if holdout and not validations:
            validations.append(_validate(config, state, holdout, world, history))
            yield validations[-1]
        batches = _endless(loader)
        while state.step < config.steps and reason == "done":
            report = _next_step(config, state, batches, world, stop)
            yield report
            _check_budget(config, state, len(dataset))
            last = state.step == config.steps
            if holdout and (last or state.step % config.evaluate_every == 0):
                validations.append(_validate(config, state, holdout, world, history))
                yield validations[-1]
            if report.stop_requested:
                # Rank 0 alone asked: only its answer is the truth.
                mine = _STOPS.index(stop.reason()) if world.rank == 0 else 0
                asked = _STOPS[world.broadcast(mine)]
                reason = "done" if last and asked != "superseded" else asked
            due = last or reason != "done" or state.step % config.checkpoint_every == 0
            if due and reason != "superseded" and world.rank == 0:
                writer.save(_checkpoint(state, loader, outbox, validations))
        writer.wait()
    if reason == "done" and world.broadcast(int(run.newest_attempt() > attempt)):
        reason = "superseded"
    digest = None
    if reason == "done" and world.rank == 0:
        digest = _save_bundle(config, run, dataset, state, validations)
    terms = report.terms if report else {}
    yield Ended(reason, state.step, state.images_seen, state.bad_images, terms, validations, digest)


def open_pinned(config: TrainConfig, run: Run) -> tuple[Dataset, Dataset | None]:
    """The generations of training data and hold-out that the run began with."""
    pins = run.pins()
    assert pins is not None, "a run is opened before it is trained"
    holdout = Dataset.open(config.holdout, pins.holdout) if config.holdout else None
    return Dataset.open(config.data, pins.dataset), holdout


def _validate(
    config: TrainConfig,
    state: TrainState,
    holdout: Dataset,
    world: World,
    history: HistoryWriter | None,
) -> Validation:
    held = validate(config, state, holdout, world)
    if history:
        averaged = state.ema.module
        assert isinstance(averaged, VAE), "the average of a VAE is one"
        history.write(held, averaged)
    return held.validation


def _next_step(
    config: TrainConfig,
    state: TrainState,
    batches: Iterator[Batch],
    world: World,
    stop: StopSignal,
) -> StepReport:
    settings = StepSettings(
        config.objective, config.seed, config.optimizer.clip_norm, autocast_dtype(config, world)
    )
    started = time.perf_counter()
    batch = next(batches)
    waited = time.perf_counter() - started
    return train_step(
        state,
        batch,
        world,
        settings,
        rate=learning_rate(config.optimizer, state.step + 1, config.steps),
        stop=stop.requested and world.rank == 0,
        data_wait_seconds=waited,
    )


def autocast_dtype(config: TrainConfig, world: World) -> torch.dtype | None:
    """The type that the networks compute in; None: fp32, without autocast.

    `auto` is bf16 on CUDA and on CPUs with avx512_bf16 or amx: elsewhere bf16 is 12 times slower.
    """
    if config.precision == "fp32":
        return None
    if config.precision == "bf16" or world.device.type == "cuda":
        return torch.bfloat16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else None


def _restore(
    config: TrainConfig, run: Run, world: World, dataset: Dataset
) -> tuple[TrainState, Checkpoint | None]:
    """The state at the newest checkpoint, or the initial one: it follows from seed and dataset."""
    checkpoint = newest_checkpoint(run) if world.rank == 0 else None
    step = world.broadcast(checkpoint.step if checkpoint else 0)
    if world.rank != 0 and step:
        checkpoint = newest_checkpoint(run, step)
    torch.manual_seed(config.seed)
    vae = build_vae(config.model, config.preprocess).to(world.device)
    if checkpoint is None:
        _start_at_mean(vae, dataset)
    optimizer = make_optimizer(config.optimizer, vae)
    ema = Ema(vae, config.optimizer.ema_decay)
    model: nn.Module = vae
    if world.size > 1:
        devices = [world.device] if world.device.type == "cuda" else None
        model = DistributedDataParallel(vae, device_ids=devices, gradient_as_bucket_view=True)
    state = TrainState(vae, model, ema, optimizer)
    if checkpoint:
        vae.load_state_dict(checkpoint.model)
        ema.module.load_state_dict(checkpoint.ema)
        optimizer.load_state_dict(checkpoint.optimizer)
        state.step = checkpoint.step
        state.images_seen = checkpoint.images_seen
        state.bad_images = checkpoint.bad_images
        state.objective = ObjectiveState.from_json(checkpoint.objective)
    return state, checkpoint


def _start_at_mean(vae: VAE, dataset: Dataset) -> None:
    """Lets the untrained decoder say the mean image: 1,500 steps on MNIST then end 46 nats higher.

    Measured on the mlp with Bernoulli pixels: a held-out ELBO of -124.2 in place of -170.9.
    """
    batch = load_images(dataset, STARTING_IMAGES, vae.preprocess)
    good = batch.images[batch.valid]
    if len(good):
        mean = good.double().mean(dim=0) / 255
        vae.start_at(mean.float().to(next(vae.parameters()).device))


def _loader(
    config: TrainConfig, dataset: Dataset, world: World, checkpoint: Checkpoint | None
) -> Loader:
    loader = Loader(
        dataset,
        global_batch_size=config.global_batch_size,
        image_size=config.image_size,
        channels=config.channels,
        crop=config.crop,
        flip=config.flip,
        seed=config.seed,
        tail=config.tail,
        rank=world.rank,
        world_size=world.size,
        threads=config.loader.threads,
        prefetch_batches=config.loader.prefetch_batches,
        memory_bytes=config.loader.memory_bytes,
    )
    if checkpoint:
        loader.load_state_dict(checkpoint.order)
    return loader


def _save_bundle(
    config: TrainConfig,
    run: Run,
    dataset: Dataset,
    state: TrainState,
    validations: list[Validation],
) -> str:
    """Writes the averaged weights as the run's bundle; returns its digest."""
    averaged = state.ema.module
    assert isinstance(averaged, VAE), "the average of a VAE is one"
    return save_bundle(
        averaged,
        run.path("bundle"),
        {
            "run": config.run,
            "dataset_digest": dataset.digest,
            "beta": config.objective.beta,
            "holdout_data": config.holdout,
            "steps": state.step,
            "images_seen": state.images_seen,
            "holdout": validations[-1].terms if validations else None,
        },
    )


def _endless(loader: Loader) -> Iterator[Batch]:
    while True:
        yield from loader


def _checkpoint(
    state: TrainState, loader: Loader, outbox: Outbox, validations: list[Validation]
) -> Checkpoint:
    return Checkpoint(
        step=state.step,
        images_seen=state.images_seen,
        bad_images=state.bad_images,
        model=state.vae.state_dict(),
        ema=state.ema.module.state_dict(),
        optimizer=state.optimizer.state_dict(),
        objective=state.objective.to_json(),
        order=loader.state_dict(),
        points=[point.to_json() for point in outbox.pending()],
        validations=[asdict(validation) for validation in validations],
    )


def _check_budget(config: TrainConfig, state: TrainState, dataset_images: int) -> None:
    """Raises `RunError` when too many samples were bad; the numbers are the same on all ranks."""
    seen = max(dataset_images, state.images_seen + state.bad_images)
    if state.bad_images > config.loader.bad_fraction * seen:
        raise RunError(
            f"{config.data}: {state.bad_images} samples up to step {state.step} could not be read, "
            f"more than --loader.bad-fraction {config.loader.bad_fraction} of {seen}. "
            "`python -m jobs.verify --dataset` lists the damage; or raise the budget."
        )
