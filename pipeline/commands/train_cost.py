"""`jobs.train --dry-run`: what a run would cost, from a short probe of its own steps."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

from pipeline.config import TrainConfig
from pipeline.data import Dataset
from pipeline.registry.named_models import load_named
from pipeline.runs.run import Run
from pipeline.training.batches import training_loader, without_end
from pipeline.training.restore import Init, numerics, restore
from pipeline.training.settings import settings_of
from pipeline.training.step import train_step
from pipeline.training.world import current_world
from pipeline.vae import save_bundle

PROBE_SECONDS = 30.0
"""Enough for a mean over dozens of steps; who asks what a run costs will not wait for minutes."""
_WARM_UP_STEPS = 3
"""Allocations, kernels' choices and the wait for the first batch are over by then."""


@dataclass(frozen=True)
class TrainCost:
    """What a run would take: all its steps, and the hours of each and of all workers.

    `load`: processes that ran or waited on this machine, over a minute, before the probe; with
    others beside it a step is slower than it will be alone.
    """

    images: int
    steps: int
    epochs: float
    images_seen: int
    bytes_read: int
    workers: int
    seconds_per_step: float
    hours: float
    worker_hours: float
    probed_steps: int
    load: float


@dataclass(frozen=True)
class Probed:
    """How long some steps took."""

    seconds: float
    steps: int


def dry_run(config: TrainConfig, probe_seconds: float = PROBE_SECONDS) -> TrainCost:
    """Images, steps, bytes read and hours of a run; trains here for a while and writes nothing.

    Each of several workers is taken to be like this process with its share of the batch: what they
    send each other is not in the hours.
    """
    dataset = Dataset.open(config.data, None, config.shards_below)
    workers = max(1, config.max_workers)
    load = os.getloadavg()[0]
    single = config.model_copy(update={"global_batch_size": config.global_batch_size // workers})
    probed = _probe(single, dataset, probe_seconds)
    per_step = probed.seconds / probed.steps
    epochs = config.steps * config.global_batch_size / len(dataset)
    hours = config.steps * per_step / 3600
    return TrainCost(
        images=len(dataset),
        steps=config.steps,
        epochs=epochs,
        images_seen=config.steps * config.global_batch_size,
        bytes_read=int(epochs * sum(shard.bytes for shard in dataset.shards)),
        workers=workers,
        seconds_per_step=per_step,
        hours=hours,
        worker_hours=hours * workers,
        probed_steps=probed.steps,
        load=round(load, 1),
    )


def _probe(config: TrainConfig, dataset: Dataset, probe_seconds: float) -> Probed:
    """Some steps after a warm-up."""
    world = current_world()
    settings = settings_of(config)
    # A run that nobody will ever start has no checkpoint to go on from.
    nowhere = Run(f"{Run.at(config).url}.dry-run")
    with (
        _init_of(config) as init,
        numerics(settings.state),
        closing(training_loader(dataset, settings.batches, world, None)) as loader,
    ):
        state, _ = restore(replace(settings.state, init=init), nowhere, world, dataset)
        started, steps = time.perf_counter(), -_WARM_UP_STEPS
        for batch in without_end(loader):
            train_step(
                state, batch, world, settings.step, rate=1e-9, stop=False, data_wait_seconds=0.0
            )
            steps += 1
            if steps == 0:
                started = time.perf_counter()
            elapsed = time.perf_counter() - started
            if steps > 0 and (elapsed > probe_seconds or steps >= config.steps):
                break
    return Probed(elapsed, steps)


@contextmanager
def _init_of(config: TrainConfig) -> Iterator[Init | None]:
    """What --init names, in a folder of its own: the run that would keep it does not exist."""
    if config.init is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="vae-init-") as folder:
        vae, _ = load_named(config.init, config.storage, config.model.own_classes, flag="--init")
        save_bundle(vae, folder, vae.metadata)
        yield Init(config.init, folder)
